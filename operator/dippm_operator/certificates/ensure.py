"""Reads the Secret and the configurations, takes the steps that are due, writes them back."""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from dippm_operator.certificates.rotation import (
    CertificateState,
    Step,
    advance,
    decide,
    read_secret,
    until_next,
    write_secret,
)
from dippm_operator.certificates.settings import CertificateSettings, Provider

logger = logging.getLogger(__name__)

KINDS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
MOST_STEPS = 8
"""Issue, publish, mark and a whole rotation without waiting are six; more means that somebody undoes them."""
LONGEST_SLEEP_SECONDS = 300.0
"""A caBundle that somebody emptied is put back within this time."""
MISSING_SLEEP_SECONDS = 10.0
"""The same for a configuration that does not exist yet."""


class Api(Protocol):
    """The calls that are needed; `dippm_operator.kube.api.ApiClient` has them."""

    async def get_or_none(self, path: str, /) -> dict[str, Any] | None: ...
    async def create(self, path: str, body: Mapping[str, Any], /) -> dict[str, Any]: ...
    async def replace(self, path: str, body: Mapping[str, Any], /) -> dict[str, Any]: ...
    async def json_patch(self, path: str, operations: list[dict[str, Any]], /) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class CertificateReport:
    """What was done and when to come again."""

    steps: tuple[Step, ...]
    """Steps that were taken, in order; empty when all was well."""
    expires: datetime | None
    """End of validity of the served certificate; None with cert-manager."""
    missing: tuple[str, ...]
    """Webhook configurations that do not exist."""
    again_in_seconds: float
    """Call again after at most this long."""


async def ensure_certificates(
    api: Api, settings: CertificateSettings, *, now: datetime | None = None
) -> CertificateReport:
    """Issue, publish or rotate as far as is due now. Call it from the Lease holder only, on a timer.

    Writes are guarded by resourceVersion and by `test` operations: where somebody else wrote in between the API's
    error goes to the caller, who calls again. With cert-manager nothing is read or written.
    """
    if settings.provider is Provider.CERT_MANAGER:
        return CertificateReport((), None, (), LONGEST_SLEEP_SECONDS)
    now = now or datetime.now(UTC)
    path = f"/api/v1/namespaces/{settings.namespace}/secrets"
    secret = await api.get_or_none(f"{path}/{settings.secret}")
    configurations = {kind: await api.get_or_none(_configuration_path(kind, settings)) for kind in KINDS}
    state = read_secret(secret)
    taken: list[Step] = []
    while len(taken) < MOST_STEPS:
        bundles = [bundle for c in configurations.values() if c is not None for bundle in _bundles(c)]
        step = decide(state, bundles, now, settings)
        if step is Step.WAIT:
            break
        if step is Step.PUBLISH:
            for kind, configuration in configurations.items():
                if configuration is not None:
                    configurations[kind] = await _publish(api, kind, configuration, state, settings)
        else:
            state = advance(state, step, now, settings)
            body = write_secret(secret, state, settings)
            secret = await (
                api.create(path, body) if secret is None else api.replace(f"{path}/{settings.secret}", body)
            )
        taken.append(step)
        logger.info("certificate of %s: %s", settings.dns_names[0], step.value)
    missing = tuple(kind for kind, configuration in configurations.items() if configuration is None)
    longest = MISSING_SLEEP_SECONDS if missing else LONGEST_SLEEP_SECONDS
    return CertificateReport(
        steps=tuple(taken),
        expires=state.serving.expires() if state.serving is not None else None,
        missing=missing,
        again_in_seconds=min(max(until_next(state, now, settings).total_seconds(), 1.0), longest),
    )


def _configuration_path(kind: str, settings: CertificateSettings) -> str:
    return f"/apis/admissionregistration.k8s.io/v1/{kind}/{settings.configuration}"


def _bundles(configuration: Mapping[str, Any]) -> list[bytes]:
    return [
        base64.b64decode((webhook.get("clientConfig") or {}).get("caBundle") or "")
        for webhook in configuration.get("webhooks") or ()
    ]


async def _publish(
    api: Api, kind: str, configuration: Mapping[str, Any], state: CertificateState, settings: CertificateSettings
) -> dict[str, Any]:
    """Set the caBundle of each webhook; the `test` refuses a list whose order changed since it was read."""
    bundle = base64.b64encode(state.bundle()).decode()
    operations: list[dict[str, Any]] = []
    for index, webhook in enumerate(configuration.get("webhooks") or ()):
        place = f"/webhooks/{index}"
        operations += [
            {"op": "test", "path": f"{place}/name", "value": webhook["name"]},
            {"op": "add", "path": f"{place}/clientConfig/caBundle", "value": bundle},
        ]
    return await api.json_patch(_configuration_path(kind, settings), operations)
