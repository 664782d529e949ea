"""`hf://owner/model[:revision][/path]`: a file of a Hugging Face repository.

KServe's spelling ends with the revision; a path after it names one file, or with a slash at its end a folder.
https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote

import aiohttp

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.credentials import Credentials
from dippm_operator.fetch.folder import LONGEST_LISTING, Listed
from dippm_operator.fetch.http import HttpSource, ask, shown
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.listing import check_count, json_of, object_of, objects_of, text, whole_number

_URI = re.compile(r"hf://(?P<owner>[\w.-]+)/(?P<model>[\w.-]+)(:(?P<revision>[\w.-]+))?(/(?P<path>.+))?")
_NEXT = re.compile(r'<([^>]+)>;\s*rel="next"')


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


class HubFolder:
    """A repository, or a folder in it."""

    def __init__(
        self, session: aiohttp.ClientSession, limits: FetchLimits, file: HubFile, headers: Mapping[str, str], name: str
    ) -> None:
        self.name = name
        self.path = file.path
        self._session = session
        self._limits = limits
        self._file = file
        self._headers = dict(headers)

    async def list(self) -> tuple[Listed, ...]:
        """Page after page (`Link: <...>; rel="next"`)."""
        file, hub = self._file, self._limits.hub
        prefix = f"{file.path.rstrip('/')}/" if file.path else ""
        under = quote(prefix)
        url = f"{hub}/api/models/{file.repository}/tree/{quote(file.revision, safe='')}/{under}".rstrip("/")
        url, listed = f"{url}?recursive=true", list[Listed]()
        while url:
            answer = await ask(
                self._session, self.name, url, self._headers, self._limits, most=LONGEST_LISTING, exact=True
            )
            if answer.status != 200:
                raise ArtifactUnreachable(
                    f"{self.name} answered {answer.status} {answer.reason}; check its name and revision, "
                    "and spec.model.secretRef if it is not public."
                )
            listed += self._entries(answer.body, prefix)
            check_count(self.name, listed)
            following = _NEXT.search(answer.headers.get("Link", ""))
            url = following[1] if following and following[1].startswith(f"{hub}/") else ""
        return tuple(listed)

    def source(self, path: str) -> HttpSource:
        inside = f"{self._file.path.rstrip('/')}/{path}".lstrip("/")
        file = replace(self._file, path=inside if path else self._file.path)
        url = url_of(self._limits.hub, file)
        return HttpSource(
            self._session, url, self._limits, name=f"{self.name.rstrip('/')}/{path}" if path else self.name,
            headers=self._headers,
        )  # fmt: skip

    def _entries(self, body: bytes, prefix: str) -> Iterator[Listed]:
        for entry in objects_of(self.name, json_of(self.name, body)):
            path = text(entry.get("path"))
            if entry.get("type") == "file" and path.startswith(prefix):
                etag = text(object_of(entry.get("lfs")).get("oid")) or text(entry.get("oid"))
                yield Listed(path.removeprefix(prefix), whole_number(entry.get("size")), etag)
