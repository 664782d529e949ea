"""One door for all URIs: an artifact on disk while it is needed, the store asked each time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

import aiohttp

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.azure import AzureFolder, azure_signer, for_secret, is_azure, parse_azure
from dippm_operator.fetch.cache import ArtifactCache, Entry
from dippm_operator.fetch.credentials import Credentials, http_headers
from dippm_operator.fetch.gs import GsFolder, gs_token
from dippm_operator.fetch.hf import HubFolder, headers_for, parse_hf
from dippm_operator.fetch.http import HttpSource, client, shown
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.local import check_digest, fetch_file, folder_digest
from dippm_operator.fetch.oci import oci_folder
from dippm_operator.fetch.result import Fetched
from dippm_operator.fetch.s3 import S3Folder, s3_bucket
from dippm_operator.fetch.source import Source
from dippm_operator.fetch.take import take
from dippm_operator.fetch.take_folder import ModelFolder, find, take_folder
from dippm_operator.resource.names import not_fetched


class Fetcher:
    """Fetches artifacts. One per process; close it at the end."""

    def __init__(self, cache: ArtifactCache, limits: FetchLimits) -> None:
        self._cache = cache
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="dippm-take")
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def close(self) -> None:
        """Close connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
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
        try:
            scheme = urlsplit(uri).scheme
        except ValueError:
            raise ArtifactUnreachable(f"{shown(uri)} is not a sound URL; check spec.model.uri.") from None
        if scheme == "file":
            yield await asyncio.to_thread(fetch_file, uri, limits=self._limits, digest=digest)
            return
        if why := not_fetched(scheme):
            raise ArtifactUnreachable(f"{shown(uri)}: {why}.")
        if scheme == "pvc":
            raise ArtifactUnreachable(
                f"{shown(uri)} is a claim, which only pods of its cluster can read: let the operator there size the "
                "job (operator.claims.enabled of the chart), or give a copy of the model by file: or https:."
            )
        lock = self._locks.setdefault(uri, asyncio.Lock())
        async with lock:
            store = await self._store(uri, scheme, credentials)
            if isinstance(store, ModelFolder):
                entry, fetched_bytes = await self._current_folder(uri, store)
            else:
                try:
                    entry, fetched_bytes = await self._current(uri, store, whole=digest is not None)
                finally:
                    await store.close()
        try:
            told = entry.content_digest or entry.look.content_digest
            if digest is not None:
                told = await asyncio.to_thread(folder_digest, shown(uri), entry.path) if entry.is_folder else told
                check_digest(shown(uri), told, digest)
            yield Fetched(uri, entry.path, entry.size_bytes, fetched_bytes, entry.look.etag, told, entry.content)
        finally:
            await asyncio.to_thread(self._cache.release, entry)

    async def _store(self, uri: str, scheme: str, credentials: Credentials | None) -> Source | ModelFolder:
        if self._session is None:
            self._session = client(self._limits)
        session, limits, name = self._session, self._limits, shown(uri)
        if scheme == "s3":
            return await find(S3Folder(session, limits, s3_bucket(uri, credentials), name))
        if scheme == "gs":
            headers: dict[str, str] = {}
            if credentials is not None:
                endpoint, tokens = limits.cloud_storage, limits.google_tokens
                token = await gs_token(session, credentials, endpoint=endpoint, token_url=tokens)
                headers = {"Authorization": f"Bearer {token}"}
            return await find(GsFolder(session, limits, uri, headers))
        if scheme == "hf":
            token_headers = headers_for(credentials, urlsplit(limits.hub).hostname or "")
            return await find(HubFolder(session, limits, parse_hf(uri), token_headers, name))
        if is_azure(uri) and (credentials is None or "headers" not in credentials.data):
            place = for_secret(parse_azure(uri), credentials)
            sign = await azure_signer(session, place, credentials, limits)
            return await find(AzureFolder(session, limits, place, sign, name))
        if scheme == "oci":
            return await find(await oci_folder(session, uri, credentials, limits, self._threads))
        if credentials is not None:
            return HttpSource(session, uri, limits, headers=http_headers(uri, credentials))
        return HttpSource(session, uri, limits)

    async def _current_folder(self, uri: str, model: ModelFolder) -> tuple[Entry, int]:
        """As `_current`, of a model of several files."""
        entry = await asyncio.to_thread(self._cache.get, uri)
        try:
            look = await model.look(entry.look if entry is not None and entry.is_folder else None)
            if look is None and entry is not None:
                kept, entry = entry, None
                return kept, 0
        finally:
            if entry is not None:
                await asyncio.to_thread(self._cache.release, entry)
        if look is None:
            raise ArtifactUnreachable(f"{model.folder.name} says that it did not change, but it was never read.")
        with self._cache.filling(model.folder.name) as folder:
            files, received = await take_folder(model, folder / "model", self._limits, self._threads)
            kept = await asyncio.to_thread(self._cache.put, uri, folder, look, "", files, is_folder=True)
        return kept, received

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
        name = (PurePosixPath(unquote(urlsplit(uri).path)).name or "model")[-100:]
        with self._cache.filling(source.name) as folder:
            taken = await take(source, look, folder / "model" / name, self._limits, self._threads, whole=whole)
            digest = taken.content_digest
            kept = await asyncio.to_thread(self._cache.put, uri, folder, look, digest, (taken.file,), is_folder=False)
        return kept, source.received_bytes
