"""The API stand-in of the operator's tests: kmock's emulator, taught what our client relies on."""

from __future__ import annotations

import uuid
from typing import Any

import attrs
import kmock
from aiohttp import web


@attrs.define(kw_only=True)
class ApiStandIn(kmock.KubernetesEmulator):
    """Adds uids to what is created, and PUT (whole or of the status) with conflicts by resourceVersion."""

    conflicts: int = 0
    """So many of the next PUTs are refused as if somebody had written in between."""

    async def _handle(self, request: kmock.Request) -> web.StreamResponse:
        if request.resource is not None and request.method == "POST":
            request.data["metadata"].setdefault("uid", str(uuid.uuid4()))
        if request.resource is not None and request.method == "PUT":
            self[kmock.method.PUT] << (lambda asked: self._replace(asked))
        return await super()._handle(request)

    async def _replace(self, request: kmock.Request) -> dict[str, Any]:
        stored = self.objects[request.resource, request.namespace, request.name]
        given = request.data["metadata"].get("resourceVersion")
        if self.conflicts or (given and given != stored["metadata"].get("resourceVersion")):
            self.conflicts = max(self.conflicts - 1, 0)
            raise kmock.KubernetesError(status=409, reason="Conflict", message="the object has been modified")
        part = "status" if request.url.path.endswith("/status") else "spec"
        stored[part] = request.data[part]
        stored["metadata"] = dict(stored["metadata"]) | {"resourceVersion": str(uuid.uuid4())}
        return dict(stored.raw)
