"""The webhook as a process of its own, called by a real API server."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dippm_operator.certificates import CertificateSettings, ensure_certificates
from dippm_operator.kube.api import ApiClient
from dippm_operator.kube.connection import Connection
from dippm_operator.resource.crd import custom_resource_definition
from dippm_operator.resource.names import JOB_LABEL, SIZING_ANNOTATION

pytestmark = pytest.mark.controlplane

CONFIGURATION = "dippm-test"
NAMESPACE = "dippm-system"
KINDS = {"mutating": "MutatingWebhookConfiguration", "validating": "ValidatingWebhookConfiguration"}
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Webhook:
    """A running `dippm-webhook` and what is needed to stop and start it."""

    command: list[str]
    environment: dict[str, str]
    port: int
    health_port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, env=self.environment)
        self.wait(lambda: self.probe("readyz")[0] == 200)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)

    def probe(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}/{path}", timeout=5) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except urllib.error.URLError as error:
            return 0, str(error)

    def wait(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process is None or self.process.poll() is None, "the webhook process ended"
            assert time.monotonic() < deadline, f"not in {seconds} s; /readyz: {self.probe('readyz')}"
            time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def configurations(port: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Both configurations as the chart has them, with a URL on loopback instead of a Service."""
    common = {
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Ignore",
        "timeoutSeconds": 5,
        "namespaceSelector": {"matchExpressions": [{"key": "dippm.test/quiet", "operator": "DoesNotExist"}]},
    }
    mutating = common | {
        "name": "pods.dippm.dev",
        "reinvocationPolicy": "IfNeeded",
        "clientConfig": {"url": f"https://127.0.0.1:{port}/mutate"},
        "objectSelector": {"matchExpressions": [{"key": JOB_LABEL, "operator": "Exists"}]},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
    }
    validating = common | {
        "name": "inferencejobs.dippm.dev",
        "clientConfig": {"url": f"https://127.0.0.1:{port}/validate"},
        "rules": [
            {
                "apiGroups": ["dippm.dev"],
                "apiVersions": ["v1alpha1"],
                "operations": ["CREATE", "UPDATE"],
                "resources": ["inferencejobs"],
            }
        ],
    }
    for flavour, webhook in (("mutating", mutating), ("validating", validating)):
        yield (
            f"/apis/admissionregistration.k8s.io/v1/{flavour}webhookconfigurations",
            {
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": KINDS[flavour],
                "metadata": {"name": CONFIGURATION},
                "webhooks": [webhook],
            },
        )


def mount(control_plane: Any, folder: Path, secret: str) -> None:
    """Write the Secret's files as kubelet does: a new folder, then one link swapped."""
    data = control_plane.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/{secret}")["data"]
    version = folder / f"..{time.monotonic_ns()}"
    version.mkdir(parents=True)
    for name, content in data.items():
        (version / name).write_bytes(base64.b64decode(content))
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(Path("..data") / name)
    link = folder / "..new"
    link.symlink_to(version.name)
    link.replace(folder / "..data")


@pytest.fixture(scope="module")
def settings() -> CertificateSettings:
    return CertificateSettings(
        namespace=NAMESPACE, secret="dippm-webhook-tls", dns_names=("127.0.0.1",), configuration=CONFIGURATION
    )


@pytest.fixture(scope="module")
def certificates(control_plane, tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("certificates")


@pytest.fixture(scope="module")
def webhook(control_plane, settings, certificates) -> Iterator[Webhook]:
    """CRD and configurations installed, the certificate issued as the operator does it, the process ready."""
    control_plane.install_crd(custom_resource_definition())
    control_plane.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    port, health_port = free_port(), free_port()
    made = list(configurations(port))
    for path, body in made:
        control_plane.create(path, body)
    running = Webhook(
        command=[
            sys.executable,
            "-m",
            "dippm_operator.webhook.main",
            f"--certificates={certificates}",
            f"--webhook-configuration={CONFIGURATION}",
            f"--kubeconfig={control_plane.kubeconfig}",
            "--host=127.0.0.1",
            f"--port={port}",
            f"--health-port={health_port}",
            "--drain-seconds=0.1",
        ],
        environment=os.environ
        | {"PYTHONPATH": os.pathsep.join(str(REPOSITORY / half) for half in ("predictor", "operator"))},
        port=port,
        health_port=health_port,
    )
    asyncio.run(ensure(control_plane, settings))
    mount(control_plane, certificates, settings.secret)
    running.start()
    yield running
    if running.process is not None and running.process.poll() is None:
        assert running.stop() == 0
    for path, _ in made:
        control_plane.delete(f"{path}/{CONFIGURATION}")


async def ensure(control_plane: Any, settings: CertificateSettings, **options: Any) -> Any:
    async with ApiClient(Connection.from_kubeconfig(control_plane.kubeconfig)) as api:
        return await ensure_certificates(api, settings, **options)


def inference_job(name: str = "resnet50", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "dippm.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": "https://models.example/resnet50.onnx"},
            "batchSize": 32,
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        }
        | spec,
    }


