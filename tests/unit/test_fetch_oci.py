"""`oci://` against a registry with tokens, and against Debian's docker-registry where it is installed."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.hugging_face import LLAMA_7B, write_llama
from tests.unit.test_fetch_skim import LIMITS, write_onnx

from dippm import hf_files
from dippm.artifact import open_artifact
from dippm.errors import ArtifactUnreachable, DigestMismatch, DippmError
from dippm.frontend import load_graph
from dippm_operator.fetch import ArtifactCache, Credentials, Fetcher
from dippm_operator.fetch.oci import FILE_PATH, MANIFEST, TITLE, Manifest, Reference, layers_of, parse_oci
from dippm_operator.fetch.source import Look
from dippm_operator.fetch.tar import Gunzipped


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
        ({"schemaVersion": 2, "layers": [{"digest": "md5:1", "mediaType": "x"}]}, "names a layer by md5:1"),
        ({"schemaVersion": 2, "layers": ["x"]}, "names a layer by nothing"),
        ({"schemaVersion": 2, "layers": [{"annotations": 7, "digest": {"a": 1}, "size": []}]}, "by nothing"),
        ({"schemaVersion": 2, "layers": {"0": {}}}, "not one artifact"),
        ({"schemaVersion": True, "layers": []}, "not one artifact"),
        ({"schemaVersion": 2, "manifests": [{"digest": 1, "platform": "linux/amd64"}, None]}, "not one artifact"),
        ([1, 2], "does not answer with a manifest"),
    ],
)
def test_what_is_no_artifact_says_so(manifest: Any, words: str) -> None:
    with pytest.raises(ArtifactUnreachable, match=words):
        layers_of("oci://r/m", Manifest.parse("oci://r/m", json.dumps(manifest).encode()))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 200_000, "does not answer with sound JSON"),
        (b'{"schemaVersion": ' + b"9" * 10_000 + b"}", "does not answer with sound JSON"),
        (b"\xff", "does not answer with sound JSON"),
        (b'{"schemaVersion": 2, "config": 5, "layers": 5}', "not one artifact"),
        (b'{"schemaVersion": 2, "layers": [], "config": [{}], "manifests": 3}', "holds no files"),
    ],
)
async def test_a_registry_that_answers_oddly_is_one_sentence(fetcher: Fetcher, body: bytes, words: str) -> None:
    registry = Blobs([], "x")
    registry.manifest = body
    with pytest.raises(ArtifactUnreachable, match=words) as refused:
        async with fetcher.open(await registry.uri()):
            pass
    assert "\n" not in str(refused.value)
    await registry.server.close()


KIT = "application/vnd.kitops.modelkit."


def tar_of(**files: bytes) -> bytes:
    """A tar archive; `__` is a dot and `___` a slash."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.replace("___", "/").replace("__", "."))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class Blobs:
    """A registry for everyone, with any layers; the bytes of blobs that are sent are counted."""

    def __init__(self, layers: list[tuple[str, dict[str, str], bytes]], config: str, *, ranges: bool = True) -> None:
        self.blobs = {digest_of(content): content for _, _, content in layers}
        self.ranges = ranges
        self.sent = 0
        rows = [
            {"mediaType": kind, "digest": digest_of(content), "size": len(content), "annotations": notes}
            for kind, notes, content in layers
        ]
        body = {"schemaVersion": 2, "config": {"mediaType": config, "digest": digest_of(b"{}")}, "layers": rows}
        self.manifest = json.dumps(body).encode()
        platforms = [("linux", "arm64", digest_of(b"arm")), ("linux", "amd64", digest_of(self.manifest))]
        entries = [{"digest": d, "platform": {"os": system, "architecture": a}} for system, a, d in platforms]
        self.index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
        application = web.Application()
        application.router.add_get("/v2/m/manifests/{version}", self.get_manifest)
        application.router.add_get("/v2/m/blobs/{digest}", self.get_blob)
        self.server = TestServer(application)

    async def get_manifest(self, request: web.Request) -> web.Response:
        version = request.match_info["version"]
        known = {"v1": self.manifest, "index": self.index, digest_of(self.manifest): self.manifest}
        return web.Response(body=known[version]) if version in known else web.Response(status=404)

    async def get_blob(self, request: web.Request) -> web.Response:
        content = self.blobs[request.match_info["digest"]]
        if self.ranges and "Range" in request.headers:
            part = content[request.http_range]
            start = request.http_range.start
            headers = {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}"}
            self.sent += len(part)
            return web.Response(status=206, body=part, headers=headers)
        self.sent += len(content)
        return web.Response(body=io.BytesIO(content))

    async def uri(self, version: str = "v1") -> str:
        await self.server.start_server()
        return f"oci://127.0.0.1:{self.server.port}/m:{version}"


