"""`oci://` against a registry with tokens, and against Debian's docker-registry where it is installed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.unit.test_fetch_skim import LIMITS, write_onnx

from dippm.errors import ArtifactUnreachable, DigestMismatch
from dippm_operator.fetch import ArtifactCache, Credentials, Fetcher
from dippm_operator.fetch.oci import MANIFEST, TITLE, Reference, model_layer, parse_oci


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def manifest_of(**files: bytes) -> bytes:
    """As `oras push` writes it."""
    empty = {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest_of(b"{}"), "size": 2}
    layers = [
        {
            "mediaType": "application/octet-stream", "digest": digest_of(content), "size": len(content),
            "annotations": {TITLE: name.replace("__", ".")},
        }
        for name, content in files.items()
    ]  # fmt: skip
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": empty, "layers": layers}).encode()


class Registry:
    """Gives blobs and manifests to who has a token, and tokens to who has the password."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self.blob = folder / "blob"
        self.blob.write_bytes(content)
        self.manifest = manifest_of(model__onnx=content, README__md=b"readme")
        self.blob_requests = 0
        application = web.Application()
        application.router.add_get("/v2/team/net/manifests/{version}", self.get_manifest)
        application.router.add_get("/v2/team/net/blobs/{digest}", self.get_blob)
        application.router.add_get("/token", self.token)
        self.server = TestServer(application)

    def _refusal(self, request: web.Request) -> web.Response | None:
        if request.headers.get("Authorization") == "Bearer t0ken":
            return None
        realm = str(self.server.make_url("/token"))
        challenge = f'Bearer realm="{realm}",service="registry",scope="repository:team/net:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async def token(self, request: web.Request) -> web.Response:
        wanted = "Basic " + base64.b64encode(b"me:secret").decode()
        if request.headers.get("Authorization") != wanted or request.query["scope"] != "repository:team/net:pull":
            return web.Response(status=401)
        return web.json_response({"token": "t0ken"})

    async def get_manifest(self, request: web.Request) -> web.Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        if request.match_info["version"] not in ("v1", digest_of(b"other")):
            return web.Response(status=404)
        return web.Response(body=self.manifest, content_type=MANIFEST)

    async def get_blob(self, request: web.Request) -> web.StreamResponse:
        self.blob_requests += 1
        assert request.match_info["digest"] == digest_of(self.blob.read_bytes())
        return self._refusal(request) or web.FileResponse(self.blob)


@pytest.fixture
async def fetcher(tmp_path: Path) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000_000), LIMITS)
    yield fetcher
    await fetcher.close()


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    write_onnx(tmp_path / "model.onnx", width=512)
    return (tmp_path / "model.onnx").read_bytes()


async def test_layer_behind_a_token_costs_its_graph(fetcher: Fetcher, content: bytes, tmp_path: Path) -> None:
    registry = Registry(tmp_path, content)
    await registry.server.start_server()
    host = f"127.0.0.1:{registry.server.port}"
    auths = {"auths": {host: {"username": "me", "password": "secret"}}}
    credentials = Credentials({".dockerconfigjson": json.dumps(auths)}, ("127.0.0.1",), name="pull")
    uri = f"oci://{host}/team/net:v1"
    async with fetcher.open(uri, credentials=credentials) as artifact:
        assert artifact.size_bytes == len(content)
        assert artifact.fetched_bytes < 60_000
        assert artifact.content_digest == digest_of(content), "the registry vouches for it"
    asked = registry.blob_requests
    async with fetcher.open(uri, credentials=credentials) as artifact:
        assert artifact.fetched_bytes == 0
    assert registry.blob_requests == asked, "the manifest says that it is the same"
    async with fetcher.open(uri, credentials=credentials, digest=digest_of(content)) as artifact:
        assert artifact.fetched_bytes >= len(content), "what the registry vouches for is still verified when asked"
    for bad, error, words in (
        (f"oci://{host}/team/net:v2", ArtifactUnreachable, "answered 404"),
        (f"oci://{host}/team/net@{digest_of(b'other')}", DigestMismatch, "another manifest"),
    ):
        with pytest.raises(error, match=words):
            async with fetcher.open(bad, credentials=credentials):
                pass
    with pytest.raises(ArtifactUnreachable, match="no token"):
        async with fetcher.open(uri):
            pass
    await registry.server.close()


@pytest.fixture
async def docker_registry(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[str]:
    """Debian's package docker-registry, on loopback."""
    binary = shutil.which("docker-registry")
    if binary is None:
        pytest.skip("docker-registry is not installed")
    host = f"127.0.0.1:{unused_tcp_port}"
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    (tmp_path / "registry.json").write_text(json.dumps({"version": 0.1, "storage": storage, "http": {"addr": host}}))
    null = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        binary, "serve", str(tmp_path / "registry.json"), stdout=null, stderr=null
    )
    async with aiohttp.ClientSession() as session:
        for _ in range(100):
            try:
                async with session.get(f"http://{host}/v2/"):
                    break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.1)
        yield host
    process.terminate()
    await process.wait()


async def push(host: str, manifest: bytes, *blobs: bytes) -> None:
    base = f"http://{host}/v2/team/net"
    async with aiohttp.ClientSession() as session:
        for blob in (*blobs, b"{}"):
            async with session.post(f"{base}/blobs/uploads/") as begun:
                where = begun.headers["Location"]
            url = f"{where}{'&' if '?' in where else '?'}digest={digest_of(blob)}"
            async with session.put(url, data=io.BytesIO(blob)) as done:
                assert done.status == 201
        async with session.put(f"{base}/manifests/v1", data=manifest, headers={"Content-Type": MANIFEST}) as done:
            assert done.status == 201


async def test_debians_registry_gives_parts(docker_registry: str, fetcher: Fetcher, content: bytes) -> None:
    manifest = manifest_of(model__onnx=content)
    await push(docker_registry, manifest, content)
    for version in (":v1", f"@{digest_of(manifest)}"):
        async with fetcher.open(f"oci://{docker_registry}/team/net{version}") as artifact:
            assert artifact.size_bytes == len(content)
            assert artifact.fetched_bytes < 60_000
            assert artifact.content_digest == digest_of(content)


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"schemaVersion": 2, "manifests": []}, "not one artifact"),
        ({"schemaVersion": 2, "layers": []}, "no layer that is a model file"),
        (json.loads(manifest_of(a__onnx=b"a", b__pt2=b"b")), "several model files"),
    ],
)
def test_artifact_without_one_model_says_so(manifest: dict[str, Any], words: str) -> None:
    with pytest.raises(ArtifactUnreachable, match=words):
        model_layer("oci://r/m", manifest)


def test_references() -> None:
    assert parse_oci("oci://ghcr.io/a/b") == Reference("ghcr.io", "a/b", "latest")
    assert parse_oci("oci://r:5000/a:1").url == "https://r:5000/v2/a"
    for bad in ("oci://r", "oci://r/A", "oci://r/a@sha256:1", "oci://r/a/../b"):
        with pytest.raises(ArtifactUnreachable, match="oci://REGISTRY"):
            parse_oci(bad)
