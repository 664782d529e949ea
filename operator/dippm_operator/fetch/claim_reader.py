"""The program in the pod that reads a claim: `python -m dippm_operator.fetch.claim_reader /claim PATH`.

It reads of the model what any store would be asked for, and prints it (`claim`). It needs no rights and no network.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable, DippmError
from dippm_operator.fetch.cache import StoredFile
from dippm_operator.fetch.claim import MAX_BYTES, pieces_in, spoken
from dippm_operator.fetch.folder import MAX_FILES, Listed
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.source import Look, Source
from dippm_operator.fetch.take import take
from dippm_operator.fetch.take_folder import ModelFolder, find, take_folder

_CHUNK = 1 << 20


class DiskFile:
    """A file of the claim."""

    received_bytes = 0

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._path = path

    async def look(self, known: Look | None) -> Look | None:
        with _told(self.name):
            stat = self._path.stat()
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
    """A folder of the claim."""

    def __init__(self, root: Path, path: str) -> None:
        self.name = path or "the claim"
        self.path = path
        self._root = root.resolve()

    async def list(self) -> tuple[Listed, ...]:
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


async def read(root: Path, path: str, work: Path, *, known: str = "", whole: bool = False) -> str:
    """What is printed of a path in a claim. `known`: the ETag of what was read before."""
    limits = FetchLimits(max_bytes=MAX_BYTES)
    threads = ThreadPoolExecutor(4)
    try:
        store = await find(DiskFolder(root, path))
        if isinstance(store, ModelFolder):
            look = await store.look(None)
            etag, main = (look.etag, look.main_etag) if look is not None else ("", "")
        else:
            look = await store.look(None)
            etag, main = (look.etag, "") if look is not None else ("", "")
        files: tuple[StoredFile, ...] = ()
        digest, is_folder = "", isinstance(store, ModelFolder)
        if etag != known:
            if isinstance(store, ModelFolder):
                files, _ = await take_folder(store, work, limits, threads)
            else:
                assert look is not None  # a file of the disk always says what it is
                name = Path(path).name if not path.endswith("/") and path else Path(store.name).name
                if whole:  # all of it passes by, and only what is kept counts
                    limits = FetchLimits(max_bytes=look.size_bytes or 0)
                taken = await take(store, look, work / name, limits, threads, whole=whole)
                files, digest = (taken.file,), taken.content_digest
        body: dict[str, Any] = {
            "etag": etag, "main": main, "folder": is_folder, "unchanged": etag == known, "digest": digest,
            "files": [{"name": f.name, "size": f.size_bytes, "pieces": f.pieces} for f in files],
        }  # fmt: skip
        return spoken(body, [pieces_in(work / file.name, file) for file in files])
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def main() -> int:
    """Print what was found, or why nothing was; 0 in both cases, because the log is the answer."""
    parser = argparse.ArgumentParser(prog="python -m dippm_operator.fetch.claim_reader")
    parser.add_argument("root", type=Path)
    parser.add_argument("path", nargs="?", default="")
    parser.add_argument("--known", default="")
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dippm-claim-") as work:
        try:
            text = asyncio.run(read(given.root, given.path, Path(work), known=given.known, whole=given.whole))
        except* DippmError as group:
            text = spoken({"error": str(_first(group))})
    sys.stdout.write(text)
    return 0


def _first(error: BaseException) -> BaseException:
    return _first(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


if __name__ == "__main__":
    sys.exit(main())
