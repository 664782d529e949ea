"""What all stores have in common: a size, an ETag, bytes from here to there, and the whole as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Look:
    """What a store says about an artifact before it is read."""

    etag: str = ""
    """The store's ETag, or what it has in its place; empty if it gives none."""
    last_modified: str = ""
    size_bytes: int | None = None
    """None where only the end of the stream tells."""
    ranges: bool = False
    """Whether parts can be read."""
    content_digest: str = ""
    """`sha256:...` where the store vouches for it (an OCI registry does)."""
    main_etag: str = ""
    """Of a folder: the ETag of the file that says what it is. (`etag` is then of all its files.)"""


class Source(Protocol):
    """One artifact in a store. Every call raises ArtifactUnreachable where the store does not do as asked."""

    name: str
    """How messages call it: its URI without credentials."""

    @property
    def received_bytes(self) -> int:
        """Bytes of content that came over the network so far."""

    async def look(self, known: Look | None) -> Look | None:
        """What the store has now; None where it is what is known already."""

    def stream(self) -> AsyncIterator[bytes]:
        """All bytes in order."""

    async def close(self) -> None:
        """Let go of connections that are this source's own."""


@runtime_checkable
class Ranged(Source, Protocol):
    """An artifact that may be read by parts; whether it can be, its `Look` says (`ranges`)."""

    async def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` up to, not including, `end`."""
