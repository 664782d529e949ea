"""The watch cache of InferenceJobs: parsed once for each change, never for a request.

List, then watch from the list's resourceVersion; bookmarks move it forward; "410 Gone" means a new list
(https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes). While the API server is
away the last known jobs stay in force.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator, Mapping
from typing import Any

import aiohttp

from dippm.errors import ManifestError
from dippm_operator.failures import in_words
from dippm_operator.kube.api import ApiClient, ApiFailure
from dippm_operator.resource import InferenceJob, parse_inference_job
from dippm_operator.resource.names import API_VERSION, KIND, PLURAL

logger = logging.getLogger(__name__)

LISTING = f"/apis/{API_VERSION}/{PLURAL}"
PAGE = 500
WATCH_SECONDS = 300
"""The server ends a watch after about this long, so that watches spread over API servers again."""
SILENCE_SECONDS = 150.0
"""Bookmarks come about every minute: this long without a byte is a dead connection."""
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 0.5, 30.0
MISS_SECONDS = 2.0
"""How long "there is no such job" is believed: a Deployment of a thousand pods with a misspelt label asks once."""
MOST_MISSES = 1024

Key = tuple[str, str]
Entry = InferenceJob | ManifestError


class _Gone(Exception):
    """The resourceVersion is too old to watch from."""


class JobCache:
    """All InferenceJobs of the cluster by (namespace, name)."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._jobs: dict[str, dict[str, Entry]] = {}
        """By namespace and name."""
        self._version = ""
        self._synced = asyncio.Event()
        self._heard = time.monotonic()
        self._misses: dict[Key, float] = {}
        self._asking: dict[Key, asyncio.Task[InferenceJob | None]] = {}

    @property
    def synced(self) -> bool:
        """Whether a full list was read; stays true, for the last known jobs are better than none."""
        return self._synced.is_set()

    @property
    def silence_seconds(self) -> float:
        """Since the API server was last heard from."""
        return time.monotonic() - self._heard

    async def wait_synced(self) -> None:
        await self._synced.wait()

    def __len__(self) -> int:
        return sum(map(len, self._jobs.values()))

    def jobs_of(self, namespace: str) -> Iterator[InferenceJob]:
        """The readable jobs of a namespace."""
        return (job for job in self._jobs.get(namespace, {}).values() if isinstance(job, InferenceJob))

    async def find(self, namespace: str, name: str) -> InferenceJob | None:
        """The job, from memory, else by one live GET; None where there is none.

        Raises ManifestError for a job that this version cannot read, ApiFailure, aiohttp.ClientError or TimeoutError
        where the live GET fails.
        """
        key = (namespace, name)
        entry = self._jobs.get(namespace, {}).get(name)
        if isinstance(entry, ManifestError):
            raise entry
        if entry is not None:
            return entry
        if time.monotonic() < self._misses.get(key, 0.0):
            return None
        task = self._asking.get(key)
        if task is None:
            task = asyncio.create_task(self._ask(key))
            self._asking[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        return await asyncio.shield(task)  # a request that gives up does not take the others' answer away

    def _answered(self, key: Key, task: asyncio.Task[InferenceJob | None]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()  # seen, should everybody who waited for it have given up

    async def _ask(self, key: Key) -> InferenceJob | None:
        """One live GET. Its result is not kept: the watch may already know of a later deletion."""
        namespace, name = key
        body = await self._api.get_or_none(f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}/{name}")
        if body is not None:
            return parse_inference_job(body, strict=False)
        if len(self._misses) >= MOST_MISSES:
            self._misses.clear()
        self._misses[key] = time.monotonic() + MISS_SECONDS
        return None

    async def run(self) -> None:
        """Keep the cache current until cancelled."""
        backoff = FIRST_BACKOFF_SECONDS
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._watch()
                backoff = FIRST_BACKOFF_SECONDS
                continue
            except _Gone:
                self._version = ""
                logger.info("the watch of InferenceJobs starts over: its resourceVersion is too old")
            except (ApiFailure, aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                logger.warning("watching InferenceJobs: %s; again in %.1f s", in_words(error), backoff)
            await asyncio.sleep(backoff * random.uniform(0.5, 1.0))
            backoff = min(backoff * 2, LONGEST_BACKOFF_SECONDS)

    async def _list(self) -> None:
        found: dict[str, dict[str, Entry]] = {}
        params = {"limit": str(PAGE)}
        while True:
            try:
                page = await self._api.get(LISTING, **params)
            except ApiFailure as failure:
                if failure.code == 410:
                    raise _Gone from failure
                raise
            for item in page.get("items") or ():
                # Items of a list do not repeat what the list says of them all.
                namespace, name = _key(item)
                found.setdefault(namespace, {})[name] = _parse({"apiVersion": API_VERSION, "kind": KIND} | item)
            token = page["metadata"].get("continue")
            if not token:
                break
            params["continue"] = token
        self._jobs = found
        self._version = page["metadata"]["resourceVersion"]
        self._heard = time.monotonic()
        self._synced.set()

    async def _watch(self) -> None:
        params = {
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(round(WATCH_SECONDS * random.uniform(0.8, 1.0))),
        }
        try:
            async for event in self._api.watch(LISTING, silence_seconds=SILENCE_SECONDS, **params):
                self._heard = time.monotonic()
                self._apply(event["type"], event["object"])
        except ApiFailure as failure:
            if failure.code == 410:
                raise _Gone from failure
            raise

    def _apply(self, kind: str, item: Mapping[str, Any]) -> None:
        if kind == "ERROR":
            code = int(item.get("code") or 500)
            if code == 410:
                raise _Gone
            raise ApiFailure(code, str(item.get("message", "")))
        if kind in ("ADDED", "MODIFIED"):
            namespace, name = _key(item)
            self._jobs.setdefault(namespace, {})[name] = _parse(item)
            self._misses.pop((namespace, name), None)
        elif kind == "DELETED":
            namespace, name = _key(item)
            self._jobs.get(namespace, {}).pop(name, None)
        self._version = item["metadata"]["resourceVersion"]


def _key(item: Mapping[str, Any]) -> Key:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _parse(item: Mapping[str, Any]) -> Entry:
    try:
        return parse_inference_job(item, strict=False)
    except ManifestError as error:
        return error
