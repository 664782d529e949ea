"""`https:` and `http:` URIs, in parts where the server gives parts, else streamed; under limits."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable
from dippm_operator.failures import in_words
from dippm_operator.fetch.address import AddressBlocked, FilteringResolver, check_host
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.source import Look

Signer = Callable[[str, Mapping[str, str]], Mapping[str, str]]
"""From URL and headers of a GET to the headers with which it is sent."""
_CHUNK = 1024 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
FIRST_BYTES = 4096
"""What the first request asks for: enough to know the kind of file."""


def client(limits: FetchLimits) -> aiohttp.ClientSession:
    """The session for downloads. Close it after use."""
    timeout = aiohttp.ClientTimeout(
        total=limits.total_seconds, sock_connect=limits.connect_seconds, sock_read=limits.read_seconds
    )
    connector = aiohttp.TCPConnector(resolver=FilteringResolver(limits.blocked_networks), limit=16)
    return aiohttp.ClientSession(
        timeout=timeout,
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),  # a session that one tenant's Secret opened is not the next one's
        auto_decompress=False,
        headers={"Accept-Encoding": "identity"},
    )


def shown(uri: str) -> str:
    """The URI without user, password and query: they may be secrets, and messages are read by others."""
    try:
        parts = urlsplit(uri)
    except ValueError:  # an address in brackets that do not close
        return re.sub("//[^/]*@", "//", uri.partition("?")[0])
    scheme = f"{parts.scheme}:" if parts.scheme else ""
    # Not urlunsplit, which makes file:a an absolute path.
    host = f"//{parts.netloc.rpartition('@')[2]}" if uri[len(scheme) :].startswith("//") else ""
    return f"{scheme}{host}{parts.path}"


@contextmanager
def spoken(name: str) -> Iterator[None]:
    """What goes wrong on the way, as one sentence."""
    try:
        yield
    except AddressBlocked as error:
        raise ArtifactUnreachable(f"{name}: {error}; use another host.") from None
    except TimeoutError:
        raise ArtifactUnreachable(f"{name} did not answer in time; check the host, or try again later.") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressBlocked):
            raise ArtifactUnreachable(f"{name}: {error.os_error}; use another host.") from None
        raise ArtifactUnreachable(f"{name} cannot be reached ({in_words(error)}); check spec.model.uri.") from None


@dataclass(frozen=True, slots=True)
class Answer:
    """A short answer of a store, read whole."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: bytes


async def ask(
    session: aiohttp.ClientSession, name: str, url: str, headers: Mapping[str, str], limits: FetchLimits,
    *, most: int, exact: bool = False,
) -> Answer:  # fmt: skip
    """A GET without redirects whose answer has at most so many bytes: what a store says of what it has.

    Raises ArtifactUnreachable, or ArtifactTooLarge for an answer that does not end.
    """
    target = URL(url, encoded=exact)
    with spoken(name):
        check_host(target.raw_host or "", limits.blocked_networks)
        async with session.get(target, headers=dict(headers), allow_redirects=False) as response:
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > most:
                    raise ArtifactTooLarge(
                        f"{name} answers with more than {most >> 20} MiB where it is asked what it has; name the "
                        "model's own file, if it is a store at all."
                    )
            return Answer(response.status, response.reason or "", response.headers, bytes(body))


def refused(name: str, status: int, reason: str | None) -> ArtifactUnreachable:
    """A store's no, as an error."""
    return ArtifactUnreachable(f"{name} answered {status} {reason or ''}".rstrip() + "; check spec.model.uri.")


