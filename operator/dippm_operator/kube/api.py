"""A small client of the Kubernetes API on aiohttp: the few verbs that the webhook and the certificates need."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp

from dippm_operator.kube.connection import Connection

METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""Accept header that asks for an object's metadata alone
(https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches)."""


class ApiFailure(Exception):
    """The API server answered with an error. `code` is the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class ApiClient:
    """Calls under one identity; paths as in the API reference, e.g. `/api/v1/namespaces/default`.

    Every call raises ApiFailure for an HTTP status of 400 or more, aiohttp.ClientError or TimeoutError where the
    server is not reached.
    """

    def __init__(self, connection: Connection, *, timeout_seconds: float = 10.0) -> None:
        self._connection = connection
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._session: aiohttp.ClientSession | None = None

    @property
    def namespace(self) -> str:
        """The namespace of the service account, or of the kubeconfig's context."""
        return self._connection.namespace

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._connection.tls))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, *, accept: str = "application/json", **params: str) -> dict[str, Any]:
        return await self._call("GET", path, params=params, accept=accept)

    async def get_or_none(self, path: str, *, accept: str = "application/json") -> dict[str, Any] | None:
        """The object, or None where there is none (404)."""
        try:
            return await self.get(path, accept=accept)
        except ApiFailure as failure:
            if failure.code == 404:
                return None
            raise

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return await self._call("POST", path, body=body)

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """PUT; with `metadata.resourceVersion` in the body a conflict is an ApiFailure of code 409."""
        return await self._call("PUT", path, body=body)

    async def json_patch(self, path: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
        """A JSON patch (RFC 6902); a `test` that fails is an ApiFailure of code 422."""
        return await self._call("PATCH", path, body=operations, content_type="application/json-patch+json")

    async def watch(self, path: str, *, silence_seconds: float, **params: str) -> AsyncIterator[dict[str, Any]]:
        """Watch events, one decoded line each, until the server ends the watch.

        `silence_seconds` bounds the wait for the next byte, so that a connection that died without a word is noticed.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=silence_seconds)
        async with self._open("GET", path, params=params | {"watch": "true"}, timeout=timeout) as response:
            await _raise_for_status(response)
            rest = b""
            # readline() stops at 64 KiB; an object may be larger.
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield json.loads(line)

    def _open(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Any:
        if self._session is None:
            raise RuntimeError("use ApiClient as an async context manager")
        return self._session.request(
            method,
            self._connection.server + path,
            params=params,
            headers={**self._connection.token.header(), **(headers or {})},
            data=data,
            timeout=timeout,
        )

    async def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> dict[str, Any]:
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = content_type
        data = None if body is None else json.dumps(body).encode()
        async with self._open(
            method, path, params=params or {}, timeout=self._timeout, headers=headers, data=data
        ) as response:
            if response.status == 401:
                self._connection.token.forget()
            await _raise_for_status(response)
            answer: dict[str, Any] = await response.json()
            return answer


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = await response.text()
    try:
        message = str(json.loads(text).get("message", text))
    except (ValueError, AttributeError):
        message = text
    raise ApiFailure(response.status, message)
