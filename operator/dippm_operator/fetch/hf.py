"""`hf://owner/model[:revision][/path]`: a file of a Hugging Face repository.

KServe's spelling ends with the revision; a path after it names one file. Without one the repository must hold one.
https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import aiohttp
from yarl import URL

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable
from dippm_operator.fetch.address import check_host
from dippm_operator.fetch.credentials import Credentials
from dippm_operator.fetch.http import shown, spoken
from dippm_operator.fetch.limits import FetchLimits

MODEL_SUFFIXES = (".onnx", ".pt2", ".pt", ".ts")
"""Files that may be a model with its operators."""
_URI = re.compile(r"hf://(?P<owner>[\w.-]+)/(?P<model>[\w.-]+)(:(?P<revision>[\w.-]+))?(/(?P<path>.+))?")
_LONGEST_LISTING = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HubFile:
    """What an `hf://` URI names."""

    repository: str
    revision: str
    path: str
    """Empty: the URI names the repository."""


def parse_hf(uri: str) -> HubFile:
    """Take a URI apart. Raises ArtifactUnreachable."""
    match = _URI.fullmatch(uri)
    if match is None or ".." in uri.split("/"):
        raise ArtifactUnreachable(f"{shown(uri)} is not hf://OWNER/MODEL[:REVISION][/PATH]; write it so.")
    return HubFile(f"{match['owner']}/{match['model']}", match["revision"] or "main", unquote(match["path"] or ""))


def headers_for(credentials: Credentials | None, host: str) -> Mapping[str, str]:
    """With the Secret's HF_TOKEN, if there is a Secret."""
    if credentials is None:
        return {}
    credentials.check_host(host)
    return {"Authorization": f"Bearer {credentials.need('HF_TOKEN')}"}


def url_of(endpoint: str, file: HubFile) -> str:
    """Where a file's content is."""
    return f"{endpoint}/{file.repository}/resolve/{quote(file.revision, safe='')}/{quote(file.path)}"


def only_model(uri: str, paths: Iterable[str]) -> str:
    """The one model file among a repository's. Pure. Raises ArtifactUnreachable where there is none, or several."""
    found = sorted(path for path in paths if path.endswith(MODEL_SUFFIXES))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ArtifactUnreachable(
            f"{shown(uri)} holds no file with a model's operators (.onnx, .pt2, TorchScript); weights alone are not "
            "read yet: export the model, or name another repository."
        )
    some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
    name = shown(uri).rstrip("/")
    raise ArtifactUnreachable(f"{name} holds several models ({some}); name one: {name}/{found[0]}.")


async def list_files(
    session: aiohttp.ClientSession, endpoint: str, file: HubFile, headers: Mapping[str, str], limits: FetchLimits
) -> list[str]:
    """Paths of a repository's files (the first thousand)."""
    url = f"{endpoint}/api/models/{file.repository}/tree/{quote(file.revision, safe='')}?recursive=true"
    name = f"hf://{file.repository}"
    with spoken(name):
        check_host(URL(url).raw_host or "", limits.blocked_networks)
        async with session.get(url, headers=dict(headers), allow_redirects=False) as response:
            if response.status != 200:
                raise ArtifactUnreachable(
                    f"{name} answered {response.status} {response.reason}; check its name and revision, "
                    "and spec.model.secretRef if it is not public."
                )
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > _LONGEST_LISTING:
                    raise ArtifactTooLarge(f"{name} has too many files to look for the model; name it in the URI.")
        entries: list[dict[str, Any]] = json.loads(body)
    return [str(entry["path"]) for entry in entries if entry.get("type") == "file"]
