"""`pvc:` models against a real API server, under the rights that the chart gives.

What the Job's controller and the kubelet would do is done here: a pod is made for the Job, the reader of its template
is run as a program over a folder, and its log is served as a kubelet serves it, over TLS, to the API server that asks.
"""

from __future__ import annotations

import asyncio
import datetime
import http.server
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.chart import container, find, objects
from tests.hugging_face import LLAMA_7B, write_llama
from tests.unit.test_fetch_skim import write_onnx

from dippm.artifact import open_artifact
from dippm.frontend import load_graph
from dippm_operator.controller.claims import ClaimNotFound, ClaimPending, ClaimReader
from dippm_operator.controller.settings import ClaimSettings, parse_settings
from dippm_operator.fetch import ArtifactCache
from dippm_operator.kube import ApiClient, Connection
from dippm_operator.resource import InferenceJob, parse_inference_job

if TYPE_CHECKING:
    from conftest import ControlPlane

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(180)]

NODE = "claims"


class Kubelet:
    """Makes pods for Jobs of readers, runs them over a folder, and serves their logs."""

    def __init__(self, plane: ControlPlane, namespace: str, claim: Path, folder: Path) -> None:
        self.plane = plane
        self.claim = claim
        self.core = f"/api/v1/namespaces/{namespace}"
        self.batch = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.pending = ""
        """What the scheduler says of every pod; empty where they run."""
        self.logs: dict[str, bytes] = {}
        self._stop = threading.Event()
        logs = self.logs

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = logs.get(urlsplit(self.path).path.rsplit("/", 2)[1], b"")
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(_certificate(folder))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._threads = [threading.Thread(target=self._server.serve_forever), threading.Thread(target=self._work)]
        plane.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}})
        endpoints = {"kubeletEndpoint": {"Port": self._server.server_port}}
        addresses = [{"type": "InternalIP", "address": "127.0.0.1"}]
        plane.patch(f"/api/v1/nodes/{NODE}/status", {"status": {"addresses": addresses, "daemonEndpoints": endpoints}})
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()
        self.plane.delete(f"/api/v1/nodes/{NODE}")

    def _work(self) -> None:
        seen: set[str] = set()
        while not self._stop.wait(0.2):
            for job in self.plane.get(self.batch)["items"]:
                if job["metadata"]["name"] not in seen:
                    seen.add(job["metadata"]["name"])
                    self._run(job)

    def _run(self, job: dict[str, Any]) -> None:
        name = job["metadata"]["name"]
        template = job["spec"]["template"]
        labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": name}
        spec = template["spec"] | ({} if self.pending else {"nodeName": NODE})
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"]}
        metadata = {"name": f"{name}-x", "labels": labels, "ownerReferences": [owner]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self.plane.create(f"{self.core}/pods", pod)
        place = f"{self.core}/pods/{name}-x/status"
        if self.pending:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": self.pending}
            self.plane.patch(place, {"status": {"phase": "Pending", "conditions": [condition]}})
            return
        reader = template["spec"]["containers"][0]
        assert reader["command"][0] == "python"
        arguments = [str(self.claim) if a == "/claim" else a for a in (*reader["command"][1:], *reader["args"])]
        environment = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = subprocess.run([sys.executable, *arguments], capture_output=True, env=environment, check=False)
        self.logs[f"{name}-x"] = done.stdout
        phase = "Succeeded" if done.returncode == 0 else "Failed"
        self.plane.patch(place, {"status": {"phase": phase}})


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kubelet")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path = folder / "kubelet.pem"
    path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + builder.sign(key, hashes.SHA256()).public_bytes(pem)
    )
    return path


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    root = tmp_path / "claim"
    (root / "vision").mkdir(parents=True)
    write_onnx(root / "vision" / "net.onnx", width=512)
    write_llama(root / "llm", LLAMA_7B, shards=2)
    return root


