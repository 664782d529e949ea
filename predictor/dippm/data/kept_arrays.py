"""Arrays by number in one file of SQLite, compressed: what took long to make is made once, by whichever process."""

from __future__ import annotations

import io
import os
import sqlite3
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_WAIT_SECONDS = 30.0
"""For another process that writes."""


class KeptArrays:
    """Named arrays by number, in memory once they were seen. A disk that refuses is no error.

    Processes may share the file; a fork and a pickle of this open it anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at_hand: dict[int, Mapping[str, np.ndarray]] = {}
        self._opened: tuple[int, sqlite3.Connection] | None = None

    def __reduce__(self) -> tuple[type[KeptArrays], tuple[Path]]:
        return KeptArrays, (self._path,)

    def get(self, number: int) -> Mapping[str, np.ndarray] | None:
        """The arrays, None where there are none or they are damaged."""
        if number not in self._at_hand:
            try:
                found = self._connection().execute("SELECT body FROM arrays WHERE number = ?", (number,)).fetchone()
                if found is None:
                    return None
                self._at_hand[number] = _unpacked(found[0])
            except (sqlite3.Error, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
                return None
        return self._at_hand[number]

    def put(self, number: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps the arrays, on disk too if it takes them."""
        self._at_hand[number] = arrays
        try:
            with self._connection() as connection:
                connection.execute("INSERT OR REPLACE INTO arrays VALUES (?, ?)", (number, _packed(arrays)))
        except (sqlite3.Error, OSError):
            return

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None or self._opened[0] != os.getpid():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self._path, timeout=_WAIT_SECONDS, check_same_thread=False)
            connection.execute("PRAGMA synchronous = OFF")  # what a crash of the machine takes is made again
            connection.execute("CREATE TABLE IF NOT EXISTS arrays (number INTEGER PRIMARY KEY, body BLOB)")
            self._opened = (os.getpid(), connection)
        return self._opened[1]


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    body = io.BytesIO()
    np.savez(body, **arrays)  # type: ignore[arg-type]  # its stub takes a flag among the names
    return zlib.compress(body.getvalue(), 1)


def _unpacked(body: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(zlib.decompress(body)), allow_pickle=False) as arrays:
        return dict(arrays)
