"""Files inside the tar layers of an artifact: where they lie, and each as a source of its own."""

from __future__ import annotations

import asyncio
import tarfile
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable
from dippm_operator.fetch.folder import MAX_FILES
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.skim import Tail
from dippm_operator.fetch.source import Look, Ranged, Source
from dippm_operator.fetch.sparse import RangeReader, SparseFile, StreamReader
from dippm_operator.fetch.take import bridge

_DIRECTORY_BYTES = 64 << 20
"""Most bytes of headers in one archive."""
_UNKNOWN_SIZE = 1 << 62
COMPRESSED_BYTES = 1 << 30
"""Largest compressed layer that is read: each file in it takes the whole of it once more."""
_GZIP_ARCHIVES = 5 * MAX_FILES
"""In one layer: estargz begins another one with every file."""


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file in a tar archive."""

    name: str
    offset: int
    """Of its content."""
    size_bytes: int


class Gunzipped:
    """A layer that is compressed, as what it unpacks to: it passes by from its start each time."""

    def __init__(self, source: Source, limits: FetchLimits) -> None:
        self.name = source.name
        self._source = source
        self._limits = limits

    @property
    def received_bytes(self) -> int:
        return self._source.received_bytes

    async def look(self, known: Look | None) -> Look | None:
        look = await self._source.look(known)
        return None if look is None else Look(look.etag, content_digest=look.content_digest)

    async def stream(self) -> AsyncIterator[bytes]:
        """Of all gzip archives in a row (RFC 1952, 2.2), as estargz writes them.

        Raises ArtifactTooLarge for a layer that unpacks to more than may be fetched, ArtifactUnreachable for one that
        is damaged.
        """
        unpacker, total, archives = zlib.decompressobj(wbits=31), 0, 1
        try:
            async for chunk in self._source.stream():
                while chunk:
                    if unpacker.eof:
                        chunk = chunk.lstrip(b"\0")  # what pads an archive to whole blocks
                        if not chunk:
                            break
                        unpacker, archives = zlib.decompressobj(wbits=31), archives + 1
                    piece = unpacker.decompress(chunk, 1 << 20)
                    chunk = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
                    total += len(piece)
                    if total > self._limits.max_bytes:
                        raise ArtifactTooLarge(
                            f"{self.name} unpacks to more than {self._limits.max_bytes} bytes, which is the limit."
                        )
                    if archives > _GZIP_ARCHIVES:
                        raise ArtifactTooLarge(f"{self.name} is more than {_GZIP_ARCHIVES} gzip archives in a row.")
                    if piece:
                        yield piece
        except zlib.error:
            raise ArtifactUnreachable(f"{self.name} has a layer that is no gzip archive; push it again.") from None
        if not unpacker.eof:
            raise ArtifactUnreachable(f"{self.name} has a gzip layer that ends too early; push it again.")

    async def close(self) -> None:
        await self._source.close()


class Window:
    """A part of another source that is a file of its own."""

    def __init__(self, source: Source, member: Member, version: str) -> None:
        self.name = f"{source.name}/{member.name}"
        self._source = source
        self._member = member
        self._etag = f"{version}+{member.offset}"

    @property
    def received_bytes(self) -> int:
        return self._source.received_bytes

    async def look(self, known: Look | None) -> Look | None:
        if known is not None and known.etag == self._etag:
            return None  # the manifest has just said so, to these credentials
        look = await self._source.look(None)
        return Look(self._etag, size_bytes=self._member.size_bytes, ranges=look is not None and look.ranges)

    async def stream(self) -> AsyncIterator[bytes]:
        position, first, last = 0, self._member.offset, self._member.offset + self._member.size_bytes
        async for chunk in self._source.stream():
            inside = chunk[max(first - position, 0) : max(last - position, 0)]
            position += len(chunk)
            if inside:
                yield inside
            if position >= last:
                return

    async def close(self) -> None:
        await self._source.close()


class RangedWindow(Window):
    """A part of a source that is read by parts."""

    def __init__(self, source: Ranged, member: Member, version: str) -> None:
        super().__init__(source, member, version)
        self._parts = source

    async def read(self, start: int, end: int) -> bytes:
        return await self._parts.read(self._member.offset + start, self._member.offset + end)


async def members_of(source: Source, limits: FetchLimits, threads: Executor) -> tuple[Member, ...]:
    """The plain files of a tar archive: by its headers, or where there are no parts as it passes by.

    Raises ArtifactUnreachable for what is no tar archive, ArtifactTooLarge for one with too many files.
    """
    look = await source.look(None)
    if look is None:
        raise ArtifactUnreachable(f"{source.name} gives no content; it is read again later.")
    fetch, chunks = bridge(source, limits)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(threads, _members, source.name, look, limits, fetch, chunks)


def _members(
    name: str,
    look: Look,
    limits: FetchLimits,
    fetch: Callable[[int, int], bytes] | None,
    chunks: Callable[[], Callable[[], bytes]],
) -> tuple[Member, ...]:
    found: list[Member] = []
    with (
        tempfile.TemporaryDirectory(prefix="dippm-tar-") as folder,
        SparseFile(Path(folder) / "directory", name, _DIRECTORY_BYTES) as file,
    ):
        size = look.size_bytes
        if fetch is not None and look.ranges and size is not None:
            tail = Tail(RangeReader(fetch, file, size), size)
        else:
            tail = Tail(StreamReader(chunks(), file, size, limits.max_bytes), size or _UNKNOWN_SIZE)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", tail), mode="r:") as archive:
                for member in archive:
                    if member.isreg() and not member.issparse():
                        found.append(Member(member.name.removeprefix("./"), member.offset_data, member.size))
                    if len(found) > MAX_FILES:
                        raise ArtifactTooLarge(f"{name} holds more than {MAX_FILES} files; push the model alone.")
        except (tarfile.TarError, ValueError, OSError):
            raise ArtifactUnreachable(f"{name} has a layer that is no sound tar archive; push it again.") from None
    return tuple(found)
