"""A local file with holes: what was read of a remote file lies where it lay there, the rest takes no room."""

from __future__ import annotations

import bisect
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from dippm.errors import ArtifactTooLarge

_FIRST_STEP = 512
_LONGEST_STEP = 1024 * 1024
_PIECE = 4 * 1024 * 1024


class SparseFile:
    """Pieces of a file at their own offsets. Holes read as zeros."""

    def __init__(self, path: Path, name: str, max_bytes: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self.name = name
        self._max_bytes = max_bytes
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.kept_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Start and end of what is there, in order."""
        return list(zip(self._starts, self._ends, strict=True))

    def write(self, start: int, data: bytes) -> None:
        """Put data where it belongs. Raises ArtifactTooLarge past the limit, or where the disk is full."""
        if not data:
            return
        end = start + len(data)
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        merged = (min([start, *self._starts[first:last]]), max([end, *self._ends[first:last]]))
        before = sum(e - s for s, e in zip(self._starts[first:last], self._ends[first:last], strict=True))
        self.kept_bytes += merged[1] - merged[0] - before
        if self.kept_bytes > self._max_bytes:
            raise ArtifactTooLarge(f"{self.name} has more than {self._max_bytes} bytes, which is the limit.")
        self._starts[first:last], self._ends[first:last] = [merged[0]], [merged[1]]
        try:
            view, offset = memoryview(data), start
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise ArtifactTooLarge(
                f"{self.name} cannot be stored ({error.strerror}); give the cache more space."
            ) from None

    def read(self, start: int, length: int) -> bytes:
        """What lies there; only asked for what is covered."""
        return os.pread(self._descriptor, length, start)

    def covered(self, start: int) -> int:
        """The end of the piece that `start` lies in; `start` itself where it lies in none."""
        index = bisect.bisect_right(self._starts, start) - 1
        return self._ends[index] if index >= 0 and self._ends[index] > start else start

    def finish(self, size: int) -> None:
        """Give the file its full size."""
        try:
            os.truncate(self._descriptor, size)
        except OSError as error:
            raise ArtifactTooLarge(
                f"{self.name} cannot be stored ({error.strerror}); give the cache more space."
            ) from None


def digest_of_pieces(path: Path, pieces: list[tuple[int, int]]) -> str:
    """sha256 (hex) over the pieces of a file that are there."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        for start, end in pieces:
            file.seek(start)
            left = end - start
            while left and (data := file.read(min(left, _PIECE))):
                state.update(data)
                left -= len(data)
    return state.hexdigest()


class Reader(ABC):
    """What a format's reader asks: bytes at a place. All that it asks for is kept in the sparse file."""

    size: int | None

    @abstractmethod
    def read(self, start: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""

    def keep(self, start: int, end: int) -> None:
        """Have these bytes in the sparse file."""
        position = start
        while position < end:
            piece = len(self.read(position, min(_PIECE, end - position)))
            if not piece:
                return
            position += piece


class RangeReader(Reader):
    """Reads parts over the network: little after a jump, more and more in a row."""

    def __init__(self, fetch: Callable[[int, int], bytes], file: SparseFile, size: int) -> None:
        self._fetch = fetch
        self._file = file
        self.size: int = size
        self._step = _FIRST_STEP
        self._last_end = 0

    def read(self, start: int, length: int) -> bytes:
        end = min(start + length, self.size)
        position = start
        while position < end:
            covered = self._file.covered(position)
            if covered > position:
                position = covered
                continue
            self._step = min(self._step * 2, _LONGEST_STEP) if position == self._last_end else _FIRST_STEP
            stop = min(max(end, position + self._step), self.size)
            self._file.write(position, self._fetch(position, stop))
            position = self._last_end = stop
        return self._file.read(start, max(end - start, 0))


class StreamReader(Reader):
    """Reads a stream forward, once: what is jumped over is gone."""

    def __init__(self, chunks: Callable[[], bytes], file: SparseFile, size: int | None, max_bytes: int) -> None:
        self._chunks = chunks
        self._file = file
        self._max_bytes = max_bytes
        self.size = size
        self._buffer = bytearray()
        self._start = 0
        """Offset of the buffer's first byte."""
        self._hash = hashlib.sha256()
        self._ended = False

    def read(self, start: int, length: int) -> bytes:
        if start < self._start:
            raise ValueError(f"a stream cannot go back from {self._start} to {start}")
        while self._start + len(self._buffer) < start + length and self._pull(start):
            pass
        self._drop(start)
        data = bytes(self._buffer[:length])
        self._file.write(start, data)
        return data

    def peek(self, length: int) -> bytes:
        """The next bytes, not passed yet and not kept."""
        while len(self._buffer) < length and self._pull(self._start):
            pass
        return bytes(self._buffer[:length])

    def tail(self, length: int) -> tuple[int, str, bytes]:
        """Read to the end: size, `sha256:...` and the last bytes of the whole."""
        while self._pull(self._start + len(self._buffer) - length):
            pass
        size, digest = self._passed()
        return size, digest, bytes(self._buffer[-length:])

    def rest(self) -> tuple[int, str]:
        """Read to the end: size and `sha256:...` of the whole."""
        while self._pull(self._start + len(self._buffer)):
            pass
        return self._passed()

    def _passed(self) -> tuple[int, str]:
        return self._start + len(self._buffer), "sha256:" + self._hash.hexdigest()

    def _drop(self, start: int) -> None:
        gone = min(max(start - self._start, 0), len(self._buffer))
        del self._buffer[:gone]
        self._start += gone

    def _pull(self, start: int) -> bool:
        self._drop(start)
        data = b"" if self._ended else self._chunks()
        self._ended = not data
        self._hash.update(data)
        self._buffer += data
        if self._start + len(self._buffer) > self._max_bytes:
            raise ArtifactTooLarge(f"{self._file.name} has more than {self._max_bytes} bytes, which is the limit.")
        return bool(data)


class HeldReader(Reader):
    """Reads the end of a file from memory."""

    def __init__(self, tail: bytes, start: int, file: SparseFile, size: int) -> None:
        self._tail = tail
        self._start = start
        self._file = file
        self.size = size

    def read(self, start: int, length: int) -> bytes:
        if start < self._start:
            raise ValueError(f"only the end of the file is held, from {self._start}")
        data = self._tail[start - self._start : start - self._start + length]
        self._file.write(start, data)
        return data
