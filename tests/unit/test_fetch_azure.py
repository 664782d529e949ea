"""Azure Blob Storage: against Azurite where it is installed (`npm i -g azurite`); a client's token against a server."""

from __future__ import annotations

import base64
import hashlib
import hmac
import io
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.hugging_face import LLAMA_7B, write_llama
from tests.unit.test_fetch_skim import LIMITS, write_onnx

from dippm.artifact import open_artifact
from dippm.errors import ArtifactUnreachable
from dippm.frontend import load_graph
from dippm_operator.fetch import ArtifactCache, Credentials, Fetcher
from dippm_operator.fetch.azure import VERSION, Container, is_azure, parse_azure

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's own, which everyone knows
(https://learn.microsoft.com/azure/storage/common/storage-connect-azurite#http-connection-strings)."""


def digest(text: str) -> str:
    return base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()


class Store:
    """Azurite, and a way to fill it."""

    def __init__(self, url: str) -> None:
        self.url = url
        """With the account, as an emulator spells it."""

    async def put(self, path: str, body: bytes, headers: Mapping[str, str], query: str = "") -> None:
        sent = {"x-ms-version": VERSION, "x-ms-date": formatdate(usegmt=True), **headers}
        own = "".join(f"{name}:{sent[name]}\n" for name in sorted(sent))
        length = str(len(body)) if body else ""
        resource = f"/{ACCOUNT}{urlsplit(self.url).path}/{path}" + (f"\n{query.replace('=', ':')}" if query else "")
        text = "\n".join(["PUT", "", "", length, "", "application/octet-stream", *[""] * 6, own]) + resource
        sent |= {"Authorization": f"SharedKey {ACCOUNT}:{digest(text)}", "Content-Type": "application/octet-stream"}
        async with aiohttp.ClientSession() as session:
            url = f"{self.url}/{path}" + (f"?{query}" if query else "")
            async with session.put(url, data=io.BytesIO(body), headers=sent) as answer:
                assert answer.status == 201, await answer.text()

    async def make_container(self, name: str, *, public: bool = False) -> None:
        await self.put(name, b"", {"x-ms-blob-public-access": "container"} if public else {}, "restype=container")

    async def upload(self, path: str, body: bytes, **metadata: str) -> None:
        own = {f"x-ms-meta-{name}": value for name, value in metadata.items()}
        await self.put(path, body, {"x-ms-blob-type": "BlockBlob", **own})

    def secret(self, **keys: str) -> Credentials:
        return Credentials({"AZURE_SERVICE_URL": self.url, **keys}, ("127.0.0.1",), name="reader")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    binary = os.environ.get("AZURITE_BLOB") or shutil.which("azurite-blob")
    if binary is None:
        pytest.skip("reads from Azurite: needs `npm install -g azurite` (or AZURITE_BLOB=path of azurite-blob)")
    folder = tmp_path_factory.mktemp("azurite")
    command = [binary, "--blobPort", "0", "--location", str(folder), "--skipApiVersionCheck", "--disableTelemetry"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        while "listens on" not in (line := process.stdout.readline()):
            assert line, "Azurite ended"
        yield Store(f"{line.split()[-1]}/{ACCOUNT}")
        process.terminate()


@pytest.fixture
async def fetcher(tmp_path: Path) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000_000), LIMITS)
    yield fetcher
    await fetcher.close()


