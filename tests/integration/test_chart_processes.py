"""The chart as it runs: both commands with the arguments of its Deployments, under its ServiceAccounts' own tokens.

What the cluster would do besides is done here: kubelet mounts the certificate's Secret, and the Service leads to the
webhook (as an ExternalName, since nothing routes cluster addresses; certificates are checked for the Service's name as
ever). A permission that the chart forgot shows as a process that does not get there, or as "forbidden" in its log.
"""

from __future__ import annotations

import base64
import functools
import http.server
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from tests.chart import CHART, REPOSITORY

pytestmark = [pytest.mark.controlplane, pytest.mark.timeout(180)]

RELEASE = "running-dippm"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
MODULES = {"dippm-operator": "dippm_operator.controller.main", "dippm-webhook": "dippm_operator.webhook.main"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait(what: str, condition: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)
    return found


@dataclass
class Process:
    """One container of the chart, run as a process."""

    component: str
    log: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes] = field(repr=False)

    def probe(self, path: str, port: str) -> int:
        """Status of a probe; 0 while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[port]}{path}", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(30)


class Release:
    """An installed chart, and what kubelet and the network would add."""

    def __init__(self, control_plane: Any, namespace: str, folder: Path) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self.folder = folder
        self.processes: list[Process] = []
        self._stopping = threading.Event()

    def start(self, component: str, *extra: str) -> Process:
        """Run a component's container with its own arguments; paths and ports are this machine's."""
        place = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{RELEASE}-{component}"
        pod = self.control_plane.get(place)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        ports = {p["name"]: free_port() for p in container["ports"]}
        numbers = {str(p["containerPort"]): str(ports[p["name"]]) for p in container["ports"]}
        folders = {m["mountPath"]: self.folder / component / m["name"] for m in container["volumeMounts"]}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        arguments = []
        for argument in container["args"]:
            flag, _, value = argument.partition("=")
            if flag.endswith("port"):
                value = numbers[value]
            arguments.append(f"{flag}={folders.get(value, value)}")
        (command,) = container["command"]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(str(REPOSITORY / half) for half in ("predictor", "operator")),
            "TMPDIR": str(folders["/tmp"]),
            "HOME": str(folders["/tmp"]),
            "POD_NAME": f"{RELEASE}-{component}-0",
        }
        kubeconfig = self.kubeconfig(pod["serviceAccountName"])
        log = self.folder / f"{component}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", MODULES[command], *arguments, f"--kubeconfig={kubeconfig}", *extra],
                env=environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
            )
        running = Process(component, log, ports, process)
        self.processes.append(running)
        for volume in pod["volumes"]:
            if "secret" in volume:
                mounted = next(m["mountPath"] for m in container["volumeMounts"] if m["name"] == volume["name"])
                self.mount(volume["secret"]["secretName"], folders[mounted])
        return running

    def kubeconfig(self, account: str) -> Path:
        """A kubeconfig with a token of the account, and nothing else."""
        place = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/{account}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        config = yaml.safe_load(self.control_plane.kubeconfig.read_text())
        token = self.control_plane.create(place, request)["status"]["token"]
        config["users"][0]["user"] = {"token": token}
        config["contexts"][0]["context"]["namespace"] = self.namespace
        path = self.folder / f"{account}.kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def mount(self, secret: str, folder: Path) -> None:
        """Keep a Secret's files in a folder, as kubelet does: a new folder each time, one link swapped."""

        def sync() -> None:
            seen = ""
            while not self._stopping.wait(0.2):
                try:
                    found = self.control_plane.get(f"/api/v1/namespaces/{self.namespace}/secrets/{secret}")
                except Exception as missing:
                    if getattr(missing, "code", None) == 404:  # optional: true
                        continue
                    raise
                if found["metadata"]["resourceVersion"] == seen:
                    continue
                seen = found["metadata"]["resourceVersion"]
                version = folder / f"..{seen}"
                version.mkdir()
                for name, content in found["data"].items():
                    (version / name).write_bytes(base64.b64decode(content))
                    if not (folder / name).is_symlink():
                        (folder / name).symlink_to(Path("..data") / name)
                (folder / "..new").symlink_to(version.name)
                (folder / "..new").replace(folder / "..data")

        threading.Thread(target=sync, daemon=True).start()

    def route(self, port: int) -> None:
        """Lead the API server's calls of the Service to a port of this machine."""
        service = f"/api/v1/namespaces/{self.namespace}/services/{RELEASE}-webhook"
        external = {"type": "ExternalName", "externalName": "localhost", "clusterIP": None, "clusterIPs": None}
        self.control_plane.patch(service, {"spec": external})
        for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
            place = f"{ADMISSION}/{kind}/{RELEASE}"
            moved = [
                {"op": "replace", "path": f"/webhooks/{index}/clientConfig/service/port", "value": port}
                for index, _ in enumerate(self.control_plane.get(place)["webhooks"])
            ]
            self.control_plane.request("PATCH", place, moved, content_type="application/json-patch+json")

    def stop(self) -> None:
        self._stopping.set()
        for process in self.processes:
            if process.process.poll() is None:
                process.stop()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """The test's output is not an access log."""


