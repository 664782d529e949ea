"""One door for all URIs: an artifact on disk while it is needed, the store asked each time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import aiohttp

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.cache import ArtifactCache, Entry
from dippm_operator.fetch.http import client, download, shown
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.local import check_digest, fetch_file
from dippm_operator.fetch.result import Fetched

LATER = frozenset({"s3", "gs", "hf", "oci", "pvc"})
"""Schemes of the resource that this version has no client for yet."""


class Fetcher:
    """Fetches artifacts. One per process; close it at the end."""

    def __init__(self, cache: ArtifactCache, limits: FetchLimits) -> None:
        self._cache = cache
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._serial = itertools.count()

    async def close(self) -> None:
        """Close connections, and wait until what was let go is gone from the disk."""
        if self._session is not None:
            await self._session.close()
        await asyncio.to_thread(self._cache.close)

    @asynccontextmanager
    async def open(self, uri: str, *, digest: str | None = None) -> AsyncIterator[Fetched]:
        """The artifact of a URI, verified, on disk until the block ends.

        Raises ArtifactUnreachable, ArtifactTooLarge, DigestMismatch.
        """
        scheme = urlsplit(uri).scheme
        if scheme == "file":
            yield await asyncio.to_thread(fetch_file, uri, limits=self._limits, digest=digest)
            return
        if scheme in LATER:
            raise ArtifactUnreachable(
                f"{shown(uri)}: {scheme}:// comes in a later version; this one fetches https://, http:// and file:."
            )
        if scheme not in ("http", "https"):
            raise ArtifactUnreachable(f"{uri}: {scheme or 'no scheme'} is not fetched; use https://, http:// or file:.")
        lock = self._locks.setdefault(uri, asyncio.Lock())
        async with lock:
            entry, fetched_bytes = await self._pinned(uri)
        try:
            if digest is not None:
                check_digest(shown(uri), entry.content_digest, digest)
            yield Fetched(uri, entry.path, entry.size_bytes, fetched_bytes, entry.etag, entry.content_digest)
        finally:
            self._cache.release(entry)

    async def _pinned(self, uri: str) -> tuple[Entry, int]:
        """The entry with the store's present content, pinned, and the bytes that had to be fetched for it."""
        if self._session is None:
            self._session = client(self._limits)
        known = self._cache.get(uri)
        conditions: dict[str, str] = {}
        if known is not None:
            known.pins += 1  # others may need its room while the store thinks about it
            if known.etag:
                conditions["If-None-Match"] = known.etag
            elif known.last_modified:
                conditions["If-Modified-Since"] = known.last_modified
        path = self._cache.new_path(uri, str(next(self._serial)))
        kept: Path | None = None
        try:
            answer = await download(
                self._session, uri, path, limits=self._limits, known=conditions, make_room=self._cache.make_room
            )
            if answer.not_modified and known is not None:
                known.pins += 1
                return known, 0
            entry = Entry(path, answer.size_bytes, answer.etag, answer.last_modified, answer.content_digest, pins=1)
            self._cache.put(uri, entry)
            kept = path
            return entry, answer.size_bytes
        finally:
            if known is not None:
                self._cache.release(known)
            if kept is None:
                self._cache.remove(path)  # nothing half-read stays, whatever stopped it