async def test_onnx_in_a_container_costs_its_graph(store: Store, tmp_path: Path) -> None:
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000_000), LIMITS)
    path = tmp_path / "model.onnx"
    write_onnx(path, width=512)
    await store.make_container("models")
    await store.upload("models/vision/a%20b.onnx", path.read_bytes())
    secret = store.secret(AZURE_STORAGE_ACCESS_KEY=KEY)
    for uri in (
        f"https://{ACCOUNT}.blob.core.windows.net/models/vision/a%20b.onnx",
        f"azure://{ACCOUNT}/models/vision/a%20b.onnx",
        f"abfss://models@{ACCOUNT}.dfs.core.windows.net/vision/a%20b.onnx",
        f"wasbs://models@{ACCOUNT}.blob.core.windows.net/vision/a%20b.onnx",
    ):
        async with fetcher.open(uri, credentials=secret) as artifact:
            assert artifact.size_bytes == path.stat().st_size
            assert 0 < artifact.fetched_bytes < 60_000
            assert load_graph(open_artifact(artifact.path), batch=2) == load_graph(open_artifact(path), batch=2)
        async with fetcher.open(uri, credentials=secret) as artifact:
            assert artifact.fetched_bytes == 0, "the ETag says that nothing changed"
    uri = f"azure://{ACCOUNT}/models/vision/a%20b.onnx"
    wrong = store.secret(AZURE_STORAGE_ACCESS_KEY=base64.b64encode(b"wrong").decode())
    with pytest.raises(ArtifactUnreachable, match="answered 403"):
        async with fetcher.open(uri, credentials=wrong):
            pass
    await fetcher.close()


async def test_folder_by_a_signature_in_the_secret_and_in_the_uri(store: Store, tmp_path: Path) -> None:
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000_000), LIMITS)
    await store.make_container("llm")
    write_llama(tmp_path / "llama", LLAMA_7B | {"hidden_size": 64, "vocab_size": 500, "num_hidden_layers": 2}, shards=2)
    for file in (tmp_path / "llama").iterdir():
        await store.upload(f"llm/llama/{file.name}", file.read_bytes())
    expiry = "2099-01-01T00:00:00Z"
    text = "\n".join(["rl", "", expiry, f"/blob/{ACCOUNT}/llm", "", "", "", VERSION, "c", *[""] * 7])
    signature = urlencode({"sp": "rl", "se": expiry, "sv": VERSION, "sr": "c", "sig": digest(text)})
    for uri, secret in (
        (f"azure://{ACCOUNT}/llm/llama", store.secret(AZURE_STORAGE_SAS_TOKEN=f"?{signature}")),
        (f"https://{ACCOUNT}.blob.core.windows.net/llm/llama/?{signature}", store.secret()),
    ):
        async with fetcher.open(uri, credentials=secret) as artifact:
            assert open_artifact(artifact.path).format == "huggingface"
            assert 0 < artifact.fetched_bytes < 30_000
    await fetcher.close()


async def test_directories_of_data_lake_storage_are_no_files(store: Store, fetcher: Fetcher) -> None:
    await store.make_container("lake")
    for directory in ("net", "net/1", "net/1/variables", "net/1/saved_model.pb.d"):
        await store.upload(f"lake/{directory}", b"", hdi_isfolder="true")
    files = {"saved_model.pb": b"\x08\x01" + b"graph" * 100, "variables/variables.index": b"index"}
    for path, content in files.items():
        await store.upload(f"lake/net/1/{path}", content)
    secret = store.secret(AZURE_STORAGE_ACCESS_KEY=KEY)
    async with fetcher.open(f"abfss://lake@{ACCOUNT}.dfs.core.windows.net/net", credentials=secret) as artifact:
        assert {str(p.relative_to(artifact.path)) for p in artifact.path.rglob("*") if p.is_file()} == set(files)
    with pytest.raises(ArtifactUnreachable, match="lake/net/1/variables/ holds no model"):
        async with fetcher.open(f"azure://{ACCOUNT}/lake/net/1/variables/", credentials=secret):
            pass


async def test_public_container_is_read_without_a_secret(store: Store, tmp_path: Path) -> None:
    """Where anonymous reads go is not a tenant's to say, so the emulator is reached by a redirecting setting."""
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000_000), LIMITS)
    await store.make_container("public", public=True)
    write_onnx(tmp_path / "model.onnx", width=64)
    await store.upload("public/net/model.onnx", (tmp_path / "model.onnx").read_bytes())
    async with fetcher.open(f"{store.url}/public/net/model.onnx") as artifact:
        assert load_graph(open_artifact(artifact.path), batch=2).operators
    await fetcher.close()


