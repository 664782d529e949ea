"""`https:` and `http:` URIs, streamed to disk under limits."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

import aiohttp

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable
from dippm_operator.fetch.address import AddressBlocked, FilteringResolver, check_literal
from dippm_operator.fetch.limits import FetchLimits

_CHUNK = 1024 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


@dataclass(frozen=True, slots=True)
class Download:
    """The answer to a GET: the new content on disk, or that the known one is current."""

    not_modified: bool
    etag: str = ""
    last_modified: str = ""
    size_bytes: int = 0
    content_digest: str = ""


def client(limits: FetchLimits) -> aiohttp.ClientSession:
    """The session for downloads. Close it after use."""
    timeout = aiohttp.ClientTimeout(
        total=limits.total_seconds, sock_connect=limits.connect_seconds, sock_read=limits.read_seconds
    )
    connector = aiohttp.TCPConnector(resolver=FilteringResolver(limits.blocked_networks), limit=16)
    return aiohttp.ClientSession(
        timeout=timeout, connector=connector, auto_decompress=False, headers={"Accept-Encoding": "identity"}
    )


def shown(uri: str) -> str:
    """The URI without user, password and query: they may be secrets, and messages are read by others."""
    parts = urlsplit(uri)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


async def download(
    session: aiohttp.ClientSession,
    uri: str,
    path: Path,
    *,
    limits: FetchLimits,
    known: Mapping[str, str],
    make_room: Callable[[int], None],
) -> Download:
    """GET a URI into a file.

    `known` are conditional headers (`If-None-Match`) of the copy that is there already; `make_room` is told the size
    before anything is written, where the server says it.

    Raises ArtifactUnreachable, ArtifactTooLarge.
    """
    url = uri
    try:
        for _ in range(limits.max_redirects + 1):
            check_literal(urlsplit(url).hostname or "", limits.blocked_networks)
            async with session.get(url, headers=known, allow_redirects=False) as response:
                if response.status in _REDIRECTS and (location := response.headers.get("Location")):
                    url = _next_hop(uri, url, location)
                    continue
                if response.status == 304 and known:
                    return Download(not_modified=True)
                if response.status != 200:
                    raise ArtifactUnreachable(
                        f"{shown(url)} answered {response.status} {response.reason}; check spec.model.uri."
                    )
                return await _save(response, uri, path, limits, make_room)
    except AddressBlocked as error:
        raise ArtifactUnreachable(f"{shown(uri)}: {error}; use another host.") from None
    except TimeoutError:
        raise ArtifactUnreachable(f"{shown(uri)} did not answer in time; check the host, or try again later.") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, AddressBlocked):
            raise ArtifactUnreachable(f"{shown(uri)}: {error.os_error}; use another host.") from None
        reason = str(error).strip() or type(error).__name__
        raise ArtifactUnreachable(f"{shown(uri)} cannot be reached ({reason}); check spec.model.uri.") from None
    raise ArtifactUnreachable(f"{shown(uri)} redirects more than {limits.max_redirects} times; name the file itself.")


def _next_hop(uri: str, url: str, location: str) -> str:
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https"):
        raise ArtifactUnreachable(f"{shown(uri)} redirects to {scheme}:, which is not followed; name the file itself.")
    if urlsplit(url).scheme == "https" and scheme == "http":
        raise ArtifactUnreachable(
            f"{shown(uri)} redirects from https to http, which is not followed; name the file itself."
        )
    return target


async def _save(
    response: aiohttp.ClientResponse, uri: str, path: Path, limits: FetchLimits, make_room: Callable[[int], None]
) -> Download:
    declared = response.content_length
    if declared is not None and declared > limits.max_bytes:
        raise ArtifactTooLarge(f"{shown(uri)} has {declared} bytes; at most {limits.max_bytes} are read.")
    state, size = hashlib.sha256(), 0

    if declared is not None:
        make_room(declared)
    with path.open("wb") as stream:

        def write(chunk: bytes) -> None:
            state.update(chunk)
            try:
                stream.write(chunk)
                stream.flush()  # what does not fit shows here, where it can be told
            except OSError as error:
                raise ArtifactTooLarge(
                    f"{shown(uri)} cannot be stored ({error.strerror}); give the cache more space."
                ) from None

        async for chunk in response.content.iter_chunked(_CHUNK):
            size += len(chunk)
            if size > limits.max_bytes:
                raise ArtifactTooLarge(f"{shown(uri)} has more than {limits.max_bytes} bytes, which is the limit.")
            await asyncio.to_thread(write, chunk)  # hashing and a slow disk would hold the loop
    return Download(
        not_modified=False,
        etag=response.headers.get("ETag", ""),
        last_modified=response.headers.get("Last-Modified", ""),
        size_bytes=size,
        content_digest="sha256:" + state.hexdigest(),
    )
