"""The operator as a process of its own against a real API server; models are served over loopback HTTP."""

from __future__ import annotations

import asyncio
import copy
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dippm_operator.controller.lease import Lease, LeaseLost
from dippm_operator.kube import ApiClient, Connection
from dippm_operator.resource.crd import custom_resource_definition

if TYPE_CHECKING:
    from conftest import ControlPlane

pytestmark = pytest.mark.controlplane

ROOT = Path(__file__).parents[2]
LEASE = "dippm-operator"
NODES = {  # product, allocatable slices, tainted
    "a": ("NVIDIA-A100-SXM4-40GB", {"nvidia.com/mig-1g.5gb": "4", "nvidia.com/mig-3g.20gb": "1"}, True),
    "b": ("NVIDIA-A100-SXM4-40GB", {"nvidia.com/mig-1g.5gb": "7"}, True),
}


class ModelStore:
    """Files over HTTP, with ETags; what it holds can be changed while it runs."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answers: list[tuple[str, int]] = []
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = store.files.get(self.path)
                etag = f'"{hash(content)}"'
                status = 404 if content is None else 304 if self.headers.get("If-None-Match") == etag else 200
                store.answers.append((self.path, status))
                self.send_response(status)
                self.send_header("ETag", etag)
                body = content if status == 200 and content is not None else b""
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def store() -> Iterator[ModelStore]:
    store = ModelStore()
    yield store
    store.close()


def start_operator(plane: ControlPlane, folder: Path, module: str, *options: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", module, "--kubeconfig", str(plane.kubeconfig), "--cache", str(folder / "cache"),
        "--allow-loopback", "--health-port", "0", "--metrics-port", "0", *options,
    ]  # fmt: skip
    path = os.pathsep.join(str(ROOT / part) for part in ("predictor", "operator", "."))
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | {"PYTHONPATH": path}
    with (folder / "operator.log").open("wb") as log:
        return subprocess.Popen(command, stderr=log, stdout=log, env=environment, cwd=folder)


def leader(plane: ControlPlane) -> str | None:
    """Who holds the Lease."""
    leases = plane.get("/apis/coordination.k8s.io/v1/namespaces/default/leases")["items"]
    return next((lease["spec"]["holderIdentity"] for lease in leases if lease["metadata"]["name"] == LEASE), None)


def wait_for_leader(plane: ControlPlane, identity: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while leader(plane) != identity:
        assert process.poll() is None, "the operator ended"
        assert time.monotonic() < deadline, f"the Lease is held by {leader(plane)}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def operator_process(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[subprocess.Popen[bytes]]:
    control_plane.install_crd(custom_resource_definition())
    for name, (product, slices, tainted) in NODES.items():
        node: dict[str, Any] = {"metadata": {"name": name, "labels": {"nvidia.com/gpu.product": product}}, "spec": {}}
        if tainted:
            node["spec"]["taints"] = [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}]
        control_plane.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", **node})
        control_plane.patch(f"/api/v1/nodes/{name}/status", {"status": {"allocatable": slices, "capacity": slices}})
    folder = tmp_path_factory.mktemp("operator")
    process = start_operator(control_plane, folder, "tests.integration.operator_standin", "--identity", "one")
    wait_for_leader(control_plane, "one", process)
    yield process
    process.send_signal(signal.SIGTERM)
    code = process.wait(30)
    log = (folder / "operator.log").read_text()
    for name in NODES:
        control_plane.delete(f"/api/v1/nodes/{name}")
    assert code == 0, log
    assert "Traceback" not in log, log


def manifest(name: str, uri: str, **spec: Any) -> dict[str, Any]:
    workload = {} if "targetRef" in spec else {"template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}}
    return {
        "apiVersion": "dippm.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"name": name},
        "spec": {"model": {"uri": uri}, "batchSize": 32, **workload, **spec},
    }


class Jobs:
    """InferenceJobs of one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str, process: subprocess.Popen[bytes]) -> None:
        self.plane = plane
        self.process = process
        self.path = f"/apis/dippm.dev/v1alpha1/namespaces/{namespace}/inferencejobs"
        self.batch = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.events = f"/api/v1/namespaces/{namespace}/events"

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        return self.plane.create(self.path, body)

    def change(self, name: str, **spec: Any) -> None:
        self.plane.patch(f"{self.path}/{name}", {"spec": spec})

    def wait(self, name: str, wanted: Callable[[dict[str, Any]], bool], seconds: float = 60) -> dict[str, Any]:
        """Its status, once it is as wanted."""
        deadline = time.monotonic() + seconds
        while True:
            body = self.plane.get(f"{self.path}/{name}")
            if wanted(body.get("status", {})):
                return dict(body["status"])
            assert self.process.poll() is None, "the operator ended"
            assert time.monotonic() < deadline, f"not in {seconds} s: {body.get('status')}"
            time.sleep(0.1)

    def wait_for_events(self, *reasons: str) -> list[dict[str, Any]]:
        """Events of these reasons, once there are some of each: they come after the status."""
        deadline = time.monotonic() + 20
        while True:
            events = [e for e in self.plane.get(self.events)["items"] if e["reason"] in reasons]
            if {e["reason"] for e in events} == set(reasons):
                return events
            assert time.monotonic() < deadline, [e["reason"] for e in events]
            time.sleep(0.1)

    def job_names(self) -> list[str]:
        return [item["metadata"]["name"] for item in self.plane.get(self.batch)["items"]]


