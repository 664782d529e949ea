"""Files and folders of a disk, as sources like any store: those of a claim, and what `file:` names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable
from dippm_operator.fetch.folder import MAX_FILES, Listed
from dippm_operator.fetch.source import Look, Source

_CHUNK = 1 << 20


class DiskFile:
    """A file."""

    received_bytes = 0

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._path = path

    async def look(self, known: Look | None) -> Look | None:
        with _told(self.name):
            stat = self._path.stat()
        if not S_ISREG(stat.st_mode):  # a pipe would be waited for, a device has no end
            raise ArtifactUnreachable(f"{self.name} is not a regular file; save the model to one, and name that.")
        return Look(_etag(stat), size_bytes=stat.st_size, ranges=True)

    async def read(self, start: int, end: int) -> bytes:
        with _told(self.name), self._path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    async def stream(self) -> AsyncIterator[bytes]:
        with _told(self.name), self._path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                yield chunk

    async def close(self) -> None:
        """Nothing is held open."""


class DiskFolder:
    """A folder below a root; `name` is how messages call it, by default its path in the claim that is the root."""

    def __init__(self, root: Path, path: str, name: str = "") -> None:
        self.name = name or path or "the claim"
        self.path = path
        self._root = root.resolve()

    async def list(self) -> tuple[Listed, ...]:
        return self.files()

    def files(self) -> tuple[Listed, ...]:
        """All regular files below it. Raises ArtifactTooLarge for more than are looked through."""
        folder, listed = self._inside(self.path), []
        for file in _files_under(folder):
            with _told(self.name):
                stat = file.stat()
            listed.append(Listed(str(file.relative_to(folder)), stat.st_size, _etag(stat)))
            if len(listed) > MAX_FILES:
                raise ArtifactTooLarge(f"{self.name} holds more than {MAX_FILES} files; name the model's own.")
        return tuple(listed)

    def source(self, path: str) -> Source:
        return DiskFile(self._inside(f"{self.path.rstrip('/')}/{path}" if path else self.path), path or self.path)

    def _inside(self, path: str) -> Path:
        """A path below the claim's root, wherever links lead."""
        found = (self._root / path.lstrip("/")).resolve()
        if not found.is_relative_to(self._root):
            raise ArtifactUnreachable(f"{path} leads out of the claim; name a path in it.")
        return found


def _files_under(folder: Path) -> Iterator[Path]:
    for inside, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "lost+found"]
        yield from (Path(inside) / name for name in sorted(names) if (Path(inside) / name).is_file())


def _etag(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


@contextmanager
def _told(name: str) -> Iterator[None]:
    """What the disk refuses, as one sentence."""
    try:
        yield
    except PermissionError:
        raise ArtifactUnreachable(
            f"{name} may not be read by user {os.getuid()}; make it readable for all (chmod -R a+rX)."
        ) from None
    except OSError as error:
        raise ArtifactUnreachable(f"{name} cannot be read ({error.strerror}); check spec.model.uri.") from None
