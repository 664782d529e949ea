"""What to do next about the certificate: pure, from what the Secret and the configurations say now.

A rotation, each step small enough to be repeated or taken over by another Lease holder in the middle:

    1. ISSUE    nothing usable is served: a certificate at once (the one step without overlap)
    2. STAGE    renewal is due: a next certificate is kept in the Secret beside the one that is served
    3. PUBLISH  the configurations' caBundle is not what it should be: served, next and previous authority together
    4. SWITCH   both authorities were published for `publish_before`: the next certificate is served
    5. RETIRE   the switch was `retire_after` ago: the previous authority is no longer published
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from dippm_operator.certificates.issue import Serving, authorities, issue
from dippm_operator.certificates.settings import CertificateSettings

PUBLISHED_ANNOTATION = "dippm.dev/next-authority-published-at"
SWITCHED_ANNOTATION = "dippm.dev/certificate-switched-at"


class Step(StrEnum):
    """The next thing to do."""

    ISSUE = "Issue"
    STAGE = "Stage"
    PUBLISH = "Publish"
    MARK_PUBLISHED = "MarkPublished"
    SWITCH = "Switch"
    RETIRE = "Retire"
    WAIT = "Wait"


@dataclass(frozen=True, slots=True)
class CertificateState:
    """What the Secret holds."""

    serving: Serving | None = None
    next: Serving | None = None
    """Issued, not yet served."""
    previous_authority: bytes = b""
    """PEM of the authority that was in force before the last switch."""
    published_at: datetime | None = None
    """Since when the next authority is in every configuration."""
    switched_at: datetime | None = None

    def bundle(self) -> bytes:
        """The caBundle that configurations should carry now (PEM)."""
        parts = [s.authority for s in (self.serving, self.next) if s is not None] + [self.previous_authority]
        return b"".join(part.rstrip() + b"\n" for part in parts if part)


def decide(state: CertificateState, bundles: Iterable[bytes], now: datetime, settings: CertificateSettings) -> Step:
    """The next step; `bundles` are the caBundles of all webhooks of the configurations that exist."""
    serving = state.serving
    if serving is None or not _usable(serving, now, settings):
        return Step.ISSUE
    if state.next is not None and not _usable(state.next, now, settings):
        return Step.STAGE
    wanted = authorities(state.bundle())
    if any(authorities(bundle) != wanted for bundle in bundles):
        return Step.PUBLISH
    if state.next is not None:
        if state.published_at is None:
            return Step.MARK_PUBLISHED
        return Step.SWITCH if now - state.published_at >= settings.publish_before else Step.WAIT
    if state.previous_authority:
        if state.switched_at is None or now - state.switched_at >= settings.retire_after:
            return Step.RETIRE
        return Step.WAIT
    return Step.STAGE if serving.expires() - now <= settings.renew_before else Step.WAIT


def advance(state: CertificateState, step: Step, now: datetime, settings: CertificateSettings) -> CertificateState:
    """The state after a step that changes the Secret; PUBLISH and WAIT leave it as it is."""
    match step:
        case Step.ISSUE:
            old = state.serving.authority if state.serving is not None and authorities(state.serving.authority) else b""
            return CertificateState(
                serving=issue(settings.dns_names, now, settings.lifetime),
                previous_authority=old,
                switched_at=now,
            )
        case Step.STAGE:
            fresh = issue(settings.dns_names, now, settings.lifetime)
            return replace(state, next=fresh, published_at=None)
        case Step.MARK_PUBLISHED:
            return replace(state, published_at=now)
        case Step.SWITCH:
            assert state.serving is not None  # decide() says SWITCH only for a served certificate
            return CertificateState(serving=state.next, previous_authority=state.serving.authority, switched_at=now)
        case Step.RETIRE:
            return replace(state, previous_authority=b"", switched_at=None)
        case Step.PUBLISH | Step.WAIT:
            return state


def until_next(state: CertificateState, now: datetime, settings: CertificateSettings) -> timedelta:
    """How long nothing will be due, if nobody interferes; for a caller that sleeps."""
    if state.serving is None:
        return timedelta(0)
    if state.next is not None:
        due = (state.published_at or now) + settings.publish_before
    elif state.previous_authority:
        due = (state.switched_at or now) + settings.retire_after
    else:
        due = state.serving.expires() - settings.renew_before
    return max(due - now, timedelta(0))


def read_secret(secret: Mapping[str, Any] | None) -> CertificateState:
    """The state in a Secret; parts that are missing count as absent (`decide` finds those that are unsound)."""
    if secret is None:
        return CertificateState()
    data = {key: base64.b64decode(value or "") for key, value in (secret.get("data") or {}).items()}
    annotations = (secret.get("metadata") or {}).get("annotations") or {}

    def serving(prefix: str, authority: str) -> Serving | None:
        parts = [data.get(f"{prefix}.crt", b""), data.get(f"{prefix}.key", b""), data.get(authority, b"")]
        return Serving(*parts) if any(parts) else None

    return CertificateState(
        serving=serving("tls", "ca.crt"),
        next=serving("next", "next-ca.crt"),
        previous_authority=previous if authorities(previous := data.get("previous-ca.crt", b"")) else b"",
        published_at=_time(annotations.get(PUBLISHED_ANNOTATION)),
        switched_at=_time(annotations.get(SWITCHED_ANNOTATION)),
    )


def write_secret(
    secret: Mapping[str, Any] | None, state: CertificateState, settings: CertificateSettings
) -> dict[str, Any]:
    """The Secret that holds the state; labels and other annotations of the old one stay, and its resourceVersion."""
    files: dict[str, bytes] = {"previous-ca.crt": state.previous_authority}
    for serving, prefix, authority in ((state.serving, "tls", "ca.crt"), (state.next, "next", "next-ca.crt")):
        if serving is not None:
            files |= {
                f"{prefix}.crt": serving.certificate,
                f"{prefix}.key": serving.key,
                authority: serving.authority,
            }
    metadata = dict((secret or {}).get("metadata") or {"name": settings.secret, "namespace": settings.namespace})
    times = {PUBLISHED_ANNOTATION: state.published_at, SWITCHED_ANNOTATION: state.switched_at}
    kept = {k: v for k, v in (metadata.get("annotations") or {}).items() if k not in times}
    metadata["annotations"] = kept | {k: v.isoformat() for k, v in times.items() if v is not None}
    metadata.pop("managedFields", None)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": metadata,
        "data": {key: base64.b64encode(content).decode() for key, content in files.items() if content},
    }


def _usable(serving: Serving, now: datetime, settings: CertificateSettings) -> bool:
    return serving.is_sound() and serving.expires() > now and serving.names() >= set(settings.dns_names)


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None  # edited by hand: the step that sets it is simply taken again
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
