"""The first hop: aiohttp applications for reviews and for probes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from dippm.errors import ManifestError
from dippm_operator.webhook.admit import Answerer, admit
from dippm_operator.webhook.cache import JobCache
from dippm_operator.webhook.certificate import ServingCertificate
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.readiness import Readiness
from dippm_operator.webhook.settings import Settings

logger = logging.getLogger(__name__)

TIMEOUT_SHARE = 0.8
"""Part of the API server's own time-out (its `timeout` query parameter) that an answer may take."""


def review_application(
    answerers: Mapping[str, Answerer], settings: Settings, metrics: Metrics, *, stopping: Callable[[], bool]
) -> web.Application:
    """POST /ENDPOINT for each answerer. Bodies above the cap are answered with 413, no review with 400.

    While `stopping`, each answer closes its connection, so that API servers turn to another replica before this one
    is gone.
    """
    application = web.Application(client_max_size=settings.max_body_bytes)
    for endpoint, answerer in answerers.items():
        application.router.add_post(f"/{endpoint}", _handler(endpoint, answerer, settings, metrics, stopping))
    return application


def add_probes(
    application: web.Application,
    readiness: Readiness,
    cache: JobCache,
    certificate: ServingCertificate,
    metrics: Metrics,
) -> None:
    """GET /healthz (the loop turns, the watches run), /readyz (or 503 with the reason) and /metrics."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text=f"{readiness.dead}\n", status=503) if readiness.dead else web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        why_not = readiness.why_not()
        return web.Response(text=f"not ready: {why_not}\n", status=503) if why_not else web.Response(text="ok\n")

    async def exposition(_: web.Request) -> web.Response:
        metrics.jobs.set(len(cache))
        metrics.silence.set(cache.silence_seconds)
        metrics.ready.set(not readiness.why_not())
        if certificate.expires is not None:
            metrics.expires.set(certificate.expires.timestamp())
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application.router.add_get("/healthz", healthz)
    application.router.add_get("/readyz", readyz)
    application.router.add_get("/metrics", exposition)


def _handler(
    endpoint: str, answerer: Answerer, settings: Settings, metrics: Metrics, stopping: Callable[[], bool]
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        with metrics.step(endpoint, "read"):
            body = await request.read()
        budget = min(settings.budget_seconds, _seconds(request.query.get("timeout")) * TIMEOUT_SHARE)
        try:
            answer = await admit(body, answerer, endpoint=endpoint, budget_seconds=budget, metrics=metrics)
        except ManifestError as error:
            return web.Response(text=f"{error}\n", status=400)
        response = web.Response(body=answer, content_type="application/json")
        if stopping():
            response.force_close()
        return response

    return handle


def _seconds(duration: str | None) -> float:
    """The API server's `timeout=5s`; infinite where it says nothing that is understood."""
    try:
        return float((duration or "").removesuffix("s"))
    except ValueError:
        return float("inf")