class HttpSource:
    """A URL. `headers` go to the host that it names and to no other, whatever redirects say.

    `exact`: the URL is quoted as it is to be sent (a signature is of that; an object's name has %2F in it).
    """

    def __init__(
        self, session: aiohttp.ClientSession, url: str, limits: FetchLimits, *, name: str = "",
        headers: Mapping[str, str] | None = None, sign: Signer | None = None,
        exact: bool = False,
    ) -> None:  # fmt: skip
        self.name = name or shown(url)
        self.received_bytes = 0
        self._session = session
        self._url = url
        self._limits = limits
        self._headers = dict(headers or {})
        self._sign = sign
        self._hop = (url, self._headers)
        """Where redirects led, and the headers that may be sent there: the other parts are read from there at once."""
        self._exact = exact
        self._look = Look()
        self._head = b""
        self._whole: aiohttp.ClientResponse | None = None
        self._open = AsyncExitStack()

    async def look(self, known: Look | None) -> Look | None:
        conditions = {"Range": f"bytes=0-{FIRST_BYTES - 1}"}
        if known is not None and known.etag:
            conditions["If-None-Match"] = known.etag
        elif known is not None and known.last_modified:
            conditions["If-Modified-Since"] = known.last_modified
        with spoken(self.name):
            async with AsyncExitStack() as stack:
                response = await stack.enter_async_context(self._get(conditions))
                if response.status == 304 and known is not None:
                    return None
                match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
                if response.status == 206 and match and match[1] == "0":
                    self._head = await self._body(response, FIRST_BYTES)
                    self._look = _look_of(response, size=int(match[3]), ranges=True)
                elif response.status == 200:  # it gives no parts: what comes is the whole
                    self._look = _look_of(response, size=response.content_length, ranges=False)
                    self._whole = response
                    self._open = stack.pop_all()
                elif response.status == 416:  # nothing to take a part of: it is empty
                    self._look = _look_of(response, size=None, ranges=False)
                else:
                    raise self._refused(response)
        return self._look

    async def read(self, start: int, end: int) -> bytes:
        if end <= len(self._head):
            return self._head[start:end]
        with spoken(self.name):
            async with self._get({"Range": f"bytes={start}-{end - 1}"}) as response:
                if response.status >= 400:
                    raise self._refused(response)
                if response.status != 206 or response.headers.get("ETag", "") != self._look.etag:
                    raise ArtifactUnreachable(f"{self.name} changed while it was read; it is read again later.")
                data = await self._body(response, end - start)
        if len(data) != end - start:
            raise ArtifactUnreachable(f"{self.name} ended early: {len(data)} bytes instead of {end - start}.")
        return data

    async def stream(self) -> AsyncIterator[bytes]:
        whole, self._whole = self._whole, None
        with spoken(self.name):
            async with AsyncExitStack() as stack:
                response = whole if whole is not None else await stack.enter_async_context(self._get({}))
                if response.status != 200:
                    raise self._refused(response)
                if response.headers.get("ETag", "") != self._look.etag:
                    raise ArtifactUnreachable(f"{self.name} changed while it was read; it is read again later.")
                async for chunk in response.content.iter_chunked(_CHUNK):
                    self.received_bytes += len(chunk)
                    yield chunk

    async def close(self) -> None:
        """The session belongs to the fetcher; an answer that nobody read to its end is given up."""
        await self._open.aclose()

    async def _body(self, response: aiohttp.ClientResponse, most: int) -> bytes:
        data = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK):
            data += chunk
            self.received_bytes += len(chunk)
            if len(data) > most:
                raise ArtifactUnreachable(f"{self.name} sends more than it was asked for; serve it as plain files.")
        return bytes(data)

    def _refused(self, response: aiohttp.ClientResponse) -> ArtifactUnreachable:
        where = shown(str(response.url)) if self.name.startswith("http") else self.name
        return refused(where, response.status, response.reason)

    @asynccontextmanager
    async def _get(self, conditions: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        url, own = self._hop
        headers = {**own, **conditions}
        for _ in range(self._limits.max_redirects + 1):
            exact = URL(url, encoded=self._exact and url == self._url)
            check_host(exact.raw_host or "", self._limits.blocked_networks)
            sent = headers if self._sign is None or url != self._url else self._sign(url, headers)
            async with self._session.get(exact, headers=sent, allow_redirects=False) as response:
                if response.status in _REDIRECTS and (location := response.headers.get("Location")):
                    target = _next_hop(self.name, url, location)
                    if urlsplit(target)[:2] != urlsplit(url)[:2]:
                        own, headers = {}, dict(conditions)
                    url = target
                    continue
                if response.status in (200, 206):
                    self._hop = (url, own)
                yield response
                return
        raise ArtifactUnreachable(
            f"{self.name} redirects more than {self._limits.max_redirects} times; name the file itself."
        )


def _look_of(response: aiohttp.ClientResponse, *, size: int | None, ranges: bool) -> Look:
    headers = response.headers
    return Look(headers.get("ETag", ""), headers.get("Last-Modified", ""), size, ranges)


def _next_hop(name: str, url: str, location: str) -> str:
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https"):
        raise ArtifactUnreachable(f"{name} redirects to {scheme}:, which is not followed; name the file itself.")
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise ArtifactUnreachable(f"{name} redirects from https to http, which is not followed; name the file itself.")
    return target
