"""The adapter over kubernetes.aio: who asks, what is sent, what comes back, what a refused token means."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import incluster_config

from dippm.errors import ManifestError
from dippm_operator.controller.handlers import login_as
from dippm_operator.kube import METADATA_ONLY, ApiClient, ApiFailure, Connection

PLUGIN = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
with (folder / "runs").open("a") as runs:
    runs.write("x")
status = {"token": (folder / "token").read_text()}
print(json.dumps({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}))
"""


class Server:
    """Answers with what it was asked, where the token is the one that it takes."""

    def __init__(self) -> None:
        self.takes: str | None = None
        self.refused = 0
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.takes is not None and request.headers.get("Authorization") != f"Bearer {self.takes}":
            self.refused += 1
            return web.json_response({"message": "Unauthorized"}, status=401)
        if "watch" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b'{"type": "ADDED", "object": {"kind": "A"}}\n\n{"type": "ADD')
            await asyncio.sleep(0.05)
            await response.write(b'ED", "object": {"kind": "B"}}\n')
            if request.query["watch"] == "true" and request.path == "/silent":
                await asyncio.sleep(10)
            return response
        if request.path == "/broken":
            return web.Response(text="bad gateway", status=502)
        if request.path == "/none":
            return web.json_response({"kind": "Status", "message": "not found"}, status=404)
        headers = {name: request.headers.get(name) for name in ("Accept", "Content-Type", "Authorization")}
        body = await request.json() if request.can_read_body else None
        return web.json_response({"method": request.method, "path": request.path_qs, "body": body, **headers})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    async with TestServer(application) as running:
        server.url = str(running.make_url("")).rstrip("/")
        yield server


@pytest.fixture
async def api(server: Server) -> AsyncIterator[ApiClient]:
    async with ApiClient(Connection(Configuration(host=server.url))) as api:
        yield api


def kubeconfig(folder: Path, server: str, user: dict[str, Any], **cluster: Any) -> Path:
    path = folder / "kubeconfig"
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me"}}],
        "clusters": [{"name": "one", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "me", "user": user}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


async def test_verbs_send_what_the_api_wants(api: ApiClient) -> None:
    found = await api.get("/api/v1/nodes", accept=METADATA_ONLY, labelSelector="a=b,c!=d", limit="5")
    assert (found["method"], found["Accept"]) == ("GET", METADATA_ONLY)
    assert found["path"] == "/api/v1/nodes?labelSelector=a%3Db,c!%3Dd&limit=5"
    assert found["Authorization"] is None
    body = {"a": [1, None, {"b": "é"}], "none": None}
    assert (await api.create("/x", body))["body"] == body  # nothing is left out of a plain object
    assert (await api.replace("/x", body))["method"] == "PUT"
    patch = [{"op": "test", "path": "/a", "value": None}]
    patched = await api.json_patch("/x", patch)
    assert (patched["method"], patched["Content-Type"]) == ("PATCH", "application/json-patch+json")
    assert patched["body"] == patch


async def test_failures_have_the_servers_words(api: ApiClient) -> None:
    assert await api.get_or_none("/none") is None
    with pytest.raises(ApiFailure, match=r"^404: not found$") as missing:
        await api.get("/none")
    assert missing.value.code == 404
    with pytest.raises(ApiFailure, match=r"^502: bad gateway$"):
        await api.get_or_none("/broken")


async def test_a_watch_yields_lines_and_notices_silence(api: ApiClient) -> None:
    kinds = [event["object"]["kind"] async for event in api.watch("/speaks", silence_seconds=5)]
    assert kinds == ["A", "B"]
    silent = api.watch("/silent", silence_seconds=0.3)
    assert [(await anext(silent))["object"]["kind"] for _ in range(2)] == ["A", "B"]
    with pytest.raises(TimeoutError):
        await anext(silent)


async def test_proxies_of_the_environment_are_not_asked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with ApiClient(await Connection.from_kubeconfig(kubeconfig(tmp_path, server.url, {}))) as api:
        assert (await api.get("/x"))["method"] == "GET"


@pytest.mark.parametrize("way", ["exec", "tokenFile"])
async def test_a_refused_token_is_read_again_once_for_all(server: Server, tmp_path: Path, way: str) -> None:
    plugin, token, runs = tmp_path / "plugin.py", tmp_path / "token", tmp_path / "runs"
    plugin.write_text(PLUGIN)
    token.write_text("first")
    command = {
        "apiVersion": "client.authentication.k8s.io/v1",
        "command": sys.executable,
        "args": [str(plugin), str(tmp_path)],
    }
    user = {"exec": command} if way == "exec" else {"tokenFile": "token"}
    connection = await Connection.from_kubeconfig(kubeconfig(tmp_path, server.url, user))
    server.takes = "first"
    async with ApiClient(connection) as api:
        assert (await api.get("/x"))["Authorization"] == "Bearer first"
        token.write_text("second")
        server.takes = "second"
        answers = await asyncio.gather(*(api.get("/x") for _ in range(8)))
        assert {answer["Authorization"] for answer in answers} == {"Bearer second"}
        assert [event["type"] async for event in api.watch("/x", silence_seconds=5)] == ["ADDED", "ADDED"]
        server.takes, server.refused = "third", 0
        with pytest.raises(ApiFailure, match="401: Unauthorized"):
            await api.get("/x")
        assert server.refused == 1  # there is no other token, so there is nothing to try
    if way == "exec":
        assert runs.read_text() == "xxx"


async def test_kopf_logs_in_as_we_do(server: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("first")
    cluster = {"insecure-skip-tls-verify": True, "proxy-url": "http://proxy.example:3128"}
    connection = await Connection.from_kubeconfig(
        kubeconfig(tmp_path, "https://api.example:6443/", {"tokenFile": "token"}, **cluster)
    )
    (tmp_path / "token").write_text("second")
    login = await login_as(connection)
    assert (login.server, login.insecure, login.proxy_url) == (
        "https://api.example:6443",
        True,
        "http://proxy.example:3128",
    )
    assert login.as_http_headers() == {"Authorization": "Bearer second"}


async def test_a_pods_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    token.write_text("first")
    with pytest.raises(ManifestError, match=r"service account: .*mount its token or give --kubeconfig"):
        await Connection.from_environment()
    authority.write_text("PEM")
    connection = await Connection.from_environment()
    assert (connection.configuration.host, connection.configuration.ssl_ca_cert) == (
        "https://[fd00::1]:443",
        str(authority),
    )
    assert await connection.authorization() == "bearer first"
    token.write_text("second")
    assert await connection.authorization() == "bearer first"  # for a minute
    assert await connection.renew("bearer first")
    assert await connection.authorization() == "bearer second"
    assert await connection.renew("bearer first")  # another was told the same, meanwhile
    token.unlink()
    assert not await connection.renew("bearer second")
    assert await connection.authorization() == "bearer second"


async def test_a_token_that_cannot_be_read_is_as_a_server_that_is_not_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_: Configuration) -> None:
        (tmp_path / "gone").read_text()

    configuration = Configuration(host="http://127.0.0.1:9")
    configuration.refresh_api_key_hook = gone
    async with ApiClient(Connection(configuration)) as api:
        with pytest.raises(aiohttp.ClientConnectionError, match="token cannot be read"):
            await api.get("/x")


@pytest.mark.parametrize("content", ["", "[]", "{", "current-context: a\ncontexts: [{}]", "current-context: a"])
async def test_what_is_no_kubeconfig_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(ManifestError, match=rf"^{path}: .*--kubeconfig$"):
        await Connection.from_environment(str(path))
