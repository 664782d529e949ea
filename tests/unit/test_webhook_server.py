"""The webhook's listeners: what is read, what is refused, when it is ready, and certificates that change under it."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from dippm.errors import ManifestError
from dippm_operator.certificates.issue import Serving, issue
from dippm_operator.kube.connection import Connection
from dippm_operator.webhook import settings as settings_module
from dippm_operator.webhook.certificate import ServingCertificate, clients_of
from dippm_operator.webhook.main import main
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.readiness import Readiness
from dippm_operator.webhook.review import Answer, Review
from dippm_operator.webhook.server import add_probes, review_application
from dippm_operator.webhook.settings import Settings, parse_settings

STOPPING = web.AppKey("stopping", bool)
HOST = "dippm-webhook.dippm-system.svc"
REVIEW = {
    "apiVersion": "admission.k8s.io/v1",
    "kind": "AdmissionReview",
    "request": {"uid": "1", "kind": {"kind": "Pod"}, "operation": "CREATE", "object": {}},
}


class Cache:
    """In the place of `JobCache`."""

    synced = True
    silence_seconds = 1.5

    def __len__(self) -> int:
        return 7


class Configurations:
    """In the place of `ApiClient`: both webhook configurations, with the caBundle that is set here."""

    def __init__(self, bundle: bytes | None) -> None:
        self.bundle = bundle
        self.down = False

    async def get_or_none(self, path: str) -> dict[str, Any] | None:
        assert path.endswith("webhookconfigurations/dippm")
        if self.down:
            raise TimeoutError
        if self.bundle is None:
            return None
        service = {"name": "dippm-webhook", "namespace": "dippm-system", "path": "/mutate"}
        client = {"service": service, "caBundle": base64.b64encode(self.bundle).decode()}
        return {"webhooks": [{"name": "pods.dippm.dev", "clientConfig": client}]}


def serving(*names: str) -> Serving:
    return issue(names or (HOST,), datetime.now(UTC), timedelta(days=1))


def mount(folder: Path, made: Serving) -> None:
    (folder / "tls.crt").write_bytes(made.certificate)
    (folder / "tls.key").write_bytes(made.key)


async def answerer(review: Review) -> Answer:
    if review.name == "slow":
        await asyncio.sleep(5)
    return Answer(reason="Valid")


@pytest.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    application = review_application(
        {"mutate": answerer}, Settings(max_body_bytes=4096), Metrics(), stopping=lambda: STOPPING in application
    )
    async with TestClient(TestServer(application)) as running:
        yield running


async def test_a_review_is_answered(client: Any) -> None:
    async with client.post("/mutate", json=REVIEW) as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert (await response.json())["response"] == {
            "uid": "1",
            "allowed": True,
            "auditAnnotations": {"reason": "Valid"},
        }


async def test_connections_are_closed_while_it_is_stopping(client: Any) -> None:
    """An API server that keeps its connection would find it dead at the next pod, which then comes up unsized."""
    async with client.post("/mutate", json=REVIEW) as response:
        assert "Connection" not in response.headers
    client.app._state[STOPPING] = True  # a frozen application takes no new keys from outside
    async with client.post("/mutate", json=REVIEW) as response:
        assert (response.status, response.headers["Connection"]) == (200, "close")


async def test_a_body_above_the_cap_is_not_read(client: Any) -> None:
    async with client.post("/mutate", data=b" " * 5000) as response:
        assert response.status == 413


async def test_what_is_no_review_is_answered_with_a_sentence(client: Any) -> None:
    async with client.post("/mutate", data=b"GET / HTTP/1.0") as response:
        assert (response.status, await response.text()) == (
            400,
            "the request's body is no JSON; send an AdmissionReview\n",
        )
    async with client.get("/mutate") as response:
        assert response.status == 405


async def test_it_answers_before_the_api_server_gives_up(client: Any) -> None:
    """`timeout=0.1s`: the pod is let through with a warning while the API server still listens."""
    slow = REVIEW | {"request": REVIEW["request"] | {"name": "slow"}}  # type: ignore[operator]
    async with asyncio.timeout(2), client.post("/mutate?timeout=0.1s", json=slow) as response:
        answer = (await response.json())["response"]
    assert answer["allowed"] is True
    assert "no answer within 0.1 s" in answer["warnings"][0]


async def test_ready_once_the_cache_is_synced_and_the_configurations_trust_us(tmp_path: Path) -> None:
    made, cache, metrics = serving(), Cache(), Metrics()
    cache.synced = False
    configurations, certificate = Configurations(None), ServingCertificate(tmp_path)
    readiness = Readiness(cache, certificate, configurations, "dippm")  # type: ignore[arg-type]
    application = web.Application()
    add_probes(application, readiness, cache, certificate, metrics)  # type: ignore[arg-type]
    async with TestClient(TestServer(application)) as probes:

        async def probe(path: str = "/readyz") -> tuple[int, str]:
            async with probes.get(path) as response:
                return response.status, (await response.text()).strip()

        assert await probe() == (503, "not ready: there is no certificate to serve yet")
        mount(tmp_path, made)
        assert certificate.load()
        assert await probe() == (503, "not ready: the InferenceJobs were not listed yet")
        cache.synced = True
        assert await probe() == (503, "not ready: the webhook configuration dippm was not read yet")
        watching = asyncio.create_task(readiness.watch())
        await asyncio.sleep(0)
        assert "there is no mutatingwebhookconfiguration dippm" in (await probe())[1]
        for bundle, why in (
            (b"", "its caBundle has no certificate"),
            (serving().authority, "its caBundle does not verify our certificate"),
        ):
            configurations.bundle = bundle
            assert f"webhook pods.dippm.dev as {HOST}: {why}" in await readiness.check()
        configurations.bundle = serving().authority + made.authority  # in the middle of a rotation
        assert await readiness.check() == ""
        watching.cancel()
        watching = asyncio.create_task(readiness.watch())
        await asyncio.sleep(0)
        assert await probe() == (200, "ok")
        watching.cancel()
        configurations.down = True
        watching = asyncio.create_task(readiness.watch())
        await asyncio.sleep(0)
        assert await probe() == (200, "ok")  # an API server that is away takes nothing back
        watching.cancel()
        assert await probe("/healthz") == (200, "ok")
        readiness.dead = "job_cache ended"
        assert await probe("/healthz") == (503, "job_cache ended")
        readiness.stopping = True
        assert await probe() == (503, "not ready: shutting down")
        text = (await probe("/metrics"))[1]
        assert "dippm_webhook_cached_jobs 7.0" in text
        assert "dippm_webhook_ready 0.0" in text
        expires = metrics.registry.get_sample_value("dippm_webhook_certificate_expires_timestamp_seconds")
        assert certificate.expires is not None
        assert expires == certificate.expires.timestamp()


async def test_a_changed_certificate_is_served_without_a_restart(tmp_path: Path) -> None:
    old, new = serving("127.0.0.1"), serving("127.0.0.1")
    mount(tmp_path, old)
    certificate = ServingCertificate(tmp_path)
    assert certificate.load()
    assert not certificate.load()  # unchanged
    server = TestServer(web.Application(), host="127.0.0.1", scheme="https")
    await server.start_server(ssl=certificate.context)

    def served() -> bytes:
        return ssl.get_server_certificate(("127.0.0.1", server.port or 0)).strip().encode()

    assert await asyncio.to_thread(served) == old.certificate.strip()
    (tmp_path / "tls.crt").write_bytes(new.certificate)
    assert not certificate.load()  # the key is still the old one: half a change is no change
    assert await asyncio.to_thread(served) == old.certificate.strip()
    (tmp_path / "tls.key").write_bytes(new.key)
    assert certificate.load()
    assert await asyncio.to_thread(served) == new.certificate.strip()
    assert certificate.why_not_trusted(old.authority, "127.0.0.1")
    assert certificate.why_not_trusted(old.authority + new.authority, "127.0.0.1") == ""
    await server.close()


def test_an_expired_or_misnamed_certificate_is_not_trusted(tmp_path: Path) -> None:
    expired = issue((HOST,), datetime.now(UTC) - timedelta(days=2), timedelta(days=1))
    mount(tmp_path, expired)
    certificate = ServingCertificate(tmp_path)
    certificate.load()
    assert "expired" in certificate.why_not_trusted(expired.authority, HOST)
    good = serving()
    mount(tmp_path, good)
    certificate.load()
    assert "Hostname mismatch" in certificate.why_not_trusted(good.authority, "other.dippm-system.svc")


def test_the_host_that_is_asked_for_is_the_services_or_the_urls() -> None:
    webhooks = [
        {"name": "a", "clientConfig": {"service": {"name": "web", "namespace": "ns"}, "caBundle": "QQ=="}},
        {"name": "b", "clientConfig": {"url": "https://127.0.0.1:9443/mutate"}},
    ]
    assert clients_of({"webhooks": webhooks}) == [("a", "web.ns.svc", b"A"), ("b", "127.0.0.1", b"")]
    assert clients_of({}) == []


def test_every_setting_is_an_option() -> None:
    parsed = parse_settings(["--webhook-configuration=dippm", "--port", "8443", "--certificates", "/c"])
    assert parsed == Settings(webhook_configuration="dippm", port=8443, certificates=Path("/c"))
    assert set(settings_module._HELP) == set(Settings.__dataclass_fields__)
    with pytest.raises(SystemExit) as refused:
        parse_settings(["--log-level=loud"])
    assert refused.value.code == 2


def test_every_metric_is_in_the_reference() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "reference" / "webhook.md").read_text()
    families = [family.name for family in Metrics().registry.collect()]
    assert len(families) > 5
    for name in families:
        assert f"| `{name}" in reference, name


def test_it_cannot_start_without_a_cluster_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "kubeconfig"
    assert main([f"--kubeconfig={missing}"]) == 2
    assert capsys.readouterr().err == (
        f"dippm-webhook: {missing}: cannot be read as a kubeconfig; give its path with --kubeconfig\n"
    )
    missing.write_text(json.dumps({"current-context": "gone", "contexts": []}))
    with pytest.raises(ManifestError, match=r"Expected object with name gone in .*contexts"):
        asyncio.run(Connection.from_kubeconfig(missing))
