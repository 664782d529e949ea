"""The watch cache against a stand-in for the API server that lists, watches, compacts and goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from dippm.errors import ManifestError
from dippm_operator.kube.api import ApiClient
from dippm_operator.kube.connection import Connection
from dippm_operator.webhook import cache as cache_module
from dippm_operator.webhook.cache import JobCache

LISTING = "/apis/dippm.dev/v1alpha1/inferencejobs"


def job(name: str, version: int, profile: str | None = None, **spec: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "metadata": {"name": name, "namespace": "vision", "resourceVersion": str(version)},
        "spec": {
            "model": {"uri": "https://models.example/m.onnx"},
            "batchSize": 1,
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        }
        | spec,
    }
    if profile:
        body["status"] = {
            "recommendation": {"profile": profile, "resource": f"nvidia.com/mig-{profile}", "reason": "Fits"}
        }
    return body


class ApiServer:
    """Lists in pages of two, streams the events that it is given, remembers what it was asked."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.version = 1
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self.asked: list[str] = []
        self.compacted_at = 0
        self.down = False
        self.hold = asyncio.Event()
        self.hold.set()

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get(LISTING, self.list_or_watch)
        application.router.add_get("/apis/dippm.dev/v1alpha1/namespaces/vision/inferencejobs/{name}", self.get)
        return application

    async def list_or_watch(self, request: web.Request) -> web.StreamResponse:
        if self.down:
            return web.json_response({"message": "etcd is away"}, status=500)
        if "watch" in request.query:
            return await self.watch(request)
        start = int(request.query.get("continue", "0"))
        self.asked.append(f"list {start}")
        names = sorted(self.jobs)
        metadata = {"resourceVersion": str(self.version)}
        if start + 2 < len(names):
            metadata["continue"] = str(start + 2)
        return web.json_response({"metadata": metadata, "items": [self.jobs[n] for n in names[start : start + 2]]})

    async def watch(self, request: web.Request) -> web.StreamResponse:
        version = int(request.query["resourceVersion"])
        self.asked.append(f"watch {version}")
        if version < self.compacted_at:
            return web.json_response({"message": "too old resource version", "code": 410}, status=410)
        response = web.StreamResponse()
        await response.prepare(request)
        while (event := await self.events.get()) is not None:
            await response.write(json.dumps(event).encode() + b"\n")
        return response

    async def get(self, request: web.Request) -> web.Response:
        self.asked.append(f"get {request.match_info['name']}")
        await self.hold.wait()
        found = self.jobs.get(request.match_info["name"])
        if found is None:
            return web.json_response({"message": "not found"}, status=404)
        return web.json_response({"apiVersion": "dippm.dev/v1alpha1", "kind": "InferenceJob"} | found)

    def tell(self, kind: str, body: dict[str, Any]) -> None:
        self.events.put_nowait(
            {"type": kind, "object": {"apiVersion": "dippm.dev/v1alpha1", "kind": "InferenceJob"} | body}
        )


@pytest.fixture
def server() -> ApiServer:
    return ApiServer()


