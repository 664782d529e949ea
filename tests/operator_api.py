"""The API stand-in of the operator's tests: kmock's emulator, taught what our client relies on."""

from __future__ import annotations

import uuid
from typing import Any

import kmock
from aiohttp import web


class ApiStandIn(kmock.KubernetesEmulator):
    """Adds uids to what is created, and PUT (whole or of the status) with conflicts by resourceVersion."""

    conflicts: int = 0
    """So many of the next PUTs are refused as if somebody had written in between."""
    refusal: str = ""
    """Why no Job may be made; empty where it may."""

    async def _handle(self, request: kmock.Request) -> web.StreamResponse:
        if request.resource is not None and request.method == "POST":
            if self.refusal and request.resource.plural == "jobs":
                return web.json_response({"kind": "Status", "code": 403, "message": self.refusal}, status=403)
            request.data["metadata"].setdefault("uid", str(uuid.uuid4()))
        if request.resource is not None and request.method == "PUT":
            self[kmock.method.PUT] << (lambda asked: self._replace(asked))
        return await super()._handle(request)

    async def _replace(self, request: kmock.Request) -> dict[str, Any]:
        if (request.resource, request.namespace, request.name) not in self.objects:
            raise kmock.KubernetesError(status=404, reason="NotFound", message="there is no such object")
        stored = self.objects[request.resource, request.namespace, request.name]
        given = request.data["metadata"].get("resourceVersion")
        if self.conflicts or (given and given != stored["metadata"].get("resourceVersion")):
            self.conflicts = max(self.conflicts - 1, 0)
            raise kmock.KubernetesError(status=409, reason="Conflict", message="the object has been modified")
        part = "status" if request.url.path.endswith("/status") else "spec"
        stored[part] = request.data[part]
        stored["metadata"] = dict(stored["metadata"]) | {"resourceVersion": str(uuid.uuid4())}
        return dict(stored.raw)