def llama_files(folder: Path) -> dict[str, bytes]:
    tiny = LLAMA_7B | {"hidden_size": 256, "vocab_size": 4000, "num_hidden_layers": 4, "intermediate_size": 512}
    write_llama(folder, tiny, shards=2)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def named(prefix: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {prefix + name.replace(".", "__"): content for name, content in files.items()}


@pytest.mark.parametrize("ranges", [True, False])
async def test_modelkit_costs_the_graph_in_its_archive(
    fetcher: Fetcher, content: bytes, tmp_path: Path, ranges: bool
) -> None:
    """As `kit pack` makes one: an archive for each path of the Kitfile, whatever else beside the model."""
    registry = Blobs(
        [
            (f"{KIT}model.v1.tar", {}, tar_of(net___model__onnx=content)),
            (f"{KIT}dataset.v1.tar", {}, tar_of(data___other__onnx=b"x" * 1_000_000)),
            (f"{KIT}code.v1.tar", {}, tar_of(train__py=b"x" * 1_000_000)),
        ],
        f"{KIT}config.v1+json",
        ranges=ranges,
    )
    uri = await registry.uri()
    async with fetcher.open(uri) as artifact:
        assert artifact.size_bytes == len(content)
        assert load_graph(open_artifact(artifact.path), batch=2) == load_graph(
            open_artifact(tmp_path / "model.onnx"), batch=2
        )
    if ranges:
        assert registry.sent < 70_000
        sent = registry.sent
        async with fetcher.open(uri) as artifact:
            assert artifact.fetched_bytes == 0
        assert registry.sent - sent < 8_000, "its directory"
    else:
        assert registry.sent < 3 * len(content), "once for the directory and once for the model; no data set"
    async with fetcher.open(uri, digest=digest_of(content)) as artifact:
        assert artifact.content_digest == digest_of(content), "the digest is that of the file in the archive"
    await registry.server.close()


@pytest.mark.parametrize("form", ["kit", "image", "oras", "modelpack"])
async def test_hugging_face_folder_in_layers(fetcher: Fetcher, tmp_path: Path, form: str) -> None:
    files = llama_files(tmp_path / "llama")
    octets = "application/octet-stream"
    if form == "kit":
        layers = [(f"{KIT}model.v1.tar", {}, tar_of(**named("llama___", files)))]
        registry = Blobs(layers, f"{KIT}config.v1+json")
    elif form == "image":
        system = gzip.compress(tar_of(etc___config__json=b"{}", bin___net__onnx=b"not ours"))
        kind = "application/vnd.oci.image.layer.v1.tar"
        packed = gzip.compress(tar_of(**named("models___", files)))
        layers = [(f"{kind}+gzip", {}, system), (f"{kind}+gzip", {}, packed)]
        registry = Blobs(layers, "application/vnd.oci.image.config.v1+json")
    elif form == "oras":
        registry = Blobs([(octets, {TITLE: name}, c) for name, c in files.items()], "application/vnd.oci.empty.v1+json")
    else:
        kind = "application/vnd.cncf.model.weight.v1.raw"
        layers = [(kind, {FILE_PATH: f"net/{name}"}, c) for name, c in files.items()]
        registry = Blobs(layers, "application/vnd.cncf.model.config.v1+json")
    async with fetcher.open(await registry.uri("index" if form == "image" else "v1")) as artifact:
        assert open_artifact(artifact.path).format == "huggingface"
        weights, expected = (hf_files.read_weight_files(f, "x") for f in (artifact.path, tmp_path / "llama"))
        assert (weights.elements, weights.header_digest) == (expected.elements, expected.header_digest)
        assert artifact.size_bytes == sum(map(len, files.values()))
    if form != "image":
        assert registry.sent < 60_000, registry.sent
    await registry.server.close()


BOMB = tar_of(net__onnx=bytes(30_000_000))


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        ("tar+zstd", b"", "compressed with zstd"),
        ("tar", b"no archive" * 100, "no sound tar archive"),
        ("tar+gzip", b"no archive" * 100, "no gzip archive"),
        ("tar+gzip", gzip.compress(tar_of(net__onnx=b"a", b__onnx=b"b"))[:60], "ends too early"),
        ("tar+gzip", gzip.compress(BOMB[:512]) + gzip.compress(bytes(1)) * 100_000, "more than 100000 gzip archives"),
        ("tar+gzip", gzip.compress(b"") * 1_002, "more than 1000 empty gzip archives"),
        ("tar+gzip", gzip.compress(BOMB[:512]) + gzip.compress(BOMB[512:]), "unpacks to more than 20000000 bytes"),
        ("tar+gzip", gzip.compress(BOMB[:512]) + b"what is not packed", "no gzip archive"),
        ("tar+gzip", gzip.compress(BOMB), "unpacks to more than 20000000 bytes"),
        ("tar", tar_of(a__onnx=b"a", b__onnx=b"b"), "several models"),
        ("tar", tar_of(readme__md=b"a"), "holds no model"),
    ],
)
async def test_layer_that_does_not_do(tmp_path: Path, kind: str, content: bytes, words: str) -> None:
    registry = Blobs([(f"{KIT}model.v1.{kind}", {}, content)], f"{KIT}config.v1+json")
    limits = replace(LIMITS, max_bytes=20_000_000)
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000_000), limits)
    with pytest.raises(DippmError, match=words):
        async with fetcher.open(await registry.uri()):
            pass
    await fetcher.close()
    await registry.server.close()