class Entra:
    """Gives a token for a client's secret, and blobs for that token."""

    def __init__(self, path: Path) -> None:
        self.path = path
        application = web.Application()
        application.router.add_post("/{tenant}/oauth2/v2.0/token", self.token)
        application.router.add_get("/models/net.onnx", self.content)
        self.server = TestServer(application)

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        wanted = {"grant_type": "client_credentials", "client_id": "me", "client_secret": "s3cret"}
        if request.match_info["tenant"] != "t1" or any(form[key] != value for key, value in wanted.items()):
            return web.json_response({"error": "invalid_client"}, status=401)
        assert form["scope"] == "https://storage.azure.com/.default"
        return web.json_response({"access_token": "t0ken"})

    async def content(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["x-ms-version"] == VERSION
        if request.headers.get("Authorization") != "Bearer t0ken":
            return web.Response(status=401)
        return web.FileResponse(self.path)


@pytest.mark.parametrize("prefix", ["AZ", "AZURE"])
async def test_client_of_the_secret_reads(fetcher: Fetcher, tmp_path: Path, prefix: str) -> None:
    write_onnx(tmp_path / "model.onnx", width=512)
    entra = Entra(tmp_path / "model.onnx")
    await entra.server.start_server()
    url = str(entra.server.make_url("")).rstrip("/")
    fetcher._limits = replace(LIMITS, azure_authority=url)
    keys = {f"{prefix}_CLIENT_ID": "me", f"{prefix}_TENANT_ID": "t1", f"{prefix}_CLIENT_SECRET": "s3cret"}
    uri = "https://account.blob.core.windows.net/models/net.onnx"

    def secret(**changes: str) -> Credentials:
        hosts = ("127.0.0.1",)
        return Credentials({"AZURE_SERVICE_URL": url, **keys, **changes}, hosts, name="reader")

    async with fetcher.open(uri, credentials=secret()) as artifact:
        assert 0 < artifact.fetched_bytes < 60_000
    for changes, words in (
        ({f"{prefix}_CLIENT_SECRET": "old"}, "token service answered 401; is the client secret still valid"),
        ({f"{prefix}_TENANT_ID": ""}, "has no AZURE_TENANT_ID"),
        ({"AZURE_STORAGE_ACCESS_KEY": "no base64!"}, "is not base64"),
        ({"AZURE_SERVICE_URL": "https://elsewhere.example"}, "may not be sent to elsewhere.example"),
        ({"AZURE_SERVICE_URL": "http://elsewhere.example"}, "may not be sent to elsewhere.example"),
    ):
        with pytest.raises(ArtifactUnreachable, match=words) as refused:
            async with fetcher.open(uri, credentials=secret(**changes)):
                pass
        assert "s3cret" not in str(refused.value)
    await entra.server.close()


def test_spellings() -> None:
    host = "https://models.blob.core.windows.net"
    expected = Container("models", host, "c", "a b/m.onnx", "")
    assert parse_azure(f"{host}/c/a%20b/m.onnx") == expected
    assert parse_azure("azure://models/c/a%20b/m.onnx") == expected
    assert parse_azure("azure://models.blob.core.windows.net/c/a%20b/m.onnx") == expected
    assert parse_azure("abfss://c@models.dfs.core.windows.net/a%20b/m.onnx") == expected
    assert parse_azure("wasb://c@models.blob.core.windows.net/a%20b/m.onnx") == expected
    assert parse_azure("https://models.z12.blob.storage.azure.net/c/f/").account == "models"
    assert not is_azure("https://blob.core.windows.net.evil.example/c/m")
    assert not is_azure("https://evil.example/models.blob.core.windows.net/c/m")
    for bad in ("azure://models/c", "azure://Not.An.Account/c/m", "abfss://models.dfs.core.windows.net/m", f"{host}/c"):
        with pytest.raises(ArtifactUnreachable, match="names no blob"):
            parse_azure(bad)