@pytest.fixture
def jobs(control_plane: ControlPlane, operator_process: subprocess.Popen[bytes], namespace: str) -> Jobs:
    return Jobs(control_plane, namespace, operator_process)


def condition(status: dict[str, Any], type_: str) -> tuple[str, str]:
    return next(((c["status"], c["reason"]) for c in status.get("conditions", []) if c["type"] == type_), ("", ""))


def is_ready(status: dict[str, Any]) -> bool:
    return condition(status, "Ready")[0] == "True"


def test_real_model_is_predicted_and_its_job_made(
    control_plane: ControlPlane, namespace: str, store: ModelStore, tmp_path: Path
) -> None:
    """The product as it is installed: `dippm-operator` fetches, parses in its child, predicts and makes the Job.

    First in this file: the operator that the other tests share would take this job up as well.
    """
    control_plane.install_crd(custom_resource_definition())
    store.files["/resnet50.onnx"] = (ROOT / "examples/models/resnet50.onnx").read_bytes()
    options = ("--lease", "real", "--watch-namespace", namespace)
    process = start_operator(control_plane, tmp_path, "dippm_operator.controller.main", *options)
    try:
        jobs = Jobs(control_plane, namespace, process)
        jobs.create(manifest("resnet50", f"{store.url}/resnet50.onnx", device="A100-SXM4-40GB"))
        status = jobs.wait("resnet50", is_ready, seconds=240)
        assert status["model"]["format"] == "onnx"
        assert status["model"]["graphDigest"].startswith("sha256:")
        assert 98 <= status["prediction"]["requiredMiB"] <= status["prediction"]["requiredUpperMiB"], "weights: 98 MiB"
        slices = {status["recommendation"]["resource"]: "1"}
        pod = control_plane.get(f"{jobs.batch}/resnet50")["spec"]["template"]["spec"]
        assert pod["containers"][0]["resources"] == {"limits": slices, "requests": slices}
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0, (tmp_path / "operator.log").read_text()


