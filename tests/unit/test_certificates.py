"""Certificates: sound ones are issued, and no step of a rotation leaves an API server that refuses the webhook."""

from __future__ import annotations

import base64
import copy
import ssl
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dippm_operator.certificates import CertificateSettings, Provider, ensure_certificates
from dippm_operator.certificates.ensure import KINDS
from dippm_operator.certificates.issue import authorities, issue
from dippm_operator.certificates.rotation import Step, decide, read_secret, write_secret
from dippm_operator.kube.api import ApiFailure

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SETTINGS = CertificateSettings.for_service(
    "dippm-system", "dippm-webhook", secret="dippm-webhook-tls", configuration="dippm", provider="self"
)


class Cluster:
    """A Secret and two configurations, with resourceVersions and JSON patches of the kind that is sent."""

    def __init__(self, *, installed: bool = True) -> None:
        self.secret: dict[str, Any] | None = None
        self.configurations = {kind: _configuration() for kind in KINDS} if installed else {}
        self.writes: list[str] = []
        self.conflict = False

    async def get_or_none(self, path: str) -> dict[str, Any] | None:
        if "/secrets/" in path:
            return copy.deepcopy(self.secret)
        return copy.deepcopy(self.configurations.get(path.split("/")[4]))

    async def create(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert path == "/api/v1/namespaces/dippm-system/secrets"
        if self.secret is not None:
            raise ApiFailure(409, "already exists")
        return self._store(body, 1)

    async def replace(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert path == "/api/v1/namespaces/dippm-system/secrets/dippm-webhook-tls"
        assert self.secret is not None
        held = self.secret["metadata"]["resourceVersion"]
        if self.conflict or body["metadata"]["resourceVersion"] != held:
            raise ApiFailure(409, "the object has been modified")
        return self._store(body, int(held) + 1)

    def _store(self, body: Mapping[str, Any], version: int) -> dict[str, Any]:
        self.secret = copy.deepcopy(dict(body))
        self.secret["metadata"]["resourceVersion"] = str(version)
        self.writes.append("secret")
        self.check()
        return copy.deepcopy(self.secret)

    async def json_patch(self, path: str, operations: list[dict[str, Any]]) -> dict[str, Any]:
        kind = path.split("/")[4]
        for operation in operations:
            _, listing, index, *rest = operation["path"].split("/")
            webhook = self.configurations[kind][listing][int(index)]
            if operation["op"] == "test":
                assert webhook[rest[0]] == operation["value"]
            else:
                assert rest == ["clientConfig", "caBundle"]
                webhook["clientConfig"]["caBundle"] = operation["value"]
        self.writes.append(kind)
        self.check()
        return copy.deepcopy(self.configurations[kind])

    def bundles(self) -> list[bytes]:
        return [
            base64.b64decode(webhook["clientConfig"].get("caBundle", ""))
            for configuration in self.configurations.values()
            for webhook in configuration["webhooks"]
        ]

    trusted = False

    def check(self) -> None:
        """Once the served certificate was trusted everywhere, it is at every moment."""
        state = read_secret(self.secret)
        if state.serving is None:
            return
        mine = authorities(state.serving.authority)
        now = all(mine <= authorities(bundle) for bundle in self.bundles())
        assert now or not self.trusted, "an API server refuses the certificate that is served"
        self.trusted = self.trusted or now


def _configuration() -> dict[str, Any]:
    return {"webhooks": [{"name": f"{name}.dippm.dev", "clientConfig": {"service": {}}} for name in "ab"]}


def handshake(serving: Any, authority: bytes, host: str) -> None:
    """A TLS handshake in memory, as OpenSSL judges it. Raises ssl.SSLError."""
    import tempfile
    from pathlib import Path

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        certificate, key = Path(folder) / "crt", Path(folder) / "key"
        certificate.write_bytes(serving.certificate)
        key.write_bytes(serving.key)
        server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cadata=authority.decode())
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in tuple(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                pass


def test_an_issued_certificate_passes_strict_verification() -> None:
    serving = issue(("dippm-webhook.dippm-system.svc", "127.0.0.1"), datetime.now(UTC), timedelta(days=1))
    assert serving.is_sound()
    handshake(serving, serving.authority, "dippm-webhook.dippm-system.svc")
    handshake(serving, serving.authority, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(serving, serving.authority, "other.dippm-system.svc")
    other = issue(("dippm-webhook.dippm-system.svc",), datetime.now(UTC), timedelta(days=1))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(serving, other.authority, "dippm-webhook.dippm-system.svc")
    assert not replace(serving, key=other.key).is_sound()
    assert not replace(serving, authority=other.authority).is_sound()
    assert not replace(serving, certificate=b"nonsense").is_sound()


async def test_the_first_certificate_is_served_and_published_at_once() -> None:
    cluster = Cluster()
    report = await ensure_certificates(cluster, SETTINGS, now=NOW)
    assert report.steps == (Step.ISSUE, Step.PUBLISH)
    assert report.expires == NOW + SETTINGS.lifetime
    assert cluster.secret is not None
    assert cluster.secret["type"] == "kubernetes.io/tls"
    assert {"tls.crt", "tls.key", "ca.crt"} <= set(cluster.secret["data"])
    assert b"PRIVATE KEY" not in base64.b64decode(cluster.secret["data"]["ca.crt"])
    assert cluster.trusted
    cluster.writes.clear()
    again = await ensure_certificates(cluster, SETTINGS, now=NOW + timedelta(hours=2))
    assert (again.steps, cluster.writes) == ((), [])


async def test_a_rotation_publishes_both_authorities_before_it_switches() -> None:
    cluster = Cluster()
    await ensure_certificates(cluster, SETTINGS, now=NOW)
    first = read_secret(cluster.secret).serving
    due = NOW + SETTINGS.lifetime - SETTINGS.renew_before
    assert (await ensure_certificates(cluster, SETTINGS, now=due - timedelta(days=1))).steps == ()
    steps = [(await ensure_certificates(cluster, SETTINGS, now=due)).steps]
    assert read_secret(cluster.secret).serving == first
    assert {len(authorities(bundle)) for bundle in cluster.bundles()} == {2}
    for wait in (timedelta(minutes=4), timedelta(minutes=5), timedelta(minutes=30), timedelta(minutes=66)):
        steps.append((await ensure_certificates(cluster, SETTINGS, now=due + wait)).steps)
    assert steps == [
        (Step.STAGE, Step.PUBLISH, Step.MARK_PUBLISHED),
        (),
        (Step.SWITCH,),
        (),
        (Step.RETIRE, Step.PUBLISH),
    ]
    assert read_secret(cluster.secret).serving != first
    assert {len(authorities(bundle)) for bundle in cluster.bundles()} == {1}


async def test_the_report_says_when_something_is_due_next() -> None:
    cluster = Cluster()
    assert (await ensure_certificates(cluster, SETTINGS, now=NOW)).again_in_seconds == 300  # a bundle may be emptied
    due = NOW + SETTINGS.lifetime - SETTINGS.renew_before
    await ensure_certificates(cluster, SETTINGS, now=due)
    later = due + timedelta(minutes=4)
    assert (await ensure_certificates(cluster, SETTINGS, now=later)).again_in_seconds == 60


async def test_a_configuration_that_comes_later_or_is_emptied_is_published_to() -> None:
    cluster = Cluster(installed=False)
    report = await ensure_certificates(cluster, SETTINGS, now=NOW)
    assert (report.steps, report.missing) == ((Step.ISSUE,), KINDS)
    cluster.configurations, cluster.trusted = {kind: _configuration() for kind in KINDS}, False
    assert (await ensure_certificates(cluster, SETTINGS, now=NOW)).steps == (Step.PUBLISH,)
    cluster.trusted = False
    cluster.configurations[KINDS[1]]["webhooks"][0]["clientConfig"]["caBundle"] = ""
    assert (await ensure_certificates(cluster, SETTINGS, now=NOW)).steps == (Step.PUBLISH,)
    assert cluster.trusted


@pytest.mark.parametrize(
    "damage",
    [
        {"tls.crt": b"nonsense"},
        {"tls.key": issue(("x",), NOW, timedelta(days=1)).key},
        {"ca.crt": issue(("x",), NOW, timedelta(days=1)).authority},
        {"tls.key": b""},
        {"tls.crt": b"", "tls.key": b"", "ca.crt": b"", "previous-ca.crt": b"nonsense"},
    ],
    ids=["certificate", "key", "authority", "no key", "all"],
)
async def test_a_damaged_secret_is_issued_anew(damage: Mapping[str, bytes]) -> None:
    cluster = Cluster()
    await ensure_certificates(cluster, SETTINGS, now=NOW)
    assert cluster.secret is not None
    cluster.secret["data"] |= {key: base64.b64encode(content).decode() for key, content in damage.items()}
    cluster.trusted = False
    report = await ensure_certificates(cluster, SETTINGS, now=NOW)
    assert report.steps == (Step.ISSUE, Step.PUBLISH)
    assert cluster.trusted


async def test_a_renamed_service_gets_a_certificate_for_its_name() -> None:
    cluster = Cluster()
    await ensure_certificates(cluster, SETTINGS, now=NOW)
    renamed = replace(SETTINGS, dns_names=("other.dippm-system.svc",))
    cluster.trusted = False
    assert (await ensure_certificates(cluster, renamed, now=NOW)).steps == (Step.ISSUE, Step.PUBLISH)
    serving = read_secret(cluster.secret).serving
    assert serving is not None
    assert serving.names() == {"other.dippm-system.svc"}


async def test_a_write_of_somebody_else_is_not_overwritten() -> None:
    cluster = Cluster()
    await ensure_certificates(cluster, SETTINGS, now=NOW)
    cluster.conflict = True
    with pytest.raises(ApiFailure, match="modified"):
        await ensure_certificates(cluster, SETTINGS, now=NOW + SETTINGS.lifetime)


async def test_cert_manager_is_left_to_do_it() -> None:
    cluster = Cluster()
    report = await ensure_certificates(cluster, replace(SETTINGS, provider=Provider.CERT_MANAGER), now=NOW)
    assert (report.steps, cluster.writes, cluster.secret) == ((), [], None)


def test_what_is_written_to_a_secret_is_read_back() -> None:
    state = read_secret(None)
    for step_state in (
        replace(state, serving=issue(("a",), NOW, timedelta(days=1))),
        replace(
            state,
            serving=issue(("a",), NOW, timedelta(days=1)),
            next=issue(("a",), NOW, timedelta(days=2)),
            published_at=NOW,
        ),
        replace(
            state,
            serving=issue(("a",), NOW, timedelta(days=1)),
            previous_authority=issue(("a",), NOW, timedelta(days=1)).authority,
            switched_at=NOW,
        ),
    ):
        labelled = {"metadata": {"name": "s", "labels": {"team": "a"}, "annotations": {"note": "kept"}}}
        secret = write_secret(labelled, step_state, SETTINGS)
        assert read_secret(secret) == step_state
        assert secret["metadata"]["labels"] == {"team": "a"}
        assert secret["metadata"]["annotations"]["note"] == "kept"
    assert decide(read_secret(None), [], NOW, SETTINGS) is Step.ISSUE


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([1, 30, 300, 3_600, 86_400, 10 * 86_400]), min_size=5, max_size=40))
async def test_at_every_write_of_any_history_the_served_certificate_is_trusted(pauses: list[int]) -> None:
    """`Cluster.check` looks after each single write; here the operator comes by at whatever times it likes."""
    cluster, now = Cluster(), NOW
    for pause in pauses:
        before = read_secret(cluster.secret).serving
        expired = before is not None and before.expires() <= now
        cluster.trusted = cluster.trusted and not expired  # nobody trusts an expired one
        await ensure_certificates(cluster, SETTINGS, now=now)
        serving = read_secret(cluster.secret).serving
        assert serving is not None
        assert serving.expires() > now
        assert cluster.trusted
        now += timedelta(seconds=pause)
