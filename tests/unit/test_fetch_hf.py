"""`hf://` against a loopback server that speaks the hub's tree and resolve API, redirects to a store included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.unit.test_fetch_skim import LIMITS, write_onnx

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch import ArtifactCache, Credentials, Fetcher
from dippm_operator.fetch.hf import HubFile, parse_hf


class Hub:
    """Two servers, as the hub is: one answers, the other has the bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = ["README.md", "config.json", "onnx/model.onnx"]
        self.token_at_store: list[str | None] = []
        self.revisions: set[str] = set()
        hub, store = web.Application(), web.Application()
        hub.router.add_get("/api/models/{owner}/{model}/tree/{revision}", self.tree)
        hub.router.add_get("/{owner}/{model}/resolve/{revision}/{path:.+}", self.resolve)
        store.router.add_get("/{path:.+}", self.content)
        self.hub, self.store = TestServer(hub), TestServer(store)

    async def tree(self, request: web.Request) -> web.Response:
        self.revisions.add(request.match_info["revision"])
        if request.match_info["model"] == "private" and request.headers.get("Authorization") != "Bearer hf_x":
            return web.json_response({"error": "Invalid username or password."}, status=401)
        return web.json_response([{"type": "file", "path": path, "size": 1} for path in self.paths])

    async def resolve(self, request: web.Request) -> web.Response:
        self.revisions.add(request.match_info["revision"])
        target = str(self.store.make_url("/" + request.match_info["path"]))
        return web.Response(status=302, headers={"Location": target})

    async def content(self, request: web.Request) -> web.FileResponse:
        self.token_at_store.append(request.headers.get("Authorization"))
        return web.FileResponse(self.folder / "model.onnx")


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    write_onnx(tmp_path / "model.onnx", width=512)
    hub = Hub(tmp_path)
    await hub.hub.start_server()
    await hub.store.start_server()
    yield hub
    await hub.hub.close()
    await hub.store.close()


@pytest.fixture
async def fetcher(hub: Hub, tmp_path: Path) -> AsyncIterator[Fetcher]:
    limits = replace(LIMITS, hub=str(hub.hub.make_url("")).rstrip("/"))
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000_000), limits)
    yield fetcher
    await fetcher.close()


@pytest.mark.parametrize("uri", ["hf://owner/net", "hf://owner/net:v1.0", "hf://owner/net:v1.0/onnx/model.onnx"])
async def test_repository_and_file_are_found(hub: Hub, fetcher: Fetcher, uri: str) -> None:
    async with fetcher.open(uri) as artifact:
        assert artifact.size_bytes == (hub.folder / "model.onnx").stat().st_size
        assert artifact.fetched_bytes < 60_000
    assert hub.revisions == {"v1.0" if ":v1" in uri else "main"}


async def test_token_goes_to_the_hub_and_not_to_its_store(hub: Hub, fetcher: Fetcher) -> None:
    with pytest.raises(ArtifactUnreachable, match="answered 401"):
        async with fetcher.open("hf://owner/private"):
            pass
    credentials = Credentials({"HF_TOKEN": "hf_x"}, ("127.0.0.1",), name="reader")
    async with fetcher.open("hf://owner/private", credentials=credentials) as artifact:
        assert artifact.size_bytes > 20_000_000
    assert set(hub.token_at_store) == {None}
    elsewhere = Credentials({"HF_TOKEN": "hf_x"}, ("huggingface.co",), name="reader")
    with pytest.raises(ArtifactUnreachable, match=r"may not be sent to 127\.0\.0\.1"):
        async with fetcher.open("hf://owner/private", credentials=elsewhere):
            pass


async def test_which_file_is_said_where_there_are_several(hub: Hub, fetcher: Fetcher) -> None:
    hub.paths = ["a.onnx", "onnx/b.onnx"]
    with pytest.raises(ArtifactUnreachable, match=r"several models .*name one: hf://owner/net/a.onnx"):
        async with fetcher.open("hf://owner/net"):
            pass


def test_uris_are_spelled_as_kserve_does() -> None:
    assert parse_hf("hf://o/m:abc") == HubFile("o/m", "abc", "")
    for bad in ("hf://o", "hf://o/m/../x", "hf://o/m:"):
        with pytest.raises(ArtifactUnreachable, match="hf://OWNER/MODEL"):
            parse_hf(bad)
