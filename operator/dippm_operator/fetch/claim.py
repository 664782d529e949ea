"""`pvc://CLAIM[/PATH]`: what a reader inside the cluster found in a PersistentVolumeClaim, handed over as text.

Nothing but a pod can read a claim, and what a pod hands back without rights of its own is its log. So the reader prints
the pieces that say what the model is, compressed, in lines of base64 between a first line with their digest and a last
one. It runs where tenants may meddle: what comes is bounded, checked and otherwise treated like any file of a stranger.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable
from dippm_operator.fetch.cache import StoredFile
from dippm_operator.fetch.http import shown
from dippm_operator.fetch.sparse import SparseFile, digest_of_pieces

MAX_COMPRESSED_BYTES = 6 << 20
"""Most that is handed over: kubelets turn logs over at 10 MiB and give the last one."""
MAX_LOG_BYTES = 9 << 20
MAX_BYTES = 256 << 20
"""Most that it may unpack to."""
MAX_HEAD_BYTES = 1 << 20
"""Most that describes the files: a reader of a thousand files says a tenth of it."""
_LINE = 8192
_LONGEST_NAME = 500
_FIRST = re.compile(r"dippm-claim 1 ([0-9a-f]{64}) (\d{1,9})")
_LAST = "dippm-claim end"
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class ClaimPath:
    """What a `pvc://` URI names."""

    claim: str
    path: str
    """Below the claim's root; empty: all of it. Ends with a slash where the URI says that it means a folder."""


def parse_pvc(uri: str) -> ClaimPath:
    """Take a URI apart, as KServe spells it. Raises ArtifactUnreachable."""
    host, _, path = uri.removeprefix("pvc:").removeprefix("//").partition("?")[0].partition("#")[0].partition("/")
    path = unquote(path).lstrip("/")
    if not _CLAIM.fullmatch(host) or ".." in PurePosixPath(path).parts or "\0" in path:
        raise ArtifactUnreachable(f"{shown(uri)} is not pvc://CLAIM/PATH; write it so.")
    return ClaimPath(host, path)


@dataclass(frozen=True, slots=True)
class Handed:
    """What the reader found."""

    etag: str
    """Another one as soon as a file's time or size is another."""
    main_etag: str
    files: tuple[StoredFile, ...]
    """Empty where it is what was known."""
    content: tuple[bytes, ...]
    """Of each file its pieces, one after the other."""
    is_folder: bool
    content_digest: str = ""


def spoken(body: Mapping[str, Any], content: Sequence[bytes] = ()) -> str:
    """What the reader prints. Raises ArtifactTooLarge where it is more than is handed over."""
    head = json.dumps(body, separators=(",", ":")).encode()
    packed = zlib.compress(len(head).to_bytes(4, "big") + head + b"".join(content), 6)
    if len(packed) > MAX_COMPRESSED_BYTES:
        raise ArtifactTooLarge(
            f"what says what the model is takes {len(packed) >> 20} MiB, and of a claim at most "
            f"{MAX_COMPRESSED_BYTES >> 20} MiB are handed over; serve the model over https or from a bucket."
        )
    text = base64.b64encode(packed).decode()
    lines = [text[at : at + _LINE] for at in range(0, len(text), _LINE)]
    return "\n".join([f"dippm-claim 1 {hashlib.sha256(packed).hexdigest()} {len(packed)}", *lines, _LAST, ""])


def understood(name: str, log: str) -> Handed:
    """What a reader's log says.

    Raises ArtifactUnreachable: the reader's own sentence, or that the log is not what a reader prints.
    """
    lines = log.splitlines()
    starts = [(at, match) for at, line in enumerate(lines) if (match := _FIRST.fullmatch(line))]
    torn = ArtifactUnreachable(f"{name}: the log of the pod that read the claim is not whole; it is read again later.")
    if not starts or _LAST not in lines:
        raise torn
    at, match = starts[-1]
    try:
        packed = base64.b64decode("".join(lines[at + 1 : lines.index(_LAST, at)]), validate=True)
        if len(packed) != int(match[2]) or hashlib.sha256(packed).hexdigest() != match[1]:
            raise torn
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed, MAX_BYTES)
        if unpacker.unconsumed_tail:
            raise ArtifactTooLarge(f"{name} hands over more than {MAX_BYTES >> 20} MiB; serve the model over https.")
        head = 4 + int.from_bytes(data[:4], "big")
        if head > MAX_HEAD_BYTES:
            raise torn
        return _handed(name, json.loads(data[4:head]), data[head:])
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error, zlib.error):
        raise torn from None


def _handed(name: str, body: Any, data: bytes) -> Handed:
    """Raises ValueError, KeyError, TypeError for what no reader says."""
    if error := body.get("error"):
        raise ArtifactUnreachable(f"{name}: {str(error)[:500]}")
    files, content, position = [], [], 0
    for entry in body["files"]:
        own = str(entry["name"])
        size, pieces = int(entry["size"]), tuple((int(s), int(e)) for s, e in entry["pieces"])
        plain = (
            all(part not in ("", ".", "..") for part in own.split("/")) and "\0" not in own and len(own) < _LONGEST_NAME
        )
        edges = [0, *(edge for piece in pieces for edge in piece), size]
        if not plain or size >= 1 << 50 or edges != sorted(edges):
            raise ValueError(own)
        length = sum(end - start for start, end in pieces)
        files.append(StoredFile(own, size, pieces, hashlib.sha256(data[position : position + length]).hexdigest()))
        content.append(data[position : position + length])
        position += length
    if position != len(data) or (len(files) != 1 and not body["folder"] and not body["unchanged"]):
        raise ValueError("other files than it says")
    if len(str(body["etag"])) > _LONGEST_NAME or len(str(body["main"])) > _LONGEST_NAME:
        raise ValueError("an etag without end")
    return Handed(
        str(body["etag"]), str(body["main"]), tuple(files), tuple(content), bool(body["folder"]), str(body["digest"])
    )


def write(handed: Handed, folder: Path) -> None:
    """Put the files where the cache wants them. Raises ArtifactTooLarge where the disk is full."""
    for stored, content in zip(handed.files, handed.content, strict=True):
        path = folder / stored.name
        path.parent.mkdir(parents=True, exist_ok=True)
        position = 0
        with SparseFile(path, stored.name, MAX_BYTES) as file:
            for start, end in stored.pieces:
                file.write(start, content[position : position + end - start])
                position += end - start
            file.finish(stored.size_bytes)


def pieces_in(path: Path, stored: StoredFile) -> bytes:
    """What of a file is there. Raises ArtifactUnreachable where the disk has something else."""
    if digest_of_pieces(path, list(stored.pieces)) != stored.checksum:
        raise ArtifactUnreachable(f"{stored.name} changed on disk while it was read.")
    with path.open("rb") as file:
        return b"".join(_read(file, start, end) for start, end in stored.pieces)


def _read(file: Any, start: int, end: int) -> bytes:
    file.seek(start)
    data: bytes = file.read(end - start)
    return data