def pod(job: str, **metadata: Any) -> dict[str, Any]:
    """What the ReplicaSet controller would create for a Deployment whose template has the label."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-5d8c7-", "labels": {"app": "web", JOB_LABEL: job}} | metadata,
        "spec": {"containers": [{"name": "server", "image": "registry.example/server:1"}]},
    }


def jobs(namespace: str) -> str:
    return f"/apis/dippm.dev/v1alpha1/namespaces/{namespace}/inferencejobs"


def recommend(control_plane: Any, namespace: str, name: str, profile: str = "1g.5gb") -> None:
    """Write the status as the operator would."""
    control_plane.patch(
        f"{jobs(namespace)}/{name}/status",
        {
            "status": {
                "recommendation": {
                    "profile": profile,
                    "resource": f"nvidia.com/mig-{profile}",
                    "reason": "FitsWithHeadroom",
                }
            }
        },
    )


def test_a_labelled_pod_comes_up_with_its_slice(control_plane, namespace, webhook):
    control_plane.create(jobs(namespace), inference_job())
    recommend(control_plane, namespace, "resnet50")
    pods = f"/api/v1/namespaces/{namespace}/pods"
    made = sized_soon(control_plane, namespace, "resnet50")
    (container,) = made["spec"]["containers"]
    assert container["resources"] == {
        "limits": {"nvidia.com/mig-1g.5gb": "1"},
        "requests": {"nvidia.com/mig-1g.5gb": "1"},
    }
    assert container["terminationMessagePolicy"] == "File"  # defaulted by the API server before we are asked
    record = json.loads(made["metadata"]["annotations"][SIZING_ANNOTATION])
    assert record["job"] == "resnet50"
    assert record["profile"] == "1g.5gb"

    again = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "twice",
            "labels": made["metadata"]["labels"],
            "annotations": made["metadata"]["annotations"],
        },
        "spec": {"containers": [{**container, "volumeMounts": []}]},
    }
    twice, warnings = control_plane.request("POST", pods, again)
    assert twice["spec"]["containers"][0]["resources"] == container["resources"]
    assert twice["metadata"]["annotations"] == made["metadata"]["annotations"]
    assert not warnings


def sized_soon(control_plane, namespace, job, **options):
    """Create pods until one is sized: the watch brings the status within a moment, not at once."""
    deadline = time.monotonic() + 10
    while True:
        made = control_plane.create(f"/api/v1/namespaces/{namespace}/pods", pod(job, **options))
        if SIZING_ANNOTATION in made["metadata"].get("annotations", {}):
            return made
        assert time.monotonic() < deadline, made["metadata"]
        time.sleep(0.1)


def test_a_pod_before_the_prediction_is_let_through_with_a_warning(control_plane, namespace, webhook):
    control_plane.create(jobs(namespace), inference_job("early"))
    made, warnings = control_plane.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod("early"))
    assert "resources" not in made["spec"]["containers"][0] or not made["spec"]["containers"][0]["resources"]
    assert any("InferenceJob early: there is no prediction yet" in warning for warning in warnings)


def test_deny_holds_a_pod_back_while_its_owner_is_young(control_plane, namespace, webhook):
    control_plane.create(jobs(namespace), inference_job("strict", policy={"onUnknown": "Deny"}))
    replica_set = control_plane.create(
        f"/apis/apps/v1/namespaces/{namespace}/replicasets",
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"name": "web-5d8c7"},
            "spec": {
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod("strict")["spec"]},
            },
        },
    )
    owner = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "web-5d8c7",
        "uid": replica_set["metadata"]["uid"],
        "controller": True,
    }
    with pytest.raises(Exception, match="InferenceJob strict is not predicted yet") as refused:
        control_plane.create(f"/api/v1/namespaces/{namespace}/pods", pod("strict", ownerReferences=[owner]))
    assert refused.value.code == 503
    recommend(control_plane, namespace, "strict")
    webhook.wait(lambda: admitted(control_plane, namespace, pod("strict", ownerReferences=[owner])))


def admitted(control_plane, namespace, body):
    try:
        made = control_plane.create(f"/api/v1/namespaces/{namespace}/pods", body)
    except Exception as error:
        if getattr(error, "code", None) == 503:
            return False
        raise
    assert SIZING_ANNOTATION in made["metadata"]["annotations"]
    return True


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"device": "A100-SXM9"}, "InferenceJob bad: spec.device: unknown device 'A100-SXM9'"),
        (
            {"device": "A100-SXM4-40GB", "policy": {"allowedProfiles": ["1g.5gb", "9g.90gb"]}},
            "spec.policy.allowedProfiles: A100-SXM4-40GB has no MIG profile '9g.90gb'",
        ),
        ({"model": {"uri": "s3://models/resnet50.onnx"}}, "spec.model.uri begins with s3:"),
    ],
)
def test_a_bad_job_is_refused_with_one_sentence(control_plane, namespace, webhook, spec, sentence):
    with pytest.raises(Exception, match="denied the request") as refused:
        control_plane.create(jobs(namespace), inference_job("bad", **spec))
    assert refused.value.code == 422
    assert 'admission webhook "inferencejobs.dippm.dev" denied the request' in refused.value.message
    assert sentence in refused.value.message


def test_a_job_with_both_or_neither_workload_is_refused(control_plane, namespace, webhook):
    both = inference_job("both", template={"spec": {"containers": [{"name": "c", "image": "i"}]}})
    neither = inference_job("neither")
    del neither["spec"]["targetRef"]
    for body in (both, neither):
        with pytest.raises(Exception, match="exactly one of template") as refused:
            control_plane.create(jobs(namespace), body)
        assert refused.value.code == 422


def test_the_certificate_is_rotated_while_pods_are_admitted(control_plane, namespace, webhook, settings, certificates):
    """Pods are admitted all through a rotation: at no time does the API server refuse the webhook."""
    control_plane.create(jobs(namespace), inference_job())
    recommend(control_plane, namespace, "resnet50")
    sized_soon(control_plane, namespace, "resnet50")
    secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{settings.secret}"
    old = control_plane.get(secret)["data"]
    quick = replace(settings, publish_before=timedelta(seconds=2), retire_after=timedelta(seconds=8))
    due = replace(quick, renew_before=timedelta(days=91))
    steps: list[str] = []
    for now_settings, seconds in ((due, 2.1), (quick, 8.1), (quick, 2.0)):
        report = asyncio.run(ensure(control_plane, now_settings))
        steps += [step.value for step in report.steps]
        mount(control_plane, certificates, settings.secret)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            made = control_plane.create(f"/api/v1/namespaces/{namespace}/pods", pod("resnet50"))
            assert SIZING_ANNOTATION in made["metadata"].get("annotations", {}), steps
            time.sleep(0.2)
    assert steps == ["Stage", "Publish", "MarkPublished", "Switch", "Retire", "Publish"]
    new = control_plane.get(secret)["data"]
    assert (new["tls.crt"] != old["tls.crt"], new["ca.crt"] != old["ca.crt"]) == (True, True)
    served = ssl.get_server_certificate(("127.0.0.1", webhook.port))
    assert served.strip() == base64.b64decode(new["tls.crt"]).decode().strip()
    assert webhook.probe("readyz") == (200, "ok\n")


def test_metrics_tell_what_was_answered(control_plane, namespace, webhook):
    control_plane.create(jobs(namespace), inference_job())
    _, text = webhook.probe("metrics")
    assert 'dippm_webhook_reviews_total{allowed="true",endpoint="validate",reason="Valid"}' in text
    assert 'dippm_webhook_step_seconds_bucket{endpoint="mutate",le="0.005",step="calculate"}' in text


def test_pods_come_up_unsized_while_the_webhook_is_down(control_plane, namespace, webhook):
    """Last: it stops the process, and starts it again."""
    control_plane.create(jobs(namespace), inference_job())
    recommend(control_plane, namespace, "resnet50")
    sized_soon(control_plane, namespace, "resnet50")
    assert webhook.stop() == 0
    made = control_plane.create(f"/api/v1/namespaces/{namespace}/pods", pod("resnet50"))
    assert SIZING_ANNOTATION not in made["metadata"].get("annotations", {})
    webhook.start()
    sized_soon(control_plane, namespace, "resnet50")
