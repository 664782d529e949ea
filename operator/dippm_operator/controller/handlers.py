"""kopf's handlers: they take in what changed and ask for a look. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import kopf

from dippm_operator.controller.queue import WorkQueue
from dippm_operator.controller.resolve import Resolver
from dippm_operator.controller.state import DELETED, ClusterState, Key
from dippm_operator.kube import Connection
from dippm_operator.resource.names import GROUP, JOB_LABEL, PLURAL, VERSION


def register(
    registry: kopf.OperatorRegistry,
    state: ClusterState,
    queue: WorkQueue[Key],
    resolver: Resolver,
    connection: Connection,
) -> None:
    """Register all handlers in a registry of their own."""

    @kopf.on.login(registry=registry, retries=3)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return await login_as(connection)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def inference_job(event: Mapping[str, Any], **_: Any) -> None:
        body = event["object"]
        if event["type"] == DELETED:
            resolver.forget(body["metadata"].get("uid", ""))
        queue.add(state.see_inference_job(event["type"], body))

    @kopf.on.event("batch", "v1", "jobs", labels={JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def job(event: Mapping[str, Any], **_: Any) -> None:
        key = state.see_job(event["type"], event["object"])
        if state.inference_job(key) is not None:
            queue.add(key)

    @kopf.on.event("", "v1", "pods", labels={JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def pod(event: Mapping[str, Any], **_: Any) -> None:
        key = state.see_pod(event["type"], event["object"])
        if key is not None and state.inference_job(key) is not None:
            queue.add(key)

    @kopf.on.event("", "v1", "nodes", registry=registry)
    async def node(event: Mapping[str, Any], **_: Any) -> None:
        if state.see_node(event["type"], event["object"]):
            for key in state.inference_jobs:
                queue.add(key)


async def login_as(connection: Connection) -> kopf.ConnectionInfo:
    """The identity of our own calls for kopf's client; kopf asks at the start, and again when the server says 401.

    (kopf's `login_via_client` reads the default kubeconfig only, and with the half of the library that blocks.)
    """
    await connection.load(connection.configuration)
    found = connection.configuration
    scheme, _, token = (await connection.authorization() or "").partition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
        proxy_url=found.proxy,
    )


def kopf_settings() -> kopf.OperatorSettings:
    """kopf's settings.

    Watches end on both sides: one that the server forgot about would be silent for ever. No handler of ours makes kopf
    write to an object; should one ever, then under our own prefix.
    """
    settings = kopf.OperatorSettings()
    settings.watching.server_timeout = 270
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 10
    settings.watching.label_selectors["batch", "v1", "jobs"] = JOB_LABEL
    settings.watching.label_selectors["", "v1", "pods"] = JOB_LABEL
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.persistence.finalizer = f"{GROUP}/operator"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    return settings
