"""Artifacts kept on disk, within a number of bytes: the least recently used go first, never one that is in use."""

from __future__ import annotations

import hashlib
import shutil
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit


@dataclass(slots=True)
class Entry:
    """One artifact on disk."""

    path: Path
    size_bytes: int
    etag: str
    last_modified: str
    content_digest: str
    pins: int = 0
    """How many are reading it now."""
    dropped: bool = False
    """No longer in the cache: its file goes with the last reader."""


class ArtifactCache:
    """Files by URI. Not for several processes: the folder is this one's own and is emptied at the start.

    An entry says nothing about who may see it: whoever uses it asks the store first, under his own credentials.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._remover = ThreadPoolExecutor(1, thread_name_prefix="artifact-removal")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def close(self) -> None:
        """Wait until what was let go is gone."""
        self._remover.shutdown()

    @property
    def held_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.size_bytes for entry in self._entries.values())

    def get(self, uri: str) -> Entry | None:
        """The entry of a URI, now the most recently used."""
        entry = self._entries.get(uri)
        if entry is not None:
            self._entries.move_to_end(uri)
        return entry

    def new_path(self, uri: str, tag: str) -> Path:
        """Where a download is written; the name keeps the URI's own, because its suffix may be a hint."""
        name = PurePosixPath(unquote(urlsplit(uri).path)).name or "model"
        folder = self._folder / hashlib.sha256(f"{uri}\0{tag}".encode()).hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name[-100:]

    def put(self, uri: str, entry: Entry) -> None:
        """Keep an artifact, and let others go until all are within the limit."""
        if (old := self._entries.pop(uri, None)) is not None:
            self._drop(old)
        self.make_room(entry.size_bytes)
        self._entries[uri] = entry

    def make_room(self, size_bytes: int) -> None:
        """Let the least recently used go until so many bytes more are within the limit."""
        for uri in list(self._entries):
            if self.held_bytes + size_bytes <= self._max_bytes:
                break
            if self._entries[uri].pins == 0:
                self._drop(self._entries.pop(uri))

    def release(self, entry: Entry) -> None:
        """One reader less."""
        entry.pins -= 1
        if entry.dropped:
            self._drop(entry)

    def remove(self, path: Path) -> None:
        """Delete a file that `new_path` named; in a thread, because to unlink gigabytes takes a while."""
        self._remover.submit(shutil.rmtree, path.parent, ignore_errors=True)

    def _drop(self, entry: Entry) -> None:
        entry.dropped = True
        if entry.pins == 0:
            self.remove(entry.path)
