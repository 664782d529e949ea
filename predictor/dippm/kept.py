"""Small values kept on disk between runs, within a number of bytes, by several processes at once.

A file per value, written beside its place and renamed onto it, so that nobody reads a half of one; each carries a
digest, and one that is not as it was written is thrown away. The least recently used go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_NEW = "new-"
_FORGOTTEN_SECONDS = 3600.0


class Kept:
    """Values by key. It is a cache: `get` may give None for whatever was put."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        with contextlib.suppress(OSError):  # the disk is full or read-only: nothing is kept
            folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> bytes | None:
        """The value; None where there is none, or what there was is damaged."""
        path = self._folder / _name(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, value = content[:32], content[32:]
        if digest != _digest(key, value):
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):  # another process has just deleted it
            os.utime(path)
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keep a value, and let others go for it; not one larger than the limit, or that the disk refuses."""
        if len(value) + 32 > self._max_bytes:
            return
        with contextlib.suppress(OSError):
            descriptor, name = tempfile.mkstemp(prefix=_NEW, dir=self._folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_digest(key, value) + value)
                os.replace(name, self._folder / _name(key))
            except OSError:
                os.unlink(name)
            self._make_room()

    @property
    def held_bytes(self) -> int:
        """Bytes of all values."""
        return sum(size for _, size, _ in self._files())

    def _make_room(self) -> None:
        files = sorted(self._files())
        held = sum(size for _, size, _ in files)
        for age, size, path in files:
            half_written = path.name.startswith(_NEW)
            if half_written and time.time() - age < _FORGOTTEN_SECONDS:
                continue  # another process is at it
            if held > self._max_bytes or half_written:
                with contextlib.suppress(OSError):
                    path.unlink()
                held -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        for entry in os.scandir(self._folder):
            with contextlib.suppress(OSError):  # gone meanwhile
                stat = entry.stat()
                yield stat.st_mtime, stat.st_size, Path(entry.path)


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _digest(key: str, value: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + value).digest()
