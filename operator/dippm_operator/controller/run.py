"""The operator's life: wait for the Lease, then watch and work until it is lost or the process is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Coroutine

import aiohttp
import kopf

from dippm_operator.certificates import CertificateSettings, ensure_certificates
from dippm_operator.controller.claims import ClaimReader
from dippm_operator.controller.handlers import kopf_settings, register
from dippm_operator.controller.health import HealthServer, Heartbeat
from dippm_operator.controller.lease import Lease
from dippm_operator.controller.metrics import JobsByReadiness, Metrics
from dippm_operator.controller.queue import WorkQueue
from dippm_operator.controller.reconcile import Reconciler
from dippm_operator.controller.resolve import AsyncPredictor, Resolver
from dippm_operator.controller.secrets import secret_reader
from dippm_operator.controller.settings import Settings
from dippm_operator.controller.state import ClusterState, Key
from dippm_operator.controller.workload import Workloads
from dippm_operator.failures import in_words
from dippm_operator.fetch import ArtifactCache, Fetcher
from dippm_operator.kube import ApiClient, ApiFailure, Connection
from dippm_operator.predict import predictor_version

logger = logging.getLogger(__name__)

CERTIFICATE_RETRY_SECONDS = 15.0


async def run(settings: Settings, predictor: AsyncPredictor) -> None:
    """Run until told to stop. Raises LeaseLost when another may be active: the process must end then."""
    metrics, state = Metrics(), ClusterState(settings.declared)
    metrics.registry.register(JobsByReadiness(state))
    heartbeat = Heartbeat(limit_seconds=settings.prediction_seconds + settings.fetch.total_seconds + 60)
    health = HealthServer(
        heartbeat, metrics.registry, health_port=settings.health_port, metrics_port=settings.metrics_port
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    connection = await Connection.from_environment(settings.kubeconfig)
    async with ApiClient(connection) as api, health:
        lease = Lease(api, namespace=settings.namespace, name=settings.lease, identity=settings.identity)
        health.ready = lambda: True  # waiting for the Lease is all that a second one has to do
        await _first(lease.acquire(), stop.wait())
        if stop.is_set():
            return
        metrics.leading.set(1)
        try:
            await _lead(settings, connection, api, lease, state, metrics, heartbeat, predictor, stop)
        finally:
            metrics.leading.set(0)
            await lease.release()


async def _lead(
    settings: Settings,
    connection: Connection,
    api: ApiClient,
    lease: Lease,
    state: ClusterState,
    metrics: Metrics,
    heartbeat: Heartbeat,
    predictor: AsyncPredictor,
    stop: asyncio.Event,
) -> None:
    queue: WorkQueue[Key] = WorkQueue()
    cache = await asyncio.to_thread(ArtifactCache, settings.cache / "artifacts", settings.artifact_bytes)
    fetcher = Fetcher(cache, settings.fetch)
    version = await asyncio.to_thread(predictor_version)
    resolver = Resolver(
        fetcher,
        predictor,
        metrics,
        predictor_version=version,
        read_secret=secret_reader(api),
        claims=ClaimReader(api, cache, settings.claims),
    )
    reconciler = Reconciler(
        api,
        state,
        resolver,
        Workloads(api, state, metrics),
        default_device=settings.default_device,
        identity=settings.identity,
    )
    await _see_nodes(api, state)
    registry = kopf.OperatorRegistry()
    register(registry, state, queue, resolver, connection)
    watching = kopf.operator(
        registry=registry,
        settings=kopf_settings(),
        standalone=True,
        clusterwide=not settings.watch_namespaces,
        namespaces=settings.watch_namespaces,
    )
    working = [_work(number, queue, reconciler, metrics, heartbeat) for number in range(settings.workers)]
    certificates = [_care_for_certificates(api, settings)] if settings.webhook_service else []
    try:
        await _first(lease.keep(), watching, stop.wait(), *working, *certificates)
    finally:
        queue.close()
        await fetcher.close()


async def _first(*coroutines: Coroutine[object, object, object]) -> None:
    """Run all until one ends or fails; end the others, and pass a failure on."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _see_nodes(api: ApiClient, state: ClusterState) -> None:
    """Know the nodes before the first decision: without them a Job would be made for a slice that nobody offers."""
    try:
        for node in (await api.get("/api/v1/nodes"))["items"]:
            state.see_node(None, node)
    except ApiFailure as failure:
        logger.warning("nodes cannot be listed, so no inventory is known: %s", failure)


async def _work(
    number: int, queue: WorkQueue[Key], reconciler: Reconciler, metrics: Metrics, heartbeat: Heartbeat
) -> None:
    """Take keys from the queue for ever."""
    while True:
        key = await queue.get()
        heartbeat.begins(number)
        started = time.perf_counter()
        result = "failed"
        try:
            again = await reconciler.reconcile(key)
            queue.forget(key)
            if again is not None:
                queue.add_after(key, again)
            result = "ok"
        except ApiFailure as failure:
            result = "conflict" if failure.code == 409 else "failed"
            seconds = queue.retry(key)
            level = logging.DEBUG if failure.code == 409 else logging.WARNING
            logger.log(level, "%s/%s: the API server says %s; again in %.0f s", *key, failure, seconds)
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.warning(
                "%s/%s: API server not reached (%s); again in %.0f s", *key, in_words(error), queue.retry(key)
            )
        except Exception:  # one object that trips a fault of ours must not stop the others
            logger.exception("%s/%s: a fault of the operator; again in %.0f s", *key, queue.retry(key))
        finally:
            queue.done(key)
            heartbeat.ends(number)
            metrics.queued.set(len(queue))
            metrics.reconciles.labels(result).inc()
            metrics.reconcile_seconds.observe(time.perf_counter() - started)


async def _care_for_certificates(api: ApiClient, settings: Settings) -> None:
    """Issue and rotate the webhook's certificate, as the holder of the Lease."""
    certificate = CertificateSettings.for_service(
        settings.namespace,
        settings.webhook_service,
        secret=settings.certificate_secret,
        configuration=settings.webhook_configuration,
        provider=settings.certificates,
    )
    while True:
        wait = CERTIFICATE_RETRY_SECONDS
        try:
            wait = (await ensure_certificates(api, certificate)).again_in_seconds
        except (ApiFailure, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("the webhook's certificate: %s; again in %.0f s", in_words(error), wait)
        await asyncio.sleep(wait)