@pytest.fixture(scope="module")
def model_url() -> Iterator[str]:
    """Where examples/models is served over loopback HTTP."""
    handler = functools.partial(_Quiet, directory=str(REPOSITORY / "examples" / "models"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def release(control_plane: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    """The chart installed, both processes running and ready."""
    namespace = f"{RELEASE}-{os.getpid()}"
    control_plane.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
    adopt_crd(control_plane, namespace)
    release = Release(control_plane, namespace, tmp_path_factory.mktemp(RELEASE))
    with helm_python.Config(kubeconfig_path=control_plane.kubeconfig, namespace=namespace) as helm:
        helm.install(CHART, RELEASE, namespace=namespace)
        try:
            operator = release.start("operator", "--allow-loopback")
            webhook = release.start("webhook", "--drain-seconds=0.1")
            release.route(webhook.ports["https"])
            wait("the operator is live", lambda: operator.probe("/healthz", "health") == 200)
            wait("the webhook is ready", lambda: webhook.probe("/readyz", "metrics") == 200)
            yield release
        finally:
            release.stop()
            helm.uninstall(RELEASE)


def adopt_crd(control_plane: Any, namespace: str) -> None:
    """Helm takes over only what says that it belongs to the release; other tests' CRD may be there."""
    if "inferencejobs.dippm.dev" in [crd["metadata"]["name"] for crd in control_plane.get(CRD)["items"]]:
        owner = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": namespace}
        labels = {"app.kubernetes.io/managed-by": "Helm"}
        control_plane.patch(f"{CRD}/inferencejobs.dippm.dev", {"metadata": {"annotations": owner, "labels": labels}})


def jobs(namespace: str) -> str:
    return f"/apis/dippm.dev/v1alpha1/namespaces/{namespace}/inferencejobs"


def inference_job(name: str, uri: str, **spec: Any) -> dict[str, Any]:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "server", "image": "server:1"}]}}
    return {
        "apiVersion": "dippm.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"name": name},
        "spec": {"model": {"uri": uri}, "batchSize": 32, "device": "A100-SXM4-40GB", "template": template} | spec,
    }


def condition(control_plane: Any, place: str, type_: str) -> dict[str, Any]:
    """A condition of an InferenceJob; empty while it is not there."""
    conditions = (control_plane.get(place).get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c["type"] == type_), {})


def is_ready(control_plane: Any, place: str) -> bool:
    """Whether an InferenceJob is ready; a prediction that failed will not become one by waiting."""
    predicted = condition(control_plane, place, "Predicted")
    assert predicted.get("status") != "False", predicted
    return bool(condition(control_plane, place, "Ready").get("status") == "True")