def test_status_fills_and_the_job_carries_the_slice(jobs: Jobs, store: ModelStore) -> None:
    store.files["/small"] = b"1700"
    created = jobs.create(manifest("small", f"{store.url}/small"))
    status = jobs.wait("small", is_ready)

    assert status["observedGeneration"] == 1
    assert [c["type"] for c in status["conditions"]] == ["Resolved", "Predicted", "Placeable", "Ready", "Stale"]
    assert status["prediction"]["requiredMiB"] == 1700
    assert status["model"]["sizeBytes"] == 4
    assert status["recommendation"] == {
        "profile": "1g.5gb", "resource": "nvidia.com/mig-1g.5gb", "reason": "FitsWithHeadroom", "tolerateGPUTaint": True
    }  # fmt: skip
    assert {c["profile"] for c in status["candidates"]} >= {"1g.5gb", "7g.40gb"}

    job = jobs.plane.get(f"{jobs.batch}/small")
    assert status["workload"] | {"uid": job["metadata"]["uid"]} == status["workload"]
    assert job["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]
    pod = job["spec"]["template"]
    assert pod["metadata"]["labels"]["dippm.dev/inference-job"] == "small"
    slices = {"nvidia.com/mig-1g.5gb": "1"}
    assert pod["spec"]["containers"][0]["resources"] == {"limits": slices, "requests": slices}
    assert pod["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    events = jobs.wait_for_events("ArtifactResolved", "Predicted", "NodeOffersProfile", "JobCreated")
    assert {e["type"] for e in events} == {"Normal"}


def test_larger_profile_is_taken_where_the_fitting_one_is_not_offered(jobs: Jobs, store: ModelStore) -> None:
    store.files["/middle"] = b"8000"
    jobs.create(manifest("middle", f"{store.url}/middle"))
    assert jobs.wait("middle", is_ready)["recommendation"]["profile"] == "3g.20gb"


def test_recommend_touches_nothing(jobs: Jobs, store: ModelStore) -> None:
    store.files["/small"] = b"1700"
    jobs.create(manifest("quiet", f"{store.url}/small", policy={"mode": "Recommend"}))
    status = jobs.wait("quiet", is_ready)
    assert condition(status, "Ready") == ("True", "RecommendOnly")
    assert status["recommendation"]["profile"] == "1g.5gb"
    assert jobs.job_names() == []


def test_too_large_for_every_profile(jobs: Jobs, store: ModelStore) -> None:
    store.files["/huge"] = b"99000"
    jobs.create(manifest("huge", f"{store.url}/huge"))
    status = jobs.wait("huge", lambda s: condition(s, "Placeable")[0] == "False")
    assert status["recommendation"]["profile"] == "None"
    assert "resource" not in status["recommendation"]
    assert condition(status, "Ready") == ("False", "TooLargeForEveryProfile")
    assert jobs.job_names() == []


@pytest.mark.parametrize(
    ("path", "digest", "reason"),
    [
        ("/missing", None, "ArtifactUnreachable"),
        ("/text", None, "ModelUnreadable"),
        ("/text", "sha256:" + "0" * 64, "DigestMismatch"),
    ],
)
def test_bad_artifact_is_one_sentence_in_condition_and_event(
    jobs: Jobs, store: ModelStore, path: str, digest: str | None, reason: str
) -> None:
    store.files["/text"] = b"not a model"
    body = manifest("bad", store.url + path)
    if digest:
        body["spec"]["model"]["digest"] = digest
    jobs.create(body)
    status = jobs.wait("bad", lambda s: condition(s, "Resolved")[0] == "False")
    assert condition(status, "Ready") == ("False", reason)
    message = next(c["message"] for c in status["conditions"] if c["type"] == "Ready")
    assert path in message
    events = jobs.wait_for_events(reason)
    assert all((e["type"], e["message"]) == ("Warning", message) for e in events)


def test_edit_makes_the_job_stale_and_only_a_new_run_makes_another(jobs: Jobs, store: ModelStore) -> None:
    store.files["/small"] = b"1700"
    jobs.create(manifest("edited", f"{store.url}/small"))
    first = jobs.wait("edited", is_ready)
    template = {"spec": {"containers": [{"name": "c", "image": "other"}]}}
    jobs.change("edited", template=template)
    stale = jobs.wait("edited", lambda s: condition(s, "Stale")[0] == "True")
    assert stale["workload"]["uid"] == first["workload"]["uid"]
    assert jobs.job_names() == ["edited"]

    jobs.change("edited", runID="2")
    second = jobs.wait("edited", lambda s: s["workload"].get("runID") == "2")
    assert second["workload"]["uid"] != first["workload"]["uid"]
    assert len(jobs.job_names()) == 2
    assert condition(second, "Stale")[0] == "False"


def test_job_that_is_gone_is_not_made_again(jobs: Jobs, store: ModelStore) -> None:
    store.files["/small"] = b"1700"
    jobs.create(manifest("once", f"{store.url}/small"))
    jobs.wait("once", is_ready)
    jobs.plane.delete(f"{jobs.batch}/once?propagationPolicy=Background")
    gone = jobs.wait("once", lambda s: condition(s, "Ready")[1] == "JobGone")
    assert gone["recommendation"]["profile"] == "1g.5gb"
    assert jobs.job_names() == []


def test_failed_new_prediction_keeps_the_last_good_recommendation(jobs: Jobs, store: ModelStore) -> None:
    store.files["/served"] = b"1700"
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    jobs.create(manifest("served", f"{store.url}/served", targetRef=target))
    jobs.wait("served", is_ready)
    store.files["/served"] = b"half an upload"
    jobs.change("served", batchSize=64)
    status = jobs.wait("served", lambda s: s.get("observedGeneration") == 2)
    assert condition(status, "Predicted") == ("False", "ModelUnreadable")
    assert condition(status, "Ready") == ("True", "SizedAtAdmission")
    assert status["recommendation"]["profile"] == "1g.5gb"


def test_two_jobs_that_claim_one_target(jobs: Jobs, store: ModelStore) -> None:
    store.files["/small"] = b"1700"
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shared"}
    jobs.create(manifest("b-older", f"{store.url}/small", targetRef=target))
    jobs.wait("b-older", is_ready)
    time.sleep(1.1)  # creationTimestamp has whole seconds
    jobs.create(manifest("a-newer", f"{store.url}/small", targetRef=target))
    jobs.wait("a-newer", lambda s: condition(s, "Ready") == ("False", "TargetConflict"))
    assert is_ready(jobs.plane.get(f"{jobs.path}/b-older")["status"])


def test_second_operator_lives_but_waits_for_the_lease(jobs: Jobs, control_plane: ControlPlane, tmp_path: Path) -> None:
    assert leader(control_plane) == "one"
    port = free_port()
    second = start_operator(
        control_plane, tmp_path, "tests.integration.operator_standin", "--identity", "two", "--health-port", str(port)
    )
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
                    assert answer.status == 200
                    break
            except OSError:
                assert second.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        time.sleep(3)
        assert leader(control_plane) == "one"
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait(20) == 0


async def test_lease_goes_to_the_next_when_it_is_released_or_runs_out(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with ApiClient(await Connection.from_kubeconfig(control_plane.kubeconfig)) as api:
        timing = {"duration_seconds": 6.0, "renew_deadline_seconds": 5.0, "retry_seconds": 0.1}
        leases = {n: Lease(api, namespace=namespace, name="l", identity=n, **timing) for n in ("a", "b", "c")}
        await asyncio.wait_for(leases["a"].acquire(), 30)
        waiting = asyncio.ensure_future(leases["b"].acquire())
        await asyncio.sleep(0.5)
        assert not waiting.done()
        await leases["a"].release()
        released = time.monotonic()
        await asyncio.wait_for(waiting, 30)
        assert time.monotonic() - released < 5.0, "it did not wait for the lease to run out"
        with pytest.raises(LeaseLost, match="taken by another"):
            await leases["a"].keep()
        await asyncio.wait_for(leases["c"].acquire(), 30)  # b does not renew
        written = await api.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/l")
        assert (written["spec"]["holderIdentity"], written["spec"]["leaseTransitions"]) == ("c", 2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}, "exactly one of template"),
        ({"template": None}, "exactly one of template"),
        ({"policy": {"onUnknown": "Fallback"}}, "needs policy.fallbackProfile"),
        ({"generation": {"maxContextTokens": 10, "maxNewTokens": 11}}, "maxNewTokens must not be more"),
        ({"model": {"uri": "ftp://host/m"}}, "must be a URI that starts with one of https://"),
        ({"model": {"uri": "https://h/m", "digest": "sha256:12"}}, "spec.model.digest"),
        ({"precision": "fp8"}, "spec.precision"),
        ({"batchSize": 0}, "spec.batchSize"),
        ({"policy": {"allowedProfiles": ["small"]}}, "spec.policy.allowedProfiles"),
    ],
)
def test_schema_and_rules_refuse(
    control_plane: ControlPlane, namespace: str, change: dict[str, Any], sentence: str
) -> None:
    control_plane.install_crd(custom_resource_definition())
    body = manifest("refused", "https://host/model.onnx")
    body["spec"] = {k: v for k, v in (body["spec"] | copy.deepcopy(change)).items() if v is not None}
    with pytest.raises(Exception, match=r"^422: ") as caught:
        control_plane.create(f"/apis/dippm.dev/v1alpha1/namespaces/{namespace}/inferencejobs", body)
    assert sentence in str(caught.value)


