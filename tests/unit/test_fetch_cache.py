"""The cache on disk: several processes at once, damage, room."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.cache import ArtifactCache, Entry, StoredFile
from dippm_operator.fetch.source import Look
from dippm_operator.fetch.sparse import SparseFile


def fill(cache: ArtifactCache, key: str, content: bytes, *, hole: int = 0) -> Entry:
    with cache.filling(key) as folder:
        with SparseFile(folder / "model" / "m.onnx", key, 1 << 40) as file:
            file.write(0, content)
            file.finish(len(content) + hole)
        pieces = ((0, len(content)),) if content else ()
        stored = StoredFile("m.onnx", len(content) + hole, pieces, hashlib.sha256(content).hexdigest())
        return cache.put(key, folder, Look(etag="e"), "", (stored,), is_folder=False)


def test_what_one_process_kept_another_finds(tmp_path: Path) -> None:
    ArtifactCache(tmp_path, 100_000).release(fill(ArtifactCache(tmp_path, 100_000), "k", b"graph", hole=10**12))
    cache = ArtifactCache(tmp_path, 100_000)
    entry = cache.get("k")
    assert entry is not None
    assert entry.look.etag == "e"
    assert entry.size_bytes == entry.path.stat().st_size == 10**12 + 5
    assert cache.held_bytes < 20_000, "holes take no room"
    cache.release(entry)
    assert cache.get("other") is None


@pytest.mark.parametrize("damage", ["content", "length", "record", "missing"])
def test_damaged_entry_heals(tmp_path: Path, damage: str) -> None:
    cache = ArtifactCache(tmp_path, 100_000)
    entry = fill(cache, "k", b"graph" * 10)
    cache.release(entry)
    if damage == "content":
        with entry.path.open("r+b") as file:
            file.seek(3)
            file.write(b"X")
    elif damage == "length":
        os.truncate(entry.path, 20)
    elif damage == "record":
        (entry.folder / "entry.json").write_text('{"key": "k", "look"')
    else:
        entry.path.unlink()
    assert cache.get("k") is None
    assert list(tmp_path.iterdir()) == [], "what is damaged takes no room either"
    cache.release(fill(cache, "k", b"new"))
    healed = cache.get("k")
    assert healed is not None
    assert healed.path.read_bytes() == b"new"


def test_entry_that_another_process_reads_is_not_deleted(tmp_path: Path) -> None:
    ours, theirs = ArtifactCache(tmp_path, 1000), ArtifactCache(tmp_path, 1000)
    reading = fill(theirs, "k", b"x" * 900)
    ours.release(fill(ours, "other", b"y" * 900))
    assert reading.path.read_bytes() == b"x" * 900
    theirs.release(reading)
    ours.make_room(1000)
    assert not reading.path.exists()


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 11_000)
    for key in ("a", "b", "c"):
        cache.release(fill(cache, key, key.encode() * 2500))
        time.sleep(0.01)
    used = cache.get("a")
    assert used is not None
    cache.release(used)
    cache.release(fill(cache, "d", b"d" * 4000))
    found = {key: cache.get(key) is not None for key in "abcd"}
    assert found == {"a": True, "b": False, "c": True, "d": True}, "no more go than must"


def _work(folder: str, number: int) -> None:
    cache = ArtifactCache(Path(folder), 20_000)
    for turn in range(40):
        key = f"k{(number + turn) % 5}"
        entry = cache.get(key)
        if entry is None:
            entry = fill(cache, key, key.encode() * 3000)
        assert entry.path.read_bytes() == key.encode() * 3000
        cache.release(entry)


def test_processes_at_once_never_see_half_of_an_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(str(tmp_path), number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert ArtifactCache(tmp_path, 20_000).held_bytes <= 20_000


def test_half_filled_folder_of_a_dead_process_goes_after_an_hour(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 10)
    left = tmp_path / "new-left"
    (left / "model").mkdir(parents=True)
    (left / "model" / "m").write_bytes(b"x" * 100)
    cache.make_room(0)
    assert left.exists()
    os.utime(left, (time.time() - 4000, time.time() - 4000))
    cache.make_room(0)
    assert not left.exists()


@pytest.mark.parametrize(
    ("option", "says"),
    [("remount,ro", "Read-only file system"), ("remount,nr_inodes={one_left}", "No space left on device")],
)
def test_a_disk_that_takes_nothing_is_one_sentence_and_loses_nothing(tmp_path: Path, option: str, says: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=20", "x", disk], capture_output=True).returncode != 0:
        pytest.skip("who runs this may not mount a small disk: run it as root")
    try:
        cache = ArtifactCache(disk, 100_000)
        cache.release(fill(cache, "k", b"graph"))
        used = os.statvfs(disk).f_files - os.statvfs(disk).f_ffree
        subprocess.run(["mount", "-o", option.format(one_left=used + 1), disk], check=True)
        with pytest.raises(ArtifactUnreachable, match=rf"^k2 cannot be kept on the operator's disk \({says}\)"):
            fill(cache, "k2", b"graph")
        assert [path.name for path in disk.iterdir() if path.name.startswith("new-")] == []
        subprocess.run(["mount", "-o", "remount,rw,nr_inodes=20", disk], check=True)
        kept = cache.get("k")
        assert kept is not None
        assert kept.path.read_bytes() == b"graph"
        cache.release(kept)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ArtifactUnreachable, match=r"file/artifacts cannot hold fetched models \(Not a directory\)"):
        ArtifactCache(tmp_path / "file" / "artifacts", 10)
