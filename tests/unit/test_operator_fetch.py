"""Fetching over loopback HTTP: limits, conditional requests, digests, redirects, forbidden addresses."""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import re
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tests.hugging_face import LLAMA_7B, write_llama

from dippm.artifact import open_artifact, path_of_uri
from dippm.errors import ArtifactTooLarge, ArtifactUnreachable, DigestMismatch
from dippm_operator.certificates.issue import issue
from dippm_operator.controller.settings import parse_settings
from dippm_operator.fetch import LINK_LOCAL, LOOPBACK, ArtifactCache, Fetcher, FetchLimits
from dippm_operator.fetch.address import AddressBlocked, FilteringResolver, is_blocked
from dippm_operator.fetch.http import shown

CONTENT = b"model" * 1000
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
LIMITS = FetchLimits(blocked_networks=LINK_LOCAL, read_seconds=0.5, total_seconds=5, max_redirects=3)


class Store:
    """An HTTP server with one model and several ways to misbehave."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.served: list[int] = []
        self.requests = 0
        application = web.Application()
        application.router.add_get("/model.onnx", self.model)
        application.router.add_get("/redirect/{left}", self.redirect)
        application.router.add_get("/elsewhere", self.elsewhere)
        application.router.add_get("/slow", self.slow)
        application.router.add_get("/endless", self.endless)
        application.router.add_get("/broken", self.broken)
        self.server = TestServer(application)

    async def model(self, request: web.Request) -> web.Response:
        self.requests += 1
        etag = hashlib.sha256(self.content).hexdigest()[:8]
        if request.headers.get("If-None-Match") == f'"{etag}"':
            self.served.append(304)
            return web.Response(status=304)
        self.served.append(200)
        return web.Response(body=self.content, headers={"ETag": f'"{etag}"'})

    async def redirect(self, request: web.Request) -> web.Response:
        left = int(request.match_info["left"])
        target = "/model.onnx" if left == 0 else f"/redirect/{left - 1}"
        return web.Response(status=302, headers={"Location": target})

    async def elsewhere(self, _: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "file:///x"})

    async def slow(self, _: web.Request) -> web.Response:
        await asyncio.sleep(2)
        return web.Response()

    async def endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 1_000_000)

    async def broken(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"only this")
        assert request.transport is not None
        request.transport.close()
        return response

    def url(self, path: str) -> str:
        return str(self.server.make_url(path))


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = Store()
    await store.server.start_server()
    yield store
    await store.server.close()


@pytest.fixture
async def fetcher(tmp_path: Path) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 10_000_000), LIMITS)
    yield fetcher
    await fetcher.close()


def files_under(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_artifact_is_on_disk_verified_and_described(store: Store, fetcher: Fetcher) -> None:
    async with fetcher.open(store.url("/model.onnx"), digest=DIGEST) as artifact:
        assert artifact.path.read_bytes() == CONTENT
        assert artifact.path.name == "model.onnx"
        assert (artifact.size_bytes, artifact.fetched_bytes) == (5000, 5000)
        assert artifact.content_digest == DIGEST
        assert artifact.etag


async def test_store_is_asked_again_but_sends_only_what_changed(store: Store, fetcher: Fetcher) -> None:
    url = store.url("/model.onnx")
    for expected in (5000, 0):
        async with fetcher.open(url) as artifact:
            assert artifact.fetched_bytes == expected
    store.content = b"new upload"
    async with fetcher.open(url) as artifact:
        assert artifact.path.read_bytes() == b"new upload"
    assert store.served == [200, 304, 200]


async def test_one_download_serves_all_that_ask_at_once(store: Store, fetcher: Fetcher) -> None:
    async def fetch() -> bytes:
        async with fetcher.open(store.url("/model.onnx")) as artifact:
            return artifact.path.read_bytes()

    assert set(await asyncio.gather(*(fetch() for _ in range(5)))) == {CONTENT}
    assert store.served.count(200) == 1


async def test_wrong_digest_names_both(store: Store, fetcher: Fetcher) -> None:
    with pytest.raises(DigestMismatch) as caught:
        async with fetcher.open(store.url("/model.onnx"), digest="sha256:" + "0" * 64):
            pass
    assert DIGEST in str(caught.value)
    assert "0" * 64 in str(caught.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/nothing", "answered 404 Not Found"),
        ("/slow", "did not answer in time"),
        ("/broken", "cannot be reached"),
        ("/redirect/3", "redirects more than 3 times"),
        ("/elsewhere", "redirects to file:"),
    ],
)
async def test_unreachable_is_one_sentence_and_leaves_nothing(
    store: Store, fetcher: Fetcher, tmp_path: Path, path: str, words: str
) -> None:
    with pytest.raises(ArtifactUnreachable, match=words) as caught:
        async with fetcher.open(store.url(path)):
            pass
    assert path.partition("?")[0] in str(caught.value)
    assert str(caught.value).endswith(".")
    await fetcher.close()
    assert files_under(tmp_path) == []


async def test_redirects_within_the_limit_are_followed(store: Store, fetcher: Fetcher) -> None:
    async with fetcher.open(store.url("/redirect/2")) as artifact:
        assert artifact.size_bytes == 5000


@pytest.mark.parametrize("path", ["/model.onnx", "/endless"])
async def test_too_large_stops_at_the_limit_and_leaves_nothing(store: Store, tmp_path: Path, path: str) -> None:
    fetcher = Fetcher(ArtifactCache(tmp_path / "c", 10_000_000), replace(LIMITS, max_bytes=4999))
    with pytest.raises(ArtifactTooLarge, match=r"(at most|more than) 4999 "):
        async with fetcher.open(store.url(path)):
            pass
    await fetcher.close()
    assert files_under(tmp_path) == []


async def test_host_that_is_not_there(fetcher: Fetcher, unused_tcp_port: int) -> None:
    with pytest.raises(ArtifactUnreachable, match="cannot be reached"):
        async with fetcher.open(f"http://127.0.0.1:{unused_tcp_port}/m"):
            pass


ANSWERS = [
    ("http", None, "the server closed the connection without an answer"),
    ("https", None, r"127.0.0.1:\d+: the connection was closed"),
    ("http", b"SSH-2.0-OpenSSH_9.2\r\n", "what answers there does not speak HTTP"),
    ("https", b"SSH-2.0-OpenSSH_9.2\r\n", r"127.0.0.1:\d+ does not speak TLS"),
    ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc", "the answer ended early"),
    ("http", b"HTTP/1.1 302 Found\r\nLocation: http://[bad\r\n\r\n", "it is not a sound URL"),
]
"""Scheme, what a server that is none answers, and how that is told."""


@pytest.mark.parametrize(("scheme", "answer", "said"), ANSWERS)
async def test_what_fails_on_the_way_is_told_in_words(
    scheme: str, answer: bytes | None, said: str, fetcher: Fetcher
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        if answer is not None:
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(ArtifactUnreachable) as caught:
            async with fetcher.open(f"{scheme}://127.0.0.1:{port}/m.onnx"):
                pass
    whole = rf"{scheme}://127.0.0.1:{port}/m.onnx cannot be reached \({said}\); check spec.model.uri."
    assert re.fullmatch(whole, str(caught.value))


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("https://127.0.0.1:{closed}/m", r".* cannot be reached \(127.0.0.1:\d+: connection refused\)"),
        ("https://no-such-host.invalid/m", r".* \(no-such-host.invalid:443: .*(known|resolution|hostname).*\)"),
        ("http://127.0.0.1:99999/m", r".* \(it is not a sound URL\)"),
        ("http://user:secret@[::1/m?key=secret", r"http://\[::1/m is not a sound URL"),
    ],
)
async def test_where_nothing_answers_no_library_speaks(
    uri: str, said: str, fetcher: Fetcher, unused_tcp_port: int
) -> None:
    with pytest.raises(ArtifactUnreachable) as caught:
        async with fetcher.open(uri.format(closed=unused_tcp_port)):
            pass
    assert re.fullmatch(f"{said}; check spec.model.uri.", str(caught.value))
    assert "ssl:" not in str(caught.value)


async def test_a_certificate_that_is_not_trusted_is_told(tmp_path: Path, fetcher: Fetcher) -> None:
    serving = issue(("localhost",), datetime.now(UTC), timedelta(days=1))
    (tmp_path / "tls.crt").write_bytes(serving.certificate)
    (tmp_path / "tls.key").write_bytes(serving.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "tls.crt", tmp_path / "tls.key")
    server = TestServer(web.Application(), scheme="https")
    await server.start_server(ssl=context)
    said = rf"the certificate of localhost:{server.port} is not trusted: \w"
    with pytest.raises(ArtifactUnreachable, match=said):
        async with fetcher.open(f"https://localhost:{server.port}/m.onnx"):
            pass
    await server.close()


async def test_claims_and_unknown_schemes_say_so(fetcher: Fetcher) -> None:
    with pytest.raises(
        ArtifactUnreachable, match=r"^pvc://claim/m is a claim, which only pods of its cluster can read"
    ):
        async with fetcher.open("pvc://claim/m"):
            pass
    with pytest.raises(ArtifactUnreachable, match=r"^ftp://host/m: ftp is not fetched; give the model by https"):
        async with fetcher.open("ftp://host/m"):
            pass
    with pytest.raises(
        ArtifactUnreachable, match=r"^pvc://claim/m is a claim, which only pods of its cluster can read"
    ):
        open_artifact("pvc://claim/m")


async def test_own_addresses_are_off_limits_unless_allowed(store: Store, tmp_path: Path) -> None:
    fetcher = Fetcher(
        ArtifactCache(tmp_path / "c", 1), replace(LIMITS, blocked_networks=(*LINK_LOCAL, *LOOPBACK), total_seconds=2)
    )
    port = store.server.port
    circled, wide = "\u2460\u2461\u2466.0.0.1", "\uff11\uff12\uff17\uff0e0\uff0e0\uff0e1"
    disguised = (circled, wide, "127\u30020\u30020\u30021", "0.0.0.0", "[::]", "0x7f000001", "127.1", "2130706433")
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", *disguised):
        with pytest.raises(
            ArtifactUnreachable, match=r"models are not fetched from|neither a name nor a whole address"
        ):
            async with fetcher.open(f"http://{host}:{port}/model.onnx"):
                pass
    await fetcher.close()
    assert store.requests == 0


async def test_redirect_to_a_forbidden_address_is_not_followed(store: Store, fetcher: Fetcher) -> None:
    async def metadata(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://169.254.169.254/latest/meta-data")

    application = web.Application()
    application.router.add_get("/", metadata)
    server = TestServer(application)
    await server.start_server()
    with pytest.raises(ArtifactUnreachable, match=r"169\.254\.169\.254 is an address"):
        async with fetcher.open(str(server.make_url("/"))):
            pass
    await server.close()


async def test_cookie_of_one_download_is_not_sent_with_the_next(tmp_path: Path) -> None:
    sent: list[str | None] = []

    async def model(request: web.Request) -> web.Response:
        sent.append(request.headers.get("Cookie"))
        return web.Response(body=CONTENT, headers={"Set-Cookie": "session=of-the-first; Path=/"})

    application = web.Application()
    application.router.add_get("/{name}", model)
    server = TestServer(application)
    await server.start_server()
    fetcher = Fetcher(ArtifactCache(tmp_path / "c", 10_000_000), LIMITS)
    # A name, because a cookie jar keeps none of an address.
    for name in ("a.onnx", "b.onnx"):
        async with fetcher.open(f"http://localhost:{server.port}/{name}"):
            pass
    await fetcher.close()
    await server.close()
    assert sent == [None, None]


async def test_resolver_leaves_forbidden_addresses_out() -> None:
    with pytest.raises(AddressBlocked, match="localhost"):
        await FilteringResolver(LOOPBACK).resolve("localhost", 80)


@pytest.mark.parametrize(
    ("address", "blocked"),
    [
        ("169.254.169.254", True),
        ("fe80::1%eth0", True),
        ("::ffff:169.254.1.1", True),
        ("10.0.0.1", False),
        ("fd00:ec2::254", True),
        ("100.100.100.200", True),
    ],
)
def test_blocked_addresses(address: str, blocked: bool) -> None:
    assert is_blocked(address, LINK_LOCAL) is blocked
    assert is_blocked("127.0.0.1", [ipaddress.ip_network("127.0.0.0/8")])


@pytest.mark.parametrize(
    "address", ["10.96.0.1", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd12::1", "::ffff:10.0.0.1", "64:ff9b::a00:1"]
)
async def test_private_addresses_are_off_limits_where_the_operator_says_so(address: str, tmp_path: Path) -> None:
    arguments = ["--cache", str(tmp_path), "--block-private-addresses"]
    assert is_blocked(address, parse_settings(arguments).fetch.blocked_networks)
    assert not is_blocked(address, parse_settings(arguments[:2]).fetch.blocked_networks)
    fetcher = Fetcher(ArtifactCache(tmp_path / "c", 1), parse_settings(arguments).fetch)
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ArtifactUnreachable, match="is an address that models are not fetched from"):
        async with fetcher.open(f"http://{host}/m.onnx"):
            pass
    await fetcher.close()


def test_messages_hide_credentials() -> None:
    assert shown("https://user:secret@host/a?token=secret#x") == "https://host/a"
    assert [shown(u) for u in ("file:a/b", "file:/a", "file:///a")] == ["file:a/b", "file:/a", "file:///a"]
    assert shown("oci://host/name@sha256:aa") == "oci://host/name@sha256:aa"


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:secret@127.0.0.1:1/m.onnx?token=secret",
        "s3://user:secret@bucket/?token=secret",
        "gs://user:secret@bucket/?token=secret",
        "hf://user:secret@host/model?token=secret",
        "oci://user:secret@host/model?token=secret",
        "pvc://user:secret@claim/m?token=secret",
        "ftp://user:secret@host/m?token=secret",
        "file://user:secret@host/m?token=secret",
        "file:///nowhere/m?token=secret",
    ],
)
async def test_no_message_says_what_a_uri_hides(uri: str, fetcher: Fetcher) -> None:
    with pytest.raises(ArtifactUnreachable) as caught:
        async with fetcher.open(uri):
            pass
    assert "secret" not in str(caught.value)


async def test_file_uris_stay_below_their_root(tmp_path: Path, fetcher: Fetcher) -> None:
    root = tmp_path / "models"
    root.mkdir()
    (root / "a b.onnx").write_bytes(CONTENT)
    (tmp_path / "secret").write_text("token")
    (root / "link").symlink_to(tmp_path / "secret")
    rooted = Fetcher(ArtifactCache(tmp_path / "c", 1), replace(LIMITS, file_roots=(root,)))
    for uri in (f"file://{root}/a%20b.onnx", f"file:{root}/a%20b.onnx", "file:a%20b.onnx"):
        async with rooted.open(uri, digest=DIGEST) as artifact:
            assert artifact.path == root / "a b.onnx"
    for uri in (f"file://{tmp_path}/secret", "file:../secret", "file:link"):
        with pytest.raises(ArtifactUnreachable, match="outside"):
            async with rooted.open(uri):
                pass
    with pytest.raises(ArtifactUnreachable, match="switched off"):
        async with fetcher.open(f"file://{root}/a%20b.onnx"):
            pass
    with pytest.raises(DigestMismatch):
        async with rooted.open("file:a%20b.onnx", digest="sha256:" + "1" * 64):
            pass
    with pytest.raises(ArtifactUnreachable, match="cannot be read"):
        async with rooted.open("file:nothing"):
            pass


def test_file_uri_with_a_host_says_how_to_write_it() -> None:
    with pytest.raises(ArtifactUnreachable, match=r"file:///models/m\.onnx"):
        path_of_uri("file://models/m.onnx")


async def test_file_folders_follow_the_rules_of_every_store(tmp_path: Path) -> None:
    root = (tmp_path / "models").resolve()
    for name in ("one/deep/net.onnx", "served/1/saved_model.pb", "served/10/saved_model.pb", "two/a.onnx", "two/b.pt2"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(CONTENT)
    write_llama(root / "llm", LLAMA_7B, shards=2)
    (root / "out").mkdir()
    (tmp_path / "secret.onnx").write_text("token")
    (root / "out" / "net.onnx").symlink_to(tmp_path / "secret.onnx")
    (root / "empty").mkdir()
    rooted = Fetcher(ArtifactCache(tmp_path / "c", 1), replace(LIMITS, file_roots=(root,)))
    for uri, found in (
        ("one", "one/deep/net.onnx"),
        ("one/", "one/deep/net.onnx"),
        ("served", "served/10"),
        ("llm", "llm"),
    ):
        async with rooted.open(f"file:{uri}") as artifact:
            assert artifact.path == root / found
    async with rooted.open("file:llm") as before:
        assert before.size_bytes > 10**10, "of its files, not of the folder's entry"
    (root / "llm" / "config.json").write_text((root / "llm" / "config.json").read_text() + "\n")
    async with rooted.open("file:llm") as after:
        assert after.etag != before.etag, "a file that is written anew leaves the folder's own time as it was"
    for uri, said in (
        ("two", r"file:two holds several models \(a.onnx, b.pt2\); name one: file:two/a.onnx"),
        ("empty", "file:empty holds no model: "),
        ("out", "files outside .*models are not read"),
    ):
        with pytest.raises(ArtifactUnreachable, match=said):
            async with rooted.open(f"file:{uri}"):
                pass


async def test_a_pipe_is_refused_by_name_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    rooted = Fetcher(ArtifactCache(tmp_path / "c", 1), replace(LIMITS, file_roots=(tmp_path,)))
    with pytest.raises(ArtifactUnreachable, match=r"pipe\.onnx is not a regular file; save the model"):
        async with rooted.open("file:pipe.onnx"):
            pass


async def test_cache_lets_the_oldest_go_but_never_one_in_use(store: Store, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "c", 12_000)
    fetcher = Fetcher(cache, LIMITS)
    urls = [store.url("/model.onnx") + f"?{i}" for i in range(4)]
    async with fetcher.open(urls[0]) as first:
        for url in urls[1:]:
            async with fetcher.open(url):
                pass
        assert first.path.exists()
        assert cache.held_bytes <= 12_000
        assert cache.get(urls[1]) is None
    await fetcher.close()


async def test_new_upload_does_not_pull_the_old_one_from_under_a_reader(store: Store, fetcher: Fetcher) -> None:
    url = store.url("/model.onnx")
    async with fetcher.open(url) as old:
        store.content = b"new"
        async with fetcher.open(url) as new:
            assert old.path.read_bytes() == CONTENT
            assert new.path.read_bytes() == b"new"
    await fetcher.close()
    assert not old.path.exists()


async def test_copy_is_not_let_go_while_the_store_is_asked_whether_it_is_current(store: Store, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "c", 6_000)
    fetcher = Fetcher(cache, LIMITS)
    urls = [store.url("/model.onnx") + f"?{i}" for i in range(2)]
    async with fetcher.open(urls[0]):
        pass

    async def again() -> bytes:
        async with fetcher.open(urls[0]) as artifact:
            return artifact.path.read_bytes()

    async def other() -> None:
        async with fetcher.open(urls[1]):
            pass

    assert (await asyncio.gather(again(), other(), again()))[0] == CONTENT
    await fetcher.close()


async def test_a_disk_that_takes_nothing_is_one_sentence(store: Store, fetcher: Fetcher, tmp_path: Path) -> None:
    (tmp_path / "cache").rmdir()
    with pytest.raises(ArtifactUnreachable, match=r"model.onnx cannot be kept on the operator's disk \(No such file"):
        async with fetcher.open(store.url("/model.onnx")):
            pass
    (tmp_path / "cache").mkdir()
    async with fetcher.open(store.url("/model.onnx")) as artifact:
        assert artifact.path.read_bytes() == CONTENT