def test_a_job_is_predicted_and_comes_up_with_its_slice(
    release: Release, control_plane: Any, namespace: str, model_url: str
) -> None:
    control_plane.create(jobs(namespace), inference_job("resnet50", f"{model_url}/resnet50.onnx"))
    place = f"{jobs(namespace)}/resnet50"
    wait("the Job is made", lambda: is_ready(control_plane, place), 90)
    status = control_plane.get(place)["status"]
    resource = status["recommendation"]["resource"]
    made = control_plane.get(f"/apis/batch/v1/namespaces/{namespace}/jobs/resnet50")
    (container,) = made["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {resource: "1"}, "requests": {resource: "1"}}
    events = control_plane.get(f"/api/v1/namespaces/{namespace}/events")["items"]
    assert {"Predicted", "JobCreated"} <= {event["reason"] for event in events}


def test_a_labelled_pod_is_sized_through_the_service(
    release: Release, control_plane: Any, namespace: str, model_url: str
) -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    job = inference_job("web", f"{model_url}/resnet50.onnx", targetRef=target)
    del job["spec"]["template"]
    control_plane.create(jobs(namespace), job)
    place = f"{jobs(namespace)}/web"
    wait("the size is known", lambda: is_ready(control_plane, place), 90)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-", "labels": {"dippm.dev/inference-job": "web"}},
        "spec": {"containers": [{"name": "server", "image": "server:1"}]},
    }

    def sized() -> Any:
        made = control_plane.create(f"/api/v1/namespaces/{namespace}/pods", pod)
        return "dippm.dev/sizing" in made["metadata"].get("annotations", {}) and made

    made = wait("the pod is sized", sized, 10)
    resource = control_plane.get(place)["status"]["recommendation"]["resource"]
    assert made["spec"]["containers"][0]["resources"]["limits"] == {resource: "1"}


def test_a_bad_job_is_refused_through_the_service(release: Release, control_plane: Any, namespace: str) -> None:
    with pytest.raises(Exception, match=r"spec\.device: unknown device"):
        control_plane.create(jobs(namespace), inference_job("bad", "https://example.com/a.onnx", device="A900"))


def test_a_model_that_is_none_is_one_sentence_on_the_resource(
    release: Release, control_plane: Any, namespace: str, model_url: str
) -> None:
    control_plane.create(jobs(namespace), inference_job("none", f"{model_url}/make_models.py"))
    place = f"{jobs(namespace)}/none"
    wait("the model is refused", lambda: condition(control_plane, place, "Predicted").get("status") == "False")
    found = condition(control_plane, place, "Predicted")
    assert found["reason"] == "ModelUnreadable"
    assert "Traceback" not in found["message"]


def test_the_certificate_is_the_operators_and_the_configurations_trust_it(release: Release, control_plane: Any) -> None:
    secret = control_plane.get(f"/api/v1/namespaces/{release.namespace}/secrets/{RELEASE}-webhook-tls")
    assert secret["type"] == "kubernetes.io/tls"
    for kind in ("mutatingwebhookconfigurations", "validatingwebhookconfigurations"):
        for webhook in control_plane.get(f"{ADMISSION}/{kind}/{RELEASE}")["webhooks"]:
            assert base64.b64decode(webhook["clientConfig"]["caBundle"]).startswith(b"-----BEGIN CERTIFICATE-----")


def test_metrics_are_where_the_pod_monitor_looks(release: Release) -> None:
    for process in release.processes:
        assert process.probe("/metrics", "metrics") == 200, process.component


def test_no_permission_is_missing(release: Release) -> None:
    """Last but one: what the tests above made them do is in their logs."""
    for process in release.processes:
        # Every client spells a 403's reason; the bare number is also a port's or a millisecond's.
        lines = [line for line in process.log.read_text().splitlines() if "forbidden" in line.lower()]
        assert lines == [], process.component


def test_both_stop_when_they_are_told_to(release: Release, control_plane: Any) -> None:
    for process in release.processes:
        assert process.stop() == 0, process.log.read_text()[-2000:]
    lease = control_plane.get(f"/apis/coordination.k8s.io/v1/namespaces/{release.namespace}/leases/{RELEASE}-operator")
    assert lease["spec"].get("holderIdentity", "") == "", "another one may take over at once"
