"""Liveness, readiness and metrics over plain HTTP, on the loop that does the work: a blocked loop does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


class Heartbeat:
    """What the workers last said of themselves."""

    def __init__(self, limit_seconds: float) -> None:
        self._limit = limit_seconds
        self._since: dict[int, float] = {}

    def begins(self, worker: int) -> None:
        """A worker took something up."""
        self._since[worker] = time.monotonic()

    def ends(self, worker: int) -> None:
        """It finished."""
        self._since.pop(worker, None)

    def stuck(self) -> float | None:
        """Seconds that the slowest has been at one thing, if that is beyond the limit."""
        longest = max((time.monotonic() - since for since in self._since.values()), default=0.0)
        return longest if longest > self._limit else None


class HealthServer:
    """`/healthz`, `/readyz` on one port; `/metrics` on another (0: that one is off)."""

    def __init__(
        self, heartbeat: Heartbeat, registry: CollectorRegistry, *, health_port: int, metrics_port: int
    ) -> None:
        self._heartbeat = heartbeat
        self._registry = registry
        self._ports = {health_port: self._health_routes(), metrics_port: self._metrics_routes()}
        if health_port == metrics_port:
            self._ports = {health_port: [*self._health_routes(), *self._metrics_routes()]}
        self._stack = AsyncExitStack()
        self.ready: Callable[[], bool] = lambda: False

    async def __aenter__(self) -> HealthServer:
        for port, routes in self._ports.items():
            if port:
                application = web.Application()
                application.add_routes(routes)
                runner = web.AppRunner(application, access_log=None)
                await runner.setup()
                self._stack.push_async_callback(runner.cleanup)
                await web.TCPSite(runner, "0.0.0.0", port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _health_routes(self) -> list[web.RouteDef]:
        return [web.get("/healthz", self._healthz), web.get("/readyz", self._readyz)]

    def _metrics_routes(self) -> list[web.RouteDef]:
        return [web.get("/metrics", self._metrics)]

    async def _healthz(self, _: web.Request) -> web.Response:
        if (seconds := self._heartbeat.stuck()) is not None:
            return web.Response(status=503, text=f"a worker has been at one InferenceJob for {seconds:.0f} s\n")
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self.ready() else web.Response(status=503, text="not yet\n")

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
