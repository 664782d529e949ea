"""A model of several files from a store to the disk: of each what says what it is, several at once."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from dippm import hf_files
from dippm.errors import ArtifactTooLarge, ArtifactUnreachable
from dippm_operator.fetch.cache import StoredFile
from dippm_operator.fetch.folder import Chosen, Folder, Listed, check_paths, choose, names_file
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.source import Look, Source
from dippm_operator.fetch.sparse import SparseFile, digest_of_pieces
from dippm_operator.fetch.take import take

AT_ONCE = 8
"""Files of one folder that are read at the same time."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder of a store, and the model in it."""

    folder: Folder
    chosen: Chosen

    async def look(self, known: Look | None) -> Look | None:
        """What the store has now; None where it is what is known already.

        Its main file is asked for all the same: who may list a folder may still not read it (a gated repository).
        """
        source = self.folder.source(self.chosen.files[0].path)
        same = known is not None and known.etag == self.chosen.etag
        try:
            main = await source.look(Look(known.main_etag) if known is not None and same and known.main_etag else None)
        finally:
            await source.close()
        return None if same else Look(self.chosen.etag, main_etag="" if main is None else main.etag)


async def find(folder: Folder) -> Source | ModelFolder:
    """The file that a URI names, or the model in the folder that it names.

    Raises ArtifactUnreachable where there is no model, or several.
    """
    may_be_file = bool(folder.path) and not folder.path.endswith("/")
    if may_be_file and names_file(folder.path):
        return folder.source("")
    try:
        listing = await folder.list()
    except ArtifactUnreachable:
        if may_be_file:  # who may not list a bucket may still read what is in it
            return folder.source("")
        raise
    listing = tuple(file for file in listing if file.path.rstrip("/"))  # less what stands for the folder itself
    if not listing:
        if may_be_file:
            return folder.source("")
        raise ArtifactUnreachable(f"{folder.name} holds no files; check spec.model.uri.")
    chosen = choose(folder.name, listing)
    check_paths(folder.name, chosen)
    return ModelFolder(folder, chosen) if chosen.is_folder else folder.source(chosen.files[0].path)


async def take_folder(
    model: ModelFolder, path: Path, limits: FetchLimits, threads: Executor
) -> tuple[tuple[StoredFile, ...], int]:
    """The files below `path`, the main one first, and the bytes that came for them.

    1. The main file, and the index of a Hugging Face folder, which names the files of its weights.
    2. The others; of safetensors the headers, and of those that hold weights alone nothing.
    Raises ArtifactUnreachable, ArtifactTooLarge, ModelFormatError (an index that is none).
    """
    chosen, slots = model.chosen, asyncio.Semaphore(AT_ONCE)

    async def one(file: Listed) -> tuple[StoredFile, int]:
        name = file.path.removeprefix(chosen.root)
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.path in chosen.unread:
            return await asyncio.to_thread(_hole, target, name, file.size_bytes), 0
        async with slots:
            source = model.folder.source(file.path)
            try:
                look = await source.look(None)
                if look is None:
                    raise ArtifactUnreachable(f"{source.name} gives no content; it is read again later.")
                taken = await take(source, look, target, limits, threads, whole=False)
            finally:
                await source.close()
            return replace(taken.file, name=name), source.received_bytes

    is_hub = chosen.files[0].path == hf_files.CONFIG
    first = [f for n, f in enumerate(chosen.files) if n == 0 or (is_hub and f.path == hf_files.INDEX)]
    done = [await one(file) for file in first]
    rest = [file for file in chosen.files if file not in first]
    if is_hub:
        wanted = {file.name for file in hf_files.weight_files(path, model.folder.name, names=_names(chosen))}
        if missing := sorted(wanted - _names(chosen)):
            raise ArtifactUnreachable(f"{model.folder.name}: {hf_files.INDEX} names {missing[0]}, which is not there.")
        rest = [file for file in rest if file.path in wanted | chosen.unread]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(file)) for file in rest]
    done += [task.result() for task in tasks]
    kept = sum(end - start for stored, _ in done for start, end in stored.pieces)
    if kept > limits.max_bytes:
        raise ArtifactTooLarge(f"{model.folder.name} has more than {limits.max_bytes} bytes, which is the limit.")
    return tuple(stored for stored, _ in done), sum(received for _, received in done)


def _names(chosen: Chosen) -> set[str]:
    return {file.path for file in chosen.files}


def _hole(path: Path, name: str, size: int) -> StoredFile:
    """A file of that size with nothing in it."""
    with SparseFile(path, name, 0) as file:
        file.finish(size)
    return StoredFile(name, os.path.getsize(path), (), digest_of_pieces(path, []))
