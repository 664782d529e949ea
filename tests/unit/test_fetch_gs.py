"""`gs://` against an emulator of Google Cloud Storage, and with a service account's key against a token server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from gcp_storage_emulator.server import create_server
from google.auth import jwt
from tests.hugging_face import LLAMA_7B, write_llama
from tests.unit.test_fetch_skim import LIMITS, write_onnx

from dippm.artifact import open_artifact
from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch import ArtifactCache, Credentials, Fetcher
from dippm_operator.fetch.gs import KEY, GsFolder


@pytest.fixture
def emulator(unused_tcp_port: int) -> Iterator[str]:
    server = create_server("127.0.0.1", unused_tcp_port, in_memory=True, default_bucket="models")
    server.start()
    yield f"http://127.0.0.1:{unused_tcp_port}"
    server.stop()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
async def test_onnx_in_a_bucket_costs_its_graph(emulator: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(path, width=512)
    with path.open("rb") as file:
        async with aiohttp.ClientSession() as session:
            url = f"{emulator}/upload/storage/v1/b/models/o?uploadType=media&name=vision/model.onnx"
            async with session.post(url, data=file) as answer:
                assert answer.status == 200, await answer.text()
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 10**9), replace(LIMITS, cloud_storage=emulator))
    async with fetcher.open("gs://models/vision/model.onnx") as artifact:
        assert artifact.size_bytes == path.stat().st_size
        assert artifact.fetched_bytes < 60_000
    with pytest.raises(ArtifactUnreachable, match=r"gs://models/nothing.onnx answered 404"):
        async with fetcher.open("gs://models/nothing.onnx"):
            pass
    await fetcher.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
async def test_hugging_face_folder_under_a_prefix(emulator: str, tmp_path: Path) -> None:
    write_llama(
        tmp_path / "llama", LLAMA_7B | {"hidden_size": 128, "vocab_size": 1000, "num_hidden_layers": 4}, shards=2
    )
    async with aiohttp.ClientSession() as session:
        for marker in ("llm/", "llm/assets/"):  # as the console makes folders
            url = f"{emulator}/upload/storage/v1/b/models/o?uploadType=media&name={marker}"
            async with session.post(url, data=b" ") as answer:  # the emulator takes no empty object
                assert answer.status == 200, await answer.text()
        for path in (tmp_path / "llama").iterdir():
            url = f"{emulator}/upload/storage/v1/b/models/o?uploadType=media&name=llm/{path.name}"
            async with session.post(url, data=path.read_bytes()) as answer:
                assert answer.status == 200, await answer.text()
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 10**9), replace(LIMITS, cloud_storage=emulator))
    for fetched in (True, False):
        async with fetcher.open("gs://models/llm") as artifact:
            assert open_artifact(artifact.path).format == "huggingface"
            assert (0 < artifact.fetched_bytes < 30_000) is fetched
    with pytest.raises(ArtifactUnreachable, match=r"gs://models/empty/ holds no files"):
        async with fetcher.open("gs://models/empty/"):
            pass
    await fetcher.close()


class Google:
    """Gives a token for an assertion that the key signed, and the object for that token."""

    def __init__(self, path: Path) -> None:
        self.path = path
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        plain = serialization.NoEncryption()
        pem, public = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        self.private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain).decode()
        self.public = key.public_key().public_bytes(pem, public)
        application = web.Application()
        application.router.add_post("/token", self.token)
        application.router.add_get("/download/storage/v1/b/models/o/{name}", self.content)
        self.server = TestServer(application)

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        claims = jwt.decode(str(form["assertion"]), certs=self.public, audience=str(self.server.make_url("/token")))
        assert claims["scope"].endswith("devstorage.read_only")
        return web.json_response({"access_token": "t0ken", "token_type": "Bearer"})

    async def content(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != "Bearer t0ken":
            return web.Response(status=401)
        return web.FileResponse(self.path)

    def secret(self, **changes: str) -> Credentials:
        info = {
            "type": "service_account", "client_email": "reader@p.iam.gserviceaccount.com", "private_key_id": "1",
            "private_key": self.private, "token_uri": "http://169.254.169.254/evil", **changes,
        }  # fmt: skip
        return Credentials({KEY: json.dumps(info)}, ("127.0.0.1",), name="reader")


@pytest.fixture
async def google(tmp_path: Path) -> AsyncIterator[Google]:
    write_onnx(tmp_path / "model.onnx", width=512)
    google = Google(tmp_path / "model.onnx")
    await google.server.start_server()
    yield google
    await google.server.close()


async def test_service_account_reads_and_its_own_token_url_is_not_believed(google: Google, tmp_path: Path) -> None:
    base = str(google.server.make_url("")).rstrip("/")
    limits = replace(LIMITS, cloud_storage=base, google_tokens=f"{base}/token")
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 10**9), limits)
    async with fetcher.open("gs://models/a/model.onnx", credentials=google.secret()) as artifact:
        assert artifact.fetched_bytes < 60_000
    for credentials, words in (
        (None, "answered 401"),
        (google.secret(type="external_account"), "only a service_account's key"),
        (google.secret(private_key="x"), "not the key file"),
    ):
        with pytest.raises(ArtifactUnreachable, match=words):
            async with fetcher.open("gs://models/a/model.onnx", credentials=credentials):
                pass
    await fetcher.close()


def test_a_uri_without_an_object_says_how_to_write_it() -> None:
    with pytest.raises(ArtifactUnreachable, match="names no object"):
        GsFolder(None, LIMITS, "gs://b", {})  # type: ignore[arg-type]
