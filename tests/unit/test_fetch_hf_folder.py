"""Folders of Hugging Face on a hub: config, index and headers come, over one megabyte for 7 B parameters they never go.

Counted at the servers: what they send, listing and redirects included.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.hugging_face import LLAMA_7B, write_llama
from tests.unit.test_fetch_skim import LIMITS

from dippm import hf_files
from dippm.artifact import open_artifact
from dippm.errors import ArtifactUnreachable, DigestMismatch, ModelFormatError
from dippm_operator.fetch import ArtifactCache, Credentials, Fetcher
from dippm_operator.fetch.folder import Listed, choose

TOKEN = "hf_secret"


class Hub:
    """The hub's listing and files, each behind a token, files on a server of their own; all that is sent is counted."""

    def __init__(self, folder: Path, *, ranges: bool = True, page: int = 1000) -> None:
        self.folder = folder
        self.ranges = ranges
        self.page = page
        self.sent = 0
        self.asked: list[str] = []
        self.gated = False
        hub, store = web.Application(), web.Application()
        hub.router.add_get("/api/models/owner/net/tree/{revision}{under:.*}", self.tree)
        hub.router.add_get("/owner/net/resolve/{revision}/{path:.+}", self.resolve)
        store.router.add_get("/{path:.+}", self.content)
        for application in (hub, store):
            application.on_response_prepare.append(self.count)
        self.hub, self.store = TestServer(hub), TestServer(store)

    async def count(self, _: web.Request, response: web.StreamResponse) -> None:
        if isinstance(response, web.Response):
            self.sent += len(response.body or b"") if isinstance(response.body, bytes) else 0

    async def tree(self, request: web.Request) -> web.Response:
        files = sorted(p for p in self.folder.rglob("*") if p.is_file())
        at = int(request.query.get("cursor", "0"))
        rows = [
            {
                "type": "file", "path": str(p.relative_to(self.folder)), "size": p.stat().st_size,
                "oid": f"{p.stat().st_mtime_ns}",
            }
            for p in files[at : at + self.page]
        ]  # fmt: skip
        headers = {}
        if at + self.page < len(files):
            following = request.url.update_query(cursor=str(at + self.page))
            headers["Link"] = f'<{following}>; rel="next"'
        return web.json_response(rows, headers=headers)

    async def resolve(self, request: web.Request) -> web.Response:
        path = request.match_info["path"]
        self.asked.append(path)
        if self.gated and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.json_response({"error": "Access to model owner/net is restricted."}, status=403)
        return web.Response(status=302, headers={"Location": str(self.store.make_url("/" + path))})

    async def content(self, request: web.Request) -> web.StreamResponse:
        assert "Authorization" not in request.headers, "the token is for the hub"
        path = self.folder / request.match_info["path"]
        size, etag = path.stat().st_size, f'"{path.stat().st_mtime_ns}"'
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304)
        part = request.http_range if self.ranges else slice(0, None)
        start, stop = part.start or 0, min(part.stop or size, size)
        response = web.StreamResponse(status=206 if self.ranges else 200, headers={"ETag": etag})
        response.content_length = stop - start
        if self.ranges:
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        await response.prepare(request)
        with path.open("rb") as file:
            file.seek(start)
            while start < stop and (piece := file.read(min(16_384, stop - start))):
                await response.write(piece)
                start += len(piece)
                self.sent += len(piece)
        return response


@asynccontextmanager
async def running(hub: Hub, cache: Path) -> AsyncIterator[Fetcher]:
    await hub.hub.start_server()
    await hub.store.start_server()
    limits = replace(LIMITS, hub=str(hub.hub.make_url("")).rstrip("/"))
    fetcher = Fetcher(ArtifactCache(cache, 100_000_000), limits)
    try:
        yield fetcher
    finally:
        await fetcher.close()
        await hub.hub.close()
        await hub.store.close()


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    assert write_llama(folder, LLAMA_7B, shards=3) > 13_000_000_000
    (folder / "tokenizer.json").write_bytes(b"{}" * 1_000_000)
    (folder / "README.md").write_text("# Net")
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.00.pth").write_bytes(b"x" * 100_000)
    return folder


async def test_seven_billion_parameters_cost_under_a_megabyte_and_two_seconds(llama: Path, tmp_path: Path) -> None:
    hub = Hub(llama)
    async with running(hub, tmp_path / "cache") as fetcher:
        started = time.perf_counter()
        async with fetcher.open("hf://owner/net:main") as artifact:
            seconds = time.perf_counter() - started
            found = open_artifact(artifact.path)
            weights = hf_files.read_weight_files(artifact.path, "x")
        assert hub.sent < 1_000_000, hub.sent
        assert artifact.fetched_bytes < 200_000, artifact.fetched_bytes
        assert seconds < 2, seconds
        assert found.format == "huggingface"
        assert weights.elements == 6_738_415_616
        assert found.size_bytes > 13_000_000_000, "the files have their size, and holes"
        assert artifact.size_bytes > found.size_bytes, "the index counts too"
        assert sorted(set(hub.asked)) == sorted(
            p.name for p in llama.iterdir() if p.name.startswith(("config", "model"))
        ), "no tokenizer, no pickle"

        hub.sent, hub.asked = 0, []
        async with fetcher.open("hf://owner/net:main") as artifact:
            assert artifact.fetched_bytes == 0
        assert hub.asked == ["config.json"]
        assert hub.sent < 2_000, "the listing, and that nothing changed"


