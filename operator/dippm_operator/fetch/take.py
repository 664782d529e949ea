"""One artifact from a store to the disk: what says what it is, and no more."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable
from dippm_operator.fetch.cache import StoredFile
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.skim import HEAD_BYTES, Members, Tail, kind_of, skim, zip_members
from dippm_operator.fetch.source import Look, Ranged, Source
from dippm_operator.fetch.sparse import HeldReader, RangeReader, Reader, SparseFile, StreamReader, digest_of_pieces

TAIL_BYTES = 16 * 1024 * 1024
"""Most bytes at the end of an archive that are looked at for its directory where only a stream is to be had."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What lies on disk now."""

    file: StoredFile
    content_digest: str
    """`sha256:...` of the whole where all of it passed; else empty."""


async def take(source: Source, look: Look, path: Path, limits: FetchLimits, threads: Executor, *, whole: bool) -> Taken:
    """Read what matters of an artifact into a file with holes. `whole`: all of it passes by, for its digest.

    The readers run on `threads`, which must be used for nothing that a connection needs: they wait for the loop.

    Raises ArtifactUnreachable, ArtifactTooLarge.
    """
    if (whole or not look.ranges) and (look.size_bytes or 0) > limits.max_bytes:
        raise ArtifactTooLarge(f"{source.name} has {look.size_bytes} bytes; at most {limits.max_bytes} are read.")
    fetch, chunks = bridge(source, limits)
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(threads, _take, source.name, look, path, limits, fetch, chunks, whole)


def bridge(
    source: Source, limits: FetchLimits
) -> tuple[Callable[[int, int], bytes] | None, Callable[[], Callable[[], bytes]]]:
    """A source for a thread: bytes from here to there (None where it has no parts), and what begins to stream.

    Each call is a wait for the loop.

    They raise ArtifactUnreachable once all together take longer than a download may.
    """
    loop = asyncio.get_running_loop()
    deadline = time.monotonic() + limits.total_seconds

    def wait(future: concurrent.futures.Future[bytes]) -> bytes:
        try:
            return future.result(max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            future.cancel()
            raise ArtifactUnreachable(
                f"{source.name} did not answer in time; check the host, or try again later."
            ) from None

    def part(parts: Ranged, start: int, end: int) -> bytes:
        return wait(asyncio.run_coroutine_threadsafe(parts.read(start, end), loop))

    def chunks() -> Callable[[], bytes]:
        iterator = aiter(source.stream())
        return lambda: wait(asyncio.run_coroutine_threadsafe(_next(iterator), loop))

    return partial(part, source) if isinstance(source, Ranged) else None, chunks


async def _next(iterator: AsyncIterator[bytes]) -> bytes:
    async for chunk in iterator:
        if chunk:
            return chunk
    return b""


def _take(
    name: str,
    look: Look,
    path: Path,
    limits: FetchLimits,
    fetch: Callable[[int, int], bytes] | None,
    chunks: Callable[[], Callable[[], bytes]],
    whole: bool,
) -> Taken:
    with SparseFile(path, name, limits.max_bytes) as file:
        digest, members = "", Members((), (), 0)
        if fetch is not None and look.ranges and look.size_bytes is not None:
            size = look.size_bytes
            members = _by_ranges(RangeReader(fetch, file, size), size)
            if whole:
                digest = _same(name, path, file, chunks(), size, limits.max_bytes)
        else:
            size, digest, members = _by_stream(name, look, file, chunks, limits, whole=whole)
        for offset, header in members.headers:
            if file.covered(offset) < offset + len(header):
                file.write(offset, header)
        file.finish(size)
        pieces = file.pieces
    return Taken(StoredFile(path.name, size, tuple(pieces), digest_of_pieces(path, pieces)), digest)


def _by_ranges(reader: RangeReader, size: int) -> Members:
    kind = kind_of(reader.read(0, HEAD_BYTES))
    if kind != "zip":
        skim(reader, kind)
        return Members((), (), 0)
    members = zip_members(Tail(reader, size), size)
    _keep_members(reader, members, size)
    return members


def _by_stream(
    name: str, look: Look, file: SparseFile, chunks: Callable[[], Callable[[], bytes]], limits: FetchLimits, *,
    whole: bool,
) -> tuple[int, str, Members]:  # fmt: skip
    """Size, digest, members.

    An archive tells at its end what is in it: unless it is small it passes twice. Of safetensors nothing matters after
    the header: the rest is not waited for.
    """
    reader = StreamReader(chunks(), file, look.size_bytes, limits.max_bytes)
    kind = kind_of(reader.peek(HEAD_BYTES))
    if kind != "zip":
        reader.read(0, HEAD_BYTES if kind == "refused" else 0)
        skim(reader, kind)
        if kind == "safetensors" and look.size_bytes is not None and not whole:
            return look.size_bytes, "", Members((), (), 0)
        return *reader.rest(), Members((), (), 0)
    size, digest, tail = reader.tail(TAIL_BYTES)
    held = HeldReader(tail, size - len(tail), file, size)
    members = zip_members(Tail(held, size), size)
    if len(tail) == size:
        _keep_members(held, members, size)
        return size, digest, members
    again = StreamReader(chunks(), file, size, limits.max_bytes)
    _keep_members(again, members, size)
    if again.rest() != (size, digest):
        raise _changed(name)
    return size, digest, members


def _keep_members(reader: Reader, members: Members, size: int) -> None:
    """In the order of the file, because a stream goes one way."""
    position = 0
    for start, end in sorted([(0, min(HEAD_BYTES, size)), *members.kept, (members.directory, size)]):
        if end > position:
            reader.keep(max(start, position), end)
            position = end


def _same(name: str, path: Path, file: SparseFile, next_chunk: Callable[[], bytes], size: int, most: int) -> str:
    """The digest of the whole stream, in which what was read by parts must be found again."""
    by_parts = digest_of_pieces(path, file.pieces)
    reader = StreamReader(next_chunk, file, size, most)
    for start, end in file.pieces:
        reader.keep(start, end)
    total, digest = reader.rest()
    if total != size or digest_of_pieces(path, file.pieces) != by_parts:
        raise _changed(name)
    return digest


def _changed(name: str) -> ArtifactUnreachable:
    return ArtifactUnreachable(f"{name} changed while it was read; it is read again later.")
