"""The program in the pod that reads a claim: `python -m dippm_operator.fetch.claim_reader /claim PATH`.

It reads of the model what any store would be asked for, and prints it (`claim`). It needs no rights and no network.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dippm.errors import DippmError
from dippm_operator.fetch.cache import StoredFile
from dippm_operator.fetch.claim import MAX_BYTES, pieces_in, spoken
from dippm_operator.fetch.disk import DiskFolder
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.take import take
from dippm_operator.fetch.take_folder import ModelFolder, find, take_folder


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
