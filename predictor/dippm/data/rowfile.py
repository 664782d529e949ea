"""Measured rows on their way to the data set: lines of JSON, compressed one by one."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class RowFile:
    """Rows as lines of JSON, each a gzip member of its own: what was written stays readable whatever happens next."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row."""
        with self.path.open("ab") as out:
            out.write(gzip.compress((json.dumps(row, separators=(",", ":")) + "\n").encode(), 6))

    def stream(self) -> Iterator[dict[str, Any]]:
        """One row after the other; a last member that was cut off is left out."""
        if not self.path.exists():
            return
        with gzip.open(self.path, "rt") as lines:
            try:
                for line in lines:
                    yield json.loads(line)
            except EOFError:
                print(f"{self.path}: the last row was cut off and is left out", file=sys.stderr)

    def rows(self) -> list[dict[str, Any]]:
        """All rows at once."""
        return list(self.stream())
