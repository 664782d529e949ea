"""`dippm-webhook`: the webhook process.

It is stateless; two or more replicas answer side by side. It imports neither torch nor TVM, and no predictor.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from dippm.errors import DippmError
from dippm_operator.kube.api import ApiClient
from dippm_operator.kube.connection import Connection
from dippm_operator.webhook.cache import JobCache
from dippm_operator.webhook.certificate import ServingCertificate
from dippm_operator.webhook.facts import FactFinder
from dippm_operator.webhook.jobs import JobValidation
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.pods import PodPatches
from dippm_operator.webhook.readiness import Readiness
from dippm_operator.webhook.server import add_probes, review_application
from dippm_operator.webhook.settings import Settings, parse_settings

logger = logging.getLogger(__name__)

IDLE_CONNECTION_SECONDS = 120.0
"""Longer than the API server keeps an idle connection (90 s): whoever closes first must be the one who sends."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code (2 with one sentence where it cannot start)."""
    settings = parse_settings(arguments)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve(settings))
    except (DippmError, OSError) as error:
        print(f"dippm-webhook: {error}", file=sys.stderr)
        return 2
    return 0


async def serve(settings: Settings) -> None:
    """Run until a signal asks for the end, then drain: first not ready, later not listening."""
    connection = await Connection.from_environment(settings.kubeconfig)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings, connection) as readiness:
        gc.freeze()  # what is alive now stays alive: full collections need not walk it between two answers
        await stop.wait()
        readiness.stopping = True
        logger.info("asked to stop: answering for another %.0f s", settings.drain_seconds)
        await asyncio.sleep(settings.drain_seconds)


@asynccontextmanager
async def running(settings: Settings, connection: Connection) -> AsyncIterator[Readiness]:
    """The webhook's listeners and background tasks, for as long as the context is open."""
    metrics, certificate = Metrics(), ServingCertificate(settings.certificates)
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiClient(connection, timeout_seconds=settings.budget_seconds))
        cache, facts = JobCache(api), FactFinder(api)
        readiness = Readiness(cache, certificate, api, settings.webhook_configuration)
        certificate.load()
        await stack.enter_async_context(
            _background(
                readiness,
                job_cache=cache.run(),
                certificate_reload=certificate.watch(),
                trust_check=readiness.watch(),
            )
        )

        pods, jobs = PodPatches(cache, facts, metrics), JobValidation(cache, facts, metrics)
        answerers = {"mutate": pods.answer, "mutate-owned": pods.answer_owned, "validate": jobs.answer}
        reviews = review_application(answerers, settings, metrics, stopping=lambda: readiness.stopping)
        probes = web.Application()
        for application in (probes, reviews):
            add_probes(application, readiness, cache, certificate, metrics)
        await _listen(stack, probes, settings.host, settings.health_port, None)
        await _listen(stack, reviews, settings.host, settings.port, certificate)
        logger.info("answering on %s:%d", settings.host, settings.port)
        yield readiness


@asynccontextmanager
async def _background(readiness: Readiness, **work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Tasks that run for ever and are cancelled at the end; one that ends before makes /healthz fail."""
    tasks = [asyncio.create_task(coroutine, name=name) for name, coroutine in work.items()]

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            logger.error("%s ended; the process wants a restart", task.get_name(), exc_info=task.exception())
            readiness.dead = f"{task.get_name()} ended"

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _listen(
    stack: AsyncExitStack, application: web.Application, host: str, port: int, certificate: ServingCertificate | None
) -> None:
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=5.0, keepalive_timeout=IDLE_CONNECTION_SECONDS
    )
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, host, port, ssl_context=certificate.context if certificate else None).start()


if __name__ == "__main__":
    sys.exit(main())
