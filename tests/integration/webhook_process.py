"""`dippm-webhook` as a process of its own before a real API server, with the chart's objects and accounts."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.chart import NAMESPACE, REPOSITORY, objects

from dippm_operator.certificates import CertificateReport, CertificateSettings, ensure_certificates
from dippm_operator.kube import ApiClient, Connection
from dippm_operator.resource.crd import custom_resource_definition
from dippm_operator.resource.names import JOB_LABEL, SIZING_ANNOTATION

RELEASE = "webhook-dippm"
"""A name that no other test uses: roles and webhook configurations are the cluster's."""
RBAC = "/apis/rbac.authorization.k8s.io/v1"
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1"
PLACES = {
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts",
    "Role": RBAC + "/namespaces/{}/roles",
    "RoleBinding": RBAC + "/namespaces/{}/rolebindings",
    "ClusterRole": RBAC + "/clusterroles",
    "ClusterRoleBinding": RBAC + "/clusterrolebindings",
    "MutatingWebhookConfiguration": CONFIGURATIONS + "/mutatingwebhookconfigurations",
    "ValidatingWebhookConfiguration": CONFIGURATIONS + "/validatingwebhookconfigurations",
}


@dataclass
class Webhook:
    """A running `dippm-webhook` and what is needed to stop and start it."""

    control_plane: Any
    folder: Path
    """Scratch: the mounted Secret and the accounts' kubeconfigs."""
    port: int
    health_port: int
    process: subprocess.Popen[bytes] | None = None
    settings = CertificateSettings(
        namespace=NAMESPACE, secret=f"{RELEASE}-webhook-tls", dns_names=("127.0.0.1",), configuration=RELEASE
    )

    def account(self, component: str) -> Path:
        """A kubeconfig of the chart's ServiceAccount for a component: its role, and no more."""
        path = self.folder / component
        if not path.exists():
            self.control_plane.kubeconfig_of(NAMESPACE, f"{RELEASE}-{component}", path)
        return path

    def start(self) -> None:
        arguments = [
            f"--certificates={self.folder / 'certificates'}",
            f"--webhook-configuration={RELEASE}",
            f"--kubeconfig={self.account('webhook')}",
            "--host=127.0.0.1",
            f"--port={self.port}",
            f"--health-port={self.health_port}",
            "--drain-seconds=0.1",
        ]
        path = os.pathsep.join(str(REPOSITORY / half) for half in ("predictor", "operator"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dippm_operator.webhook.main", *arguments], env=os.environ | {"PYTHONPATH": path}
        )
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

    def mount(self) -> None:
        """Write the Secret's files as kubelet does: a new folder, then one link swapped."""
        folder = self.folder / "certificates"
        data = self.control_plane.get(f"/api/v1/namespaces/{NAMESPACE}/secrets/{self.settings.secret}")["data"]
        version = folder / f"..{time.monotonic_ns()}"
        version.mkdir(parents=True)
        for name, content in data.items():
            (version / name).write_bytes(base64.b64decode(content))
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(Path("..data") / name)
        link = folder / "..new"
        link.symlink_to(version.name)
        link.replace(folder / "..data")

    def ensure(self, **changed: Any) -> CertificateReport:
        """What the operator does on its timer, under its own account, with these settings changed."""

        async def once() -> CertificateReport:
            async with ApiClient(await Connection.from_kubeconfig(self.account("operator"))) as api:
                return await ensure_certificates(api, replace(self.settings, **changed))

        return asyncio.run(once())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install(control_plane: Any, port: int) -> None:
    """The chart's accounts, roles and webhook configurations, with URLs on loopback instead of the Service."""
    with contextlib.suppress(Exception):  # there already, by another test's hand
        control_plane.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    for body in objects(name=RELEASE):
        if body["kind"] not in PLACES:
            continue
        for webhook in body.get("webhooks", ()):
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}"}
        place = PLACES[body["kind"]].format(NAMESPACE)
        control_plane.apply(f"{place}/{body['metadata']['name']}", body)


@contextlib.contextmanager
def running_webhook(control_plane: Any, folder: Path) -> Iterator[Webhook]:
    """The chart's objects installed, the certificate issued as the operator does it, the process ready."""
    control_plane.install_crd(custom_resource_definition())
    webhook = Webhook(control_plane, folder, free_port(), free_port())
    install(control_plane, webhook.port)
    webhook.ensure()
    webhook.mount()
    try:
        webhook.start()
        yield webhook
    finally:
        if webhook.process is not None and webhook.process.poll() is None:
            assert webhook.stop() == 0
        for kind in ("mutating", "validating"):
            control_plane.delete(f"{CONFIGURATIONS}/{kind}webhookconfigurations/{RELEASE}")


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


def sized_soon(control_plane, namespace, job, **options):
    """Create pods until one is sized: the watch brings the status within a moment, not at once."""
    deadline = time.monotonic() + 10
    while True:
        made = control_plane.create(f"/api/v1/namespaces/{namespace}/pods", pod(job, **options))
        if SIZING_ANNOTATION in made["metadata"].get("annotations", {}):
            return made
        assert time.monotonic() < deadline, made["metadata"]
        time.sleep(0.1)