async def test_a_layer_of_several_gzip_archives_keeps_its_files(fetcher: Fetcher, content: bytes) -> None:
    """As estargz writes it: an archive for each file, or for each block; padded at its end."""
    plain = tar_of(readme__md=b"first", net__onnx=content)
    cuts = [0, 700, 1024, 1025, len(plain)]
    packed = b"".join(gzip.compress(plain[a:b]) for a, b in pairwise(cuts)) + bytes(300)
    registry = Blobs([(f"{KIT}model.v1.tar+gzip", {}, packed)], f"{KIT}config.v1+json")
    async with fetcher.open(await registry.uri(), digest=digest_of(content)) as artifact:
        assert artifact.size_bytes == len(content)
    await registry.server.close()


class OnePiece:
    """A source that is handed on in one piece, as an eager server sends it."""

    name, received_bytes = "layer", 0

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def look(self, known: Look | None) -> Look | None:
        return Look("")

    async def stream(self) -> AsyncIterator[bytes]:
        yield self.content

    async def close(self) -> None:
        return


async def test_others_have_their_turn_while_many_small_gzip_archives_are_unpacked() -> None:
    """In one piece they took seconds of the event loop, quadratic in the piece."""
    content, turns = gzip.compress(b"a") * 50_000, 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    unpacked = [piece async for piece in Gunzipped(OnePiece(content), LIMITS).stream()]
    beside.cancel()
    assert sum(map(len, unpacked)) == 50_000
    assert turns >= len(content) // (64 << 10)


async def test_large_compressed_layer_is_refused_with_the_way_out(
    fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dippm_operator.fetch.oci.COMPRESSED_BYTES", 100)
    packed = gzip.compress(tar_of(net__onnx=bytes(range(256)) * 10))
    registry = Blobs([(f"{KIT}model.v1.tar+gzip", {}, packed)], f"{KIT}config.v1+json")
    with pytest.raises(ArtifactUnreachable, match=r"kit pack --compression none"):
        async with fetcher.open(await registry.uri()):
            pass
    assert registry.sent == 0
    await registry.server.close()


def test_references() -> None:
    assert parse_oci("oci://ghcr.io/a/b") == Reference("ghcr.io", "a/b", "latest")
    assert parse_oci("oci://r:5000/a:1").url == "https://r:5000/v2/a"
    for bad in ("oci://r", "oci://r/A", "oci://r/a@sha256:1", "oci://r/a/../b"):
        with pytest.raises(ArtifactUnreachable, match="oci://REGISTRY"):
            parse_oci(bad)