@pytest.fixture
def kubelet(control_plane: ControlPlane, namespace: str, claim: Path, tmp_path: Path) -> Iterator[Kubelet]:
    body = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "models"},
        "spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }  # fmt: skip
    control_plane.create(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims", body)
    kubelet = Kubelet(control_plane, namespace, claim, tmp_path)
    yield kubelet
    kubelet.close()


@pytest.fixture
async def reader(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[ClaimReader]:
    """Under an account that has what the chart's operator has, and with the settings that the chart passes."""
    release = objects({"operator": {"claims": {"enabled": True, "deadlineSeconds": 30}}})
    rules = find(release, "ClusterRole", "dippm-operator")["rules"]
    head = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": f"{namespace}-claims"}}
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    control_plane.create(f"{rbac}/clusterroles", {**head, "kind": "ClusterRole", "rules": rules})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}}
    control_plane.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", account)
    binding = {
        **head, "kind": "ClusterRoleBinding",
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"{namespace}-claims"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace}],
    }  # fmt: skip
    control_plane.create(f"{rbac}/clusterrolebindings", binding)
    arguments = [a for a in container(release, "operator")["args"] if a.startswith("--claim")]
    settings = parse_settings(arguments).claims
    assert settings.image
    assert settings.seconds == 30
    path = control_plane.kubeconfig_of(namespace, "operator", tmp_path / "kubeconfig")
    async with ApiClient(await Connection.from_environment(str(path))) as api:
        yield ClaimReader(api, ArtifactCache(tmp_path / "cache", 10**9), settings)


def job_of(namespace: str, uri: str) -> InferenceJob:
    manifest = {
        "apiVersion": "dippm.dev/v1alpha1", "kind": "InferenceJob",
        "metadata": {"name": "web", "namespace": namespace, "uid": "6f0c19e0-0000-4000-8000-000000000001"},
        "spec": {
            "model": {"uri": uri}, "batchSize": 1,
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    }  # fmt: skip
    return parse_inference_job(manifest, strict=False)


async def test_models_in_a_claim_are_read(kubelet: Kubelet, reader: ClaimReader, namespace: str, claim: Path) -> None:
    async with reader.open(job_of(namespace, "pvc://models/vision/net.onnx")) as artifact:
        assert 0 < artifact.fetched_bytes < 30_000
        original = open_artifact(claim / "vision" / "net.onnx")
        assert load_graph(open_artifact(artifact.path), batch=2) == load_graph(original, batch=2)
    async with reader.open(job_of(namespace, "pvc://models/llm")) as artifact:
        assert artifact.size_bytes > 13_000_000_000
        assert artifact.fetched_bytes < 60_000
        assert open_artifact(artifact.path).format == "huggingface"
    jobs = (await asyncio.to_thread(kubelet.plane.get, kubelet.batch))["items"]
    assert len(jobs) == 2
    assert all(job["spec"]["backoffLimit"] == 0 and job["metadata"]["ownerReferences"] for job in jobs)


async def test_reasons(kubelet: Kubelet, reader: ClaimReader, namespace: str) -> None:
    with pytest.raises(ClaimNotFound, match="there is no PersistentVolumeClaim other"):
        async with reader.open(job_of(namespace, "pvc://other/net.onnx")):
            pass
    with pytest.raises(Exception, match=r"none\.onnx cannot be read"):
        async with reader.open(job_of(namespace, "pvc://models/none.onnx")):
            pass
    kubelet.pending = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    quick = ClaimReader(reader._api, reader._cache, ClaimSettings("dippm:1", seconds=4.0))
    with pytest.raises(ClaimPending, match="unbound immediate PersistentVolumeClaims"):
        async with quick.open(job_of(namespace, "pvc://models/vision/net.onnx")):
            pass


async def test_job_passes_a_restricted_namespace(
    control_plane: ControlPlane, kubelet: Kubelet, reader: ClaimReader, namespace: str
) -> None:
    """Pod Security Admission at its strictest: the pod of the reader is let in."""
    label = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    control_plane.patch(f"/api/v1/namespaces/{namespace}", label)
    time.sleep(0.5)
    async with reader.open(job_of(namespace, "pvc://models/vision/net.onnx")) as artifact:
        assert artifact.size_bytes > 0