def test_rules_on_names_and_on_changes(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.install_crd(custom_resource_definition())
    path = f"/apis/dippm.dev/v1alpha1/namespaces/{namespace}/inferencejobs"
    with pytest.raises(Exception, match="more than 52 characters"):
        control_plane.create(path, manifest("x" * 53, "https://host/m"))
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    control_plane.create(path, manifest("fixed", "s3://host/m", targetRef=target))
    with pytest.raises(Exception, match="targetRef cannot be changed"):
        control_plane.patch(f"{path}/fixed", {"spec": {"targetRef": {"name": "other"}}})
    with pytest.raises(Exception, match="cannot be exchanged"):
        control_plane.patch(f"{path}/fixed", {"spec": {"targetRef": None, "template": {"spec": {"containers": []}}}})
    kept = control_plane.get(f"{path}/fixed")
    assert kept["spec"]["policy"]["existingRequest"] == "Keep"
    assert kept["spec"]["runID"] == "1"


def test_pods_without_their_slice_or_out_of_memory_are_told(jobs: Jobs, store: ModelStore) -> None:
    store.files["/small"] = b"1700"
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "seen"}
    jobs.create(manifest("seen", f"{store.url}/small", targetRef=target))
    jobs.wait("seen", is_ready)
    path = jobs.events.replace("/events", "/pods")
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "early", "labels": {"dippm.dev/inference-job": "seen"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    jobs.plane.create(path, pod)
    jobs.wait("seen", lambda s: condition(s, "Ready") == ("False", "UnsizedPods"))
    jobs.plane.delete(f"{path}/early?gracePeriodSeconds=0")
    jobs.wait("seen", is_ready)

    pod["metadata"] |= {"name": "late", "annotations": {"dippm.dev/sizing": '{"resource": "nvidia.com/mig-1g.5gb"}'}}
    jobs.plane.create(path, pod)
    ended = {
        "exitCode": 1,
        "message": "torch.OutOfMemoryError: CUDA out of memory.",
        "finishedAt": "2026-01-02T00:00:00Z",
    }
    container = {"name": "c", "image": "i", "imageID": "", "ready": False, "restartCount": 1, "state": {}}
    container["lastState"] = {"terminated": ended}
    jobs.plane.patch(f"{path}/late/status", {"status": {"containerStatuses": [container]}})
    jobs.wait("seen", lambda s: condition(s, "OutOfMemory") == ("True", "GpuMemoryExhausted"))
    assert jobs.wait_for_events("GpuMemoryExhausted")[0]["type"] == "Warning"


def test_replica_set_that_waits_for_the_prediction_is_asked_to_retry(jobs: Jobs, store: ModelStore) -> None:
    path = jobs.events.replace("/api/v1", "/apis/apps/v1").replace("/events", "/replicasets")

    def replica_set(name: str, labels: dict[str, str], owner: str) -> dict[str, Any]:
        return {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": owner, "uid": "u"}],
            },
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name, **labels}},
                    "spec": {"containers": [{"name": "c", "image": "i"}]},
                },
            },
        }

    mine = {"dippm.dev/inference-job": "held"}
    for body in (
        replica_set("by-label", mine, "any"),
        replica_set("by-owner", {}, "held"),
        replica_set("another", {}, "another"),
    ):
        jobs.plane.create(path, body)
    store.files["/small"] = b"1700"
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "held"}
    jobs.create(manifest("held", f"{store.url}/small", targetRef=target, policy={"onUnknown": "Deny"}))
    jobs.wait("held", is_ready)
    deadline = time.monotonic() + 10
    while True:
        sets = jobs.plane.get(path)["items"]
        touched = {
            s["metadata"]["name"] for s in sets if "dippm.dev/predicted-at" in s["metadata"].get("annotations", {})
        }
        if touched == {"by-label", "by-owner"}:
            break
        assert time.monotonic() < deadline, touched
        time.sleep(0.1)