@pytest.fixture
async def cache(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[JobCache]:
    monkeypatch.setattr(cache_module, "FIRST_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(cache_module, "LONGEST_BACKOFF_SECONDS", 0.05)
    async with TestServer(server.application()) as running:
        connection = Connection(Configuration(host=str(running.make_url("")).rstrip("/")))
        async with ApiClient(connection) as api:
            yield JobCache(api)
            server.events.put_nowait(None)


@pytest.fixture
async def running(cache: JobCache) -> AsyncIterator[JobCache]:
    task = asyncio.create_task(cache.run())
    yield cache
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def until(condition: Any, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def profile_of(cache: JobCache, name: str) -> str | None:
    entry = cache._jobs.get("vision", {}).get(name)
    return entry.status.recommendation.profile if entry is not None and entry.status.recommendation else None  # type: ignore[union-attr]


async def test_every_page_is_listed_before_it_says_that_it_is_synced(server: ApiServer, running: JobCache) -> None:
    server.jobs = {f"job-{i}": job(f"job-{i}", 1, "1g.5gb") for i in range(5)}
    assert not running.synced
    await running.wait_synced()
    assert len(running) == 5
    assert server.asked[:3] == ["list 0", "list 2", "list 4"]
    assert [j.metadata.name for j in running.jobs_of("vision")] == [f"job-{i}" for i in range(5)]
    assert list(running.jobs_of("elsewhere")) == []


async def test_events_change_what_is_known_and_a_request_asks_nobody(server: ApiServer, running: JobCache) -> None:
    await running.wait_synced()
    server.tell("ADDED", job("web", 2))
    await until(lambda: len(running) == 1)
    server.tell("MODIFIED", job("web", 3, "2g.10gb"))
    await until(lambda: profile_of(running, "web") == "2g.10gb")
    found = await running.find("vision", "web")
    assert found is await running.find("vision", "web")  # parsed once, not for each request
    assert not [asked for asked in server.asked if asked.startswith("get")]
    server.tell("DELETED", job("web", 4))
    await until(lambda: len(running) == 0)


async def test_an_object_as_large_as_etcd_takes_it_is_read(server: ApiServer, running: JobCache) -> None:
    """Twice the 1.5 MiB that one request to etcd may have by default."""
    await running.wait_synced()
    big = job("big", 2)
    big["metadata"]["annotations"] = {"note": "x" * 3_000_000}
    server.tell("ADDED", big)
    await until(lambda: len(running) == 1)


async def test_a_watch_that_ends_goes_on_from_the_last_bookmark(server: ApiServer, running: JobCache) -> None:
    await running.wait_synced()
    server.tell("BOOKMARK", {"metadata": {"resourceVersion": "17"}})
    server.events.put_nowait(None)
    await until(lambda: "watch 17" in server.asked)
    assert server.asked.count("list 0") == 1


@pytest.mark.parametrize("in_stream", [True, False], ids=["event", "status"])
async def test_gone_means_a_new_list(server: ApiServer, running: JobCache, in_stream: bool) -> None:
    server.jobs = {"old": job("old", 1)}
    await running.wait_synced()
    server.jobs, server.version = {"new": job("new", 9)}, 9
    if in_stream:
        server.events.put_nowait({"type": "ERROR", "object": {"kind": "Status", "code": 410, "message": "too old"}})
    else:
        server.compacted_at = 5
        server.events.put_nowait(None)
    await until(lambda: "watch 9" in server.asked)
    assert [j.metadata.name for j in running.jobs_of("vision")] == ["new"]


async def test_known_jobs_stay_in_force_while_the_api_server_is_away(server: ApiServer, running: JobCache) -> None:
    server.jobs = {"web": job("web", 1, "1g.5gb")}
    await running.wait_synced()
    server.down = True
    server.events.put_nowait(None)
    await asyncio.sleep(0.1)
    assert running.synced
    assert (await running.find("vision", "web")) is not None
    server.down = False
    server.tell("MODIFIED", job("web", 2, "2g.10gb"))
    await until(lambda: profile_of(running, "web") == "2g.10gb")


async def test_a_miss_asks_once_for_all_who_wait(server: ApiServer, cache: JobCache) -> None:
    server.jobs = {"fresh": job("fresh", 1, "1g.5gb")}
    server.hold.clear()
    waiting = [asyncio.create_task(cache.find("vision", "fresh")) for _ in range(20)]
    await until(lambda: server.asked == ["get fresh"])
    waiting[0].cancel()  # one who gives up does not take the answer away from the rest
    server.hold.set()
    found = await asyncio.gather(*waiting[1:])
    assert {j.metadata.name for j in found if j} == {"fresh"}
    assert server.asked == ["get fresh"]


async def test_no_such_job_is_believed_for_a_moment(
    server: ApiServer, cache: JobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "MISS_SECONDS", 60.0)
    for _ in range(10):
        assert await cache.find("vision", "typo") is None
    assert server.asked == ["get typo"]
    monkeypatch.setattr(cache_module, "MISS_SECONDS", 0.0)
    assert await cache.find("vision", "other") is None
    server.jobs = {"typo": job("typo", 1), "other": job("other", 1)}
    assert await cache.find("vision", "typo") is None
    assert await cache.find("vision", "other") is not None


async def test_a_job_that_cannot_be_read_says_why(server: ApiServer, running: JobCache) -> None:
    server.jobs = {"odd": job("odd", 1, batchSize="many"), "good": job("good", 1)}
    await running.wait_synced()
    assert await running.find("vision", "good") is not None
    with pytest.raises(ManifestError, match=r"InferenceJob odd: spec\.batchSize"):
        await running.find("vision", "odd")
    server.tell("MODIFIED", job("odd", 2))
    await until(lambda: sum(1 for _ in running.jobs_of("vision")) == 2)
