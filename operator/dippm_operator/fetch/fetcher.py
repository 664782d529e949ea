"""One door for all URIs: an artifact on disk while it is needed, the store asked each time."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

import aiohttp

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.cache import ArtifactCache, Entry
from dippm_operator.fetch.credentials import Credentials, http_headers
from dippm_operator.fetch.gs import gs_token, gs_url
from dippm_operator.fetch.hf import headers_for, list_files, only_model, parse_hf, url_of
from dippm_operator.fetch.http import HttpSource, client, shown
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.local import check_digest, fetch_file
from dippm_operator.fetch.oci import oci_source
from dippm_operator.fetch.result import Fetched
from dippm_operator.fetch.s3 import s3_request
from dippm_operator.fetch.source import Source
from dippm_operator.fetch.take import take
from dippm_operator.resource.names import not_fetched


class Fetcher:
    """Fetches artifacts. One per process; close it at the end."""

    def __init__(self, cache: ArtifactCache, limits: FetchLimits) -> None:
        self._cache = cache
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def open(
        self, uri: str, *, digest: str | None = None, credentials: Credentials | None = None
    ) -> AsyncIterator[Fetched]:
        """What says what the model is of a URI's artifact, on disk until the block ends.

        The file has the artifact's size; where weights lie in it there are holes. With a digest all of it is read,
        and verified. Whatever is kept from earlier is only given after the store was asked with these credentials.

        Raises ArtifactUnreachable, ArtifactTooLarge, DigestMismatch.
        """
        scheme = urlsplit(uri).scheme
        if scheme == "file":
            yield await asyncio.to_thread(fetch_file, uri, limits=self._limits, digest=digest)
            return
        if why := not_fetched(scheme):
            raise ArtifactUnreachable(f"{shown(uri)}: {why}.")
        lock = self._locks.setdefault(uri, asyncio.Lock())
        async with lock:
            source = await self._source(uri, scheme, credentials)
            try:
                entry, fetched_bytes = await self._current(uri, source, whole=digest is not None)
            finally:
                await source.close()
        try:
            if digest is not None:
                check_digest(shown(uri), entry.content_digest, digest)
            told = entry.content_digest or entry.look.content_digest
            yield Fetched(uri, entry.path, entry.size_bytes, fetched_bytes, entry.look.etag, told)
        finally:
            await asyncio.to_thread(self._cache.release, entry)

    async def _source(self, uri: str, scheme: str, credentials: Credentials | None) -> Source:
        if self._session is None:
            self._session = client(self._limits)
        name, no_headers = shown(uri), dict[str, str]()
        if scheme == "s3":
            url, sign = s3_request(uri, credentials)
            return HttpSource(self._session, url, self._limits, name=name, sign=sign, exact=True)
        if scheme == "gs":
            url, headers = gs_url(uri, self._limits.cloud_storage), no_headers
            if credentials is not None:
                endpoint, tokens = self._limits.cloud_storage, self._limits.google_tokens
                token = await gs_token(self._session, credentials, endpoint=endpoint, token_url=tokens)
                headers = {"Authorization": f"Bearer {token}"}
            return HttpSource(self._session, url, self._limits, name=name, headers=headers, exact=True)
        if scheme == "hf":
            token_headers = headers_for(credentials, urlsplit(self._limits.hub).hostname or "")
            file = parse_hf(uri)
            if not file.path:
                paths = await list_files(self._session, self._limits.hub, file, token_headers, self._limits)
                file = replace(file, path=only_model(uri, paths))
            url = url_of(self._limits.hub, file)
            return HttpSource(self._session, url, self._limits, name=name, headers=token_headers)
        if scheme == "oci":
            return await oci_source(self._session, uri, credentials, self._limits)
        if credentials is not None:
            return HttpSource(self._session, uri, self._limits, headers=http_headers(uri, credentials))
        return HttpSource(self._session, uri, self._limits)

    async def _current(self, uri: str, source: Source, *, whole: bool) -> tuple[Entry, int]:
        """The entry with the store's present content, and the bytes that had to be fetched for it."""
        entry = await asyncio.to_thread(self._cache.get, uri)
        try:
            wanting = entry is not None and whole and not entry.content_digest
            look = await source.look(None if entry is None or wanting else entry.look)
            if look is None and entry is not None:
                kept, entry = entry, None
                return kept, source.received_bytes
        finally:
            if entry is not None:
                await asyncio.to_thread(self._cache.release, entry)
        if look is None:
            raise ArtifactUnreachable(f"{source.name} says that it did not change, but it was never read.")
        folder = self._cache.begin()
        name = (PurePosixPath(unquote(urlsplit(uri).path)).name or "model")[-100:]
        try:
            taken = await take(source, look, folder / "model" / name, self._limits, whole=whole)
            digest = taken.content_digest
            kept = await asyncio.to_thread(self._cache.put, uri, folder, look, digest, (taken.file,), is_folder=False)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # nothing half-read stays, whatever stopped it
            raise
        return kept, source.received_bytes
