"""Files inside the tar layers of an artifact: where they lie, and each as a source of its own."""

from __future__ import annotations

import asyncio
import tarfile
import tempfile
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
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
_EMPTY_ARCHIVES = 1_000
"""In one layer: they are marks of an end (bgzip, estargz), and cost as much as one with something in it."""
_SLICE_BYTES = 64 << 10
"""Unpacked at once. What is left after an archive's end is copied, so large pieces of small archives take long."""


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
        """Of all gzip archives in a row (RFC 1952, 2.2), as estargz writes them. Others have their turn between slices.

        Raises ArtifactTooLarge for a layer that unpacks to more than may be fetched, ArtifactUnreachable for one that
        is damaged.
        """
        archives = _Archives(self.name, self._limits.max_bytes)
        async for chunk in self._source.stream():
            for start in range(0, len(chunk), _SLICE_BYTES):
                for piece in archives.unpack(chunk[start : start + _SLICE_BYTES]):
                    yield piece
                await asyncio.sleep(0)
        archives.check_end()

    async def close(self) -> None:
        await self._source.close()


class _Archives:
    """gzip archives in a row, unpacked as they come."""

    def __init__(self, name: str, max_bytes: int) -> None:
        self._name = name
        self._max_bytes = max_bytes
        self._unpacker = zlib.decompressobj(wbits=31)
        self._total = self._begun_at = 0
        self._begun, self._empty = 1, 0

    def unpack(self, packed: bytes) -> Iterator[bytes]:
        """What the next bytes give. Raises ArtifactTooLarge, ArtifactUnreachable."""
        while packed:
            if self._unpacker.eof:
                packed = packed.lstrip(b"\0")  # what pads an archive to whole blocks
                if not packed:
                    return
                self._begin_another()
            try:
                piece = self._unpacker.decompress(packed, 1 << 20)
            except zlib.error:
                raise ArtifactUnreachable(f"{self._name} has a layer that is no gzip archive; push it again.") from None
            packed = self._unpacker.unused_data if self._unpacker.eof else self._unpacker.unconsumed_tail
            self._total += len(piece)
            if self._total > self._max_bytes:
                raise ArtifactTooLarge(
                    f"{self._name} unpacks to more than {self._max_bytes} bytes, which is the limit."
                )
            if piece:
                yield piece

    def check_end(self) -> None:
        """Raises ArtifactUnreachable where the last archive goes on."""
        if not self._unpacker.eof:
            raise ArtifactUnreachable(f"{self._name} has a gzip layer that ends too early; push it again.")

    def _begin_another(self) -> None:
        self._begun += 1
        self._empty += self._total == self._begun_at
        if self._begun > _GZIP_ARCHIVES:
            raise ArtifactTooLarge(f"{self._name} is more than {_GZIP_ARCHIVES} gzip archives in a row.")
        if self._empty > _EMPTY_ARCHIVES:
            raise ArtifactTooLarge(f"{self._name} has more than {_EMPTY_ARCHIVES} empty gzip archives.")
        self._unpacker, self._begun_at = zlib.decompressobj(wbits=31), self._total


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