async def test_without_ranges_no_weights_come_either(llama: Path, tmp_path: Path) -> None:
    hub = Hub(llama, ranges=False)
    async with running(hub, tmp_path / "cache") as fetcher:
        async with fetcher.open("hf://owner/net") as artifact:
            assert hf_files.read_weight_files(artifact.path, "x").elements == 6_738_415_616
        assert hub.sent < 30_000_000, "what was on its way when the header was there; of 13 GB"


async def test_listing_of_several_pages_is_read_to_its_end(llama: Path, tmp_path: Path) -> None:
    async with (
        running(Hub(llama, page=2), tmp_path / "cache") as fetcher,
        fetcher.open("hf://owner/net") as artifact,
    ):
        assert len(hf_files.read_weight_files(artifact.path, "x").files) == 3


async def test_new_weights_are_noticed(llama: Path, tmp_path: Path) -> None:
    hub = Hub(llama)
    async with running(hub, tmp_path / "cache") as fetcher:
        async with fetcher.open("hf://owner/net") as artifact:
            before = artifact.etag
        write_llama(llama, LLAMA_7B | {"num_hidden_layers": 16}, shards=2)
        async with fetcher.open("hf://owner/net") as artifact:
            assert artifact.etag != before
            weights = hf_files.read_weight_files(artifact.path, "x")
        assert len(weights.files) == 2, "the third is still there, but the index does not name it"


async def test_a_listing_that_all_may_see_opens_nothing(llama: Path, tmp_path: Path) -> None:
    """Hugging Face lists gated repositories to everyone."""
    hub = Hub(llama)
    hub.gated = True
    credentials = Credentials({"HF_TOKEN": TOKEN}, ("127.0.0.1",), name="reader")
    async with running(hub, tmp_path / "cache") as fetcher:
        async with fetcher.open("hf://owner/net", credentials=credentials) as artifact:
            assert artifact.size_bytes > 13_000_000_000
        with pytest.raises(ArtifactUnreachable, match=r"config.json answered 403"):
            async with fetcher.open("hf://owner/net"):
                pass


async def test_digest_is_that_of_config_and_headers(llama: Path, tmp_path: Path) -> None:
    digest = hf_files.folder_digest(llama, hf_files.read_weight_files(llama, "x"))
    async with running(Hub(llama), tmp_path / "cache") as fetcher:
        async with fetcher.open("hf://owner/net", digest=digest) as artifact:
            assert artifact.content_digest == digest
        with pytest.raises(DigestMismatch, match="not sha256:0000"):
            async with fetcher.open("hf://owner/net", digest="sha256:" + "0" * 64):
                pass


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        ({"weight_map": {"a": "../../etc/passwd.safetensors"}}, ModelFormatError, "no safetensors file in the folder"),
        ({"weight_map": {"a": "gone.safetensors"}}, ArtifactUnreachable, "names gone.safetensors, which is not there"),
        ({"weight_map": []}, ModelFormatError, "no weight_map"),
    ],
)
async def test_index_is_not_believed(
    llama: Path, tmp_path: Path, index: dict[str, Any], error: type[Exception], words: str
) -> None:
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    async with running(Hub(llama), tmp_path / "cache") as fetcher:
        with pytest.raises(error, match=words):
            async with fetcher.open("hf://owner/net"):
                pass
        assert not list((tmp_path / "cache").iterdir())


async def test_damaged_copy_of_a_folder_heals(llama: Path, tmp_path: Path) -> None:
    async with running(Hub(llama), tmp_path / "cache") as fetcher:
        async with fetcher.open("hf://owner/net") as artifact:
            shard = artifact.path / "model-00002-of-00003.safetensors"
        with shard.open("r+b") as file:
            file.seek(100)
            file.write(b"!!!!")
        async with fetcher.open("hf://owner/net") as artifact:
            assert artifact.fetched_bytes > 0
            assert hf_files.read_weight_files(artifact.path, "x").elements == 6_738_415_616


def listed(*paths: str) -> list[Listed]:
    return [Listed(path, 10, "e") for path in paths]


@pytest.mark.parametrize(
    ("paths", "files"),
    [
        (("config.json", "onnx/model.onnx", "tokenizer.json"), ("onnx/model.onnx",)),
        (("config.json", "model.safetensors", "onnx/model.onnx"), ("config.json", "model.safetensors")),
        (("config.json", "pytorch_model.bin"), ("config.json", "pytorch_model.bin")),
        (("2/saved_model.pb", "10/saved_model.pb", "10/variables/variables.index"),
         ("10/saved_model.pb", "10/variables/variables.index")),
        (("config.json", "inference.json", "inference.pdiparams", "inference.yml"), ("inference.json",)),
        (("m.pdmodel", "m.pdiparams", "m.pdiparams.info"), ("m.pdmodel",)),
        (("net.pt2", "../evil.pt2", "/abs.pt2", "a//b.pt2"), ("net.pt2",)),
    ],
)  # fmt: skip
def test_the_model_in_a_folder_is_told_by_names(paths: tuple[str, ...], files: tuple[str, ...]) -> None:
    assert tuple(file.path for file in choose("s3://b/m/", listed(*paths)).files) == files


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (("a.onnx", "b.onnx"), "several models .*name one: s3://b/m/a.onnx"),
        (("model.safetensors",), "nor a config.json beside its weights"),
        (("readme.md",), "holds no model"),
        (("a/saved_model.pb", "b/saved_model.pb"), "several SavedModels"),
    ],
)
def test_folder_without_one_model_says_so(paths: tuple[str, ...], words: str) -> None:
    with pytest.raises(ArtifactUnreachable, match=words):
        choose("s3://b/m/", listed(*paths))
