"""What a fetch hands on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Fetched:
    """An artifact on this machine's disk."""

    uri: str
    path: Path
    size_bytes: int
    fetched_bytes: int
    """Bytes that came over the network this time: 0 when the copy on disk is still the current one."""
    etag: str
    """The store's ETag; empty if it gives none. For a file, its time and size."""
    content_digest: str
    """`sha256:...` of the content; empty where the file was not read."""
    content: str = ""
    """Another name for each content, of what was read of it; empty where that was not looked at (a local file)."""
