"""Artifacts kept on disk, within a number of bytes, by several processes: the least recently used go first.

A folder per artifact. It is filled under a name that nobody looks at and then renamed, so that a process which dies
leaves no half of one; who reads it holds a shared lock (flock) on it, who deletes it an exclusive one.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.source import Look
from dippm_operator.fetch.sparse import digest_of_pieces

_RECORD = "entry.json"
_LOCK = "lock"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of an artifact: which of its bytes are there."""

    name: str
    size_bytes: int
    pieces: tuple[tuple[int, int], ...]
    checksum: str
    """sha256 (hex) over the pieces: what the disk did to them is noticed."""


@dataclass(slots=True)
class Entry:
    """One artifact on disk, locked for reading until it is released."""

    folder: Path
    look: Look
    """What the store said when it was read."""
    content_digest: str
    """`sha256:...` of the whole, where all of it was read."""
    files: tuple[StoredFile, ...]
    is_folder: bool
    lock: int = field(default=-1, repr=False)

    @property
    def path(self) -> Path:
        """The model file, or the folder of a model of several files."""
        return self.folder / "model" if self.is_folder else self.folder / "model" / self.files[0].name

    @property
    def size_bytes(self) -> int:
        """Bytes of all files in the store."""
        return sum(file.size_bytes for file in self.files)

    @property
    def content(self) -> str:
        """A name for what was read of it: the same bytes at the same places, the same name, whatever the URI."""
        rows = sorted([f.name if self.is_folder else "", f.size_bytes, f.pieces, f.checksum] for f in self.files)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


class ArtifactCache:
    """Artifacts by key (a URI).

    An entry says nothing about who may see it: whoever uses it asks the store first, under his own credentials.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Raises ArtifactUnreachable where the folder cannot be."""
        self._folder = folder
        self._max_bytes = max_bytes
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.make_room(0)
        except OSError as error:
            raise ArtifactUnreachable(
                f"{folder} cannot hold fetched models ({error.strerror}): give a folder that can be written "
                "(--cache of the operator)."
            ) from error

    @property
    def held_bytes(self) -> int:
        """Bytes that all entries take on disk."""
        return sum(_bytes_under(path) for path in self._folder.iterdir())

    def get(self, key: str) -> Entry | None:
        """The newest entry of a key, locked; one that is damaged is deleted. Blocking: reads what is there."""
        for path in sorted(self._folder.glob(f"{_name_of(key)}-*"), key=_age, reverse=True):
            entry = _open(path, key)
            if entry is not None:
                os.utime(path)
                return entry
            _delete(path)
        return None

    @contextmanager
    def filling(self, name: str) -> Iterator[Path]:
        """A folder to fill for the artifact `name`, the files in its subfolder `model`; `put` keeps it.

        It is gone again where that fails. Raises ArtifactUnreachable for OSErrors.
        """
        folder: Path | None = None
        try:
            folder = Path(tempfile.mkdtemp(prefix="new-", dir=self._folder))
            (folder / "model").mkdir()
            yield folder
        except BaseException as error:  # a cancelled task too leaves nothing half-read
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            # Of several files that are read at once the first that failed says why.
            first = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            if isinstance(first, OSError):
                raise ArtifactUnreachable(
                    f"{name} cannot be kept on the operator's disk ({first.strerror or type(first).__name__}); is it "
                    "full or read-only, or the path of a file too long?"
                ) from first
            if first is not error:
                raise first from None
            raise

    def put(
        self, key: str, path: Path, look: Look, content_digest: str, files: tuple[StoredFile, ...], *, is_folder: bool
    ) -> Entry:
        """Keep what was `filling`, and let others go until all are within the limit."""
        record = {"key": key, "look": asdict(look), "content_digest": content_digest, "is_folder": is_folder}
        (path / _RECORD).write_text(json.dumps(record | {"files": [asdict(file) for file in files]}))
        lock = _locked(path, fcntl.LOCK_SH)
        final = self._folder / f"{_name_of(key)}-{path.name.removeprefix('new-')}"
        path.rename(final)
        for older in self._folder.glob(f"{_name_of(key)}-*"):
            if older != final:
                _delete(older)
        self.make_room(0)
        return Entry(final, look, content_digest, files, is_folder, -1 if lock is None else lock)

    def release(self, entry: Entry) -> None:
        """One reader less. What a newer one has taken the place of goes with its last reader."""
        os.close(entry.lock)
        name = entry.folder.name.rpartition("-")[0]
        siblings = sorted(self._folder.glob(f"{name}-*"), key=_age)
        if siblings and siblings[-1] != entry.folder:
            _delete(entry.folder)
        self.make_room(0)

    def make_room(self, size_bytes: int) -> None:
        """Let the least recently used go until so many bytes more are within the limit. None that is in use goes."""
        held = self.held_bytes
        for path in sorted(self._folder.iterdir(), key=_age):
            if held + size_bytes <= self._max_bytes:
                break
            freed = _bytes_under(path)
            if _delete(path):
                held -= freed


def _name_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0  # another process has just deleted it


def _bytes_under(folder: Path) -> int:
    total = 0
    for inside, _, names in os.walk(folder):  # what another process deletes meanwhile is left out
        for name in names:
            try:
                stat = os.lstat(os.path.join(inside, name))
            except OSError:
                continue  # deleted meanwhile
            total += min(stat.st_blocks * 512, stat.st_size)
    return total


def _open(path: Path, key: str) -> Entry | None:
    lock = _locked(path, fcntl.LOCK_SH)
    if lock is None:
        return None
    try:
        record = json.loads((path / _RECORD).read_text())
        files = tuple(
            StoredFile(f["name"], f["size_bytes"], tuple((s, e) for s, e in f["pieces"]), f["checksum"])
            for f in record["files"]
        )
        sound = record["key"] == key and all(_is_sound(path / "model" / file.name, file) for file in files)
        entry = Entry(path, Look(**record["look"]), record["content_digest"], files, record["is_folder"], lock)
    except (OSError, ValueError, KeyError, TypeError):
        sound = False  # half written or half deleted
    if sound:
        return entry
    os.close(lock)
    return None


def _is_sound(path: Path, file: StoredFile) -> bool:
    return path.stat().st_size == file.size_bytes and digest_of_pieces(path, list(file.pieces)) == file.checksum


def _locked(path: Path, how: int) -> int | None:
    """A lock on an artifact's folder; None where it cannot be had."""
    try:
        lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        return None  # deleted meanwhile
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _delete(path: Path) -> bool:
    """Delete an artifact unless somebody reads it. One that is being filled is left alone for an hour."""
    if path.name.startswith("new-") and _is_fresh(path):
        return False
    lock = _locked(path, fcntl.LOCK_EX)
    if lock is None:
        return False
    gone = path.with_name(f"gone-{path.name}-{os.getpid()}")
    try:
        path.rename(gone)  # at once, so that nobody opens a half of it
    except OSError:
        gone = path  # another process did
    shutil.rmtree(gone, ignore_errors=True)
    os.close(lock)
    return True


def _is_fresh(path: Path) -> bool:
    return time.time_ns() - _age(path) < 3600 * 10**9
