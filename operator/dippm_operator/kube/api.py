"""The few verbs that the operator and the webhook need, spoken by `kubernetes.aio` on paths and plain objects.

The library's generated models and its dynamic client, which first asks the server what kinds there are, are not needed.
Watches are its requests too, but read here: its `Watch` makes a second client each time, which holds the loop for
20 ms or more, and raises KeyError for an ERROR event without a reason (docs/adr/0007-one-adapter-over-the-client.md).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import aiohttp

from dippm_operator.kube.connection import Connection

if TYPE_CHECKING:
    from kubernetes.aio.client.api_client import ApiClient as KubernetesClient

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
    server is not reached. On 401 the identity is read again, and where it changed the call is sent once more.
    """

    def __init__(self, connection: Connection, *, timeout_seconds: float = 10.0) -> None:
        self._connection = connection
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._client: KubernetesClient | None = None

    async def __aenter__(self) -> Self:
        self._client = self._connection.client()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()  # type: ignore[no-untyped-call]
            self._client = None

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

    async def get_text(self, path: str, *, most: int, **params: str) -> str:
        """A text, as a pod's log is; no more than so many bytes of it."""
        headers = {"Accept": "*/*"}
        async with await self._open(
            "GET", path, {**params, "limitBytes": str(most)}, headers, None, self._timeout
        ) as answer:
            await _raise_for_status(answer)
            body = bytearray()
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > most:
                    break
            return body[:most].decode(errors="replace")

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
        headers = {"Accept": "application/json"}
        async with await self._open("GET", path, params | {"watch": "true"}, headers, None, timeout) as response:
            await _raise_for_status(response)
            # Lines of up to 4 MiB: the library asks aiohttp for buffers that hold any object of the API.
            async for line in response.content:
                if line.strip():
                    yield json.loads(line)

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
        headers = {"Accept": accept, "Content-Type": content_type}
        async with await self._open(method, path, params or {}, headers, body, self._timeout) as response:
            await _raise_for_status(response)
            answer: dict[str, Any] = await response.json()
            return answer

    async def _open(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: Any,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """The response, its body not read yet; the caller closes it."""
        identity = await self._connection.authorization()
        response = await self._send(method, path, params, headers, body, timeout, identity)
        if response.status == 401 and await self._connection.renew(identity):
            response.release()
            identity = await self._connection.authorization()
            response = await self._send(method, path, params, headers, body, timeout, identity)
        return response

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        body: Any,
        timeout: aiohttp.ClientTimeout,
        identity: str | None,
    ) -> aiohttp.ClientResponse:
        if self._client is None:
            raise RuntimeError("use ApiClient as an async context manager")
        signed = {**headers, "Authorization": identity} if identity else dict(headers)
        request = await self._client.param_serialize(
            method, path, query_params=dict(params), header_params=signed, body=body
        )
        answer = await self._client.call_api(*request, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        return response


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = await response.text()
    try:
        message = str(json.loads(text).get("message", text))
    except (ValueError, AttributeError):
        message = text
    raise ApiFailure(response.status, message)
