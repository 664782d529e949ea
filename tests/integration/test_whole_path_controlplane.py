"""From an InferenceJob to a sized pod: operator and webhook as processes, each under its account of the chart.

The predictor is stood in for (`operator_standin`); what stands before and after it is the product's own.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.chart import NAMESPACE
from tests.integration.test_operator_controlplane import ModelStore, start_operator
from tests.integration.webhook_process import RELEASE, inference_job, jobs, pod

from dippm_operator.resource.names import SIZING_ANNOTATION

pytestmark = pytest.mark.controlplane

SMALL = {"nvidia.com/mig-1g.5gb": "1"}


@pytest.fixture(scope="module")
def store() -> Iterator[ModelStore]:
    store = ModelStore()
    store.files["/model"] = b"1700"
    yield store
    store.close()


@pytest.fixture(scope="module")
def operator(control_plane, webhook, tmp_path_factory) -> Iterator[None]:
    """The operator with the chart's role, and a node with slices."""
    node = {"metadata": {"name": "whole-path", "labels": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB"}}}
    control_plane.create("/api/v1/nodes", node)
    sizes = {"nvidia.com/mig-1g.5gb": "7"}
    control_plane.patch("/api/v1/nodes/whole-path/status", {"status": {"allocatable": sizes, "capacity": sizes}})
    folder = tmp_path_factory.mktemp("operator")
    options = ["--kubeconfig", str(webhook.account("operator")), "--namespace", NAMESPACE]
    options += ["--lease", f"{RELEASE}-operator", "--identity", "whole-path"]
    process = start_operator(control_plane, folder, "tests.integration.operator_standin", *options)
    yield
    process.send_signal(signal.SIGTERM)
    code = process.wait(30)
    control_plane.delete("/api/v1/nodes/whole-path")
    log = (folder / "operator.log").read_text()
    assert code == 0, log
    assert "forbidden" not in log, log
    assert "Traceback" not in log, log


def soon(wanted: Callable[[], Any], seconds: float = 30) -> Any:
    """The first answer that is not empty."""
    deadline = time.monotonic() + seconds
    while not (answer := wanted()):
        assert time.monotonic() < deadline, f"not in {seconds} s"
        time.sleep(0.1)
    return answer


def test_a_deployments_pod_is_held_back_until_the_model_is_predicted(
    control_plane, namespace, webhook, operator, store
):
    body = inference_job("web", model={"uri": f"{store.url}/later"}, policy={"onUnknown": "Deny"})
    control_plane.create(jobs(namespace), body)
    pods = f"/api/v1/namespaces/{namespace}/pods"

    def reason() -> str:
        conditions = control_plane.get(f"{jobs(namespace)}/web").get("status", {}).get("conditions", [])
        return "".join(c["reason"] for c in conditions if c["type"] == "Resolved" and c["status"] == "False")

    assert soon(reason) == "ArtifactUnreachable"  # nobody has uploaded it yet

    def refusal() -> str:
        """Until the webhook, too, has heard what the operator found."""
        with pytest.raises(Exception, match="InferenceJob web is not predicted yet") as refused:
            control_plane.create(pods, pod("web"))
        return refused.value.message if "/later" in refused.value.message else ""

    assert "policy.onUnknown: Deny" in soon(refusal)

    store.files["/later"] = b"1700"
    control_plane.patch(f"{jobs(namespace)}/web", {"spec": {"model": {"resolveIntervalMinutes": 1}}})  # ask again now

    def sized() -> dict[str, Any] | None:
        try:
            return control_plane.create(pods, pod("web"))
        except Exception as error:
            if getattr(error, "code", None) == 503:
                return None
            raise

    made = soon(sized)
    assert made["spec"]["containers"][0]["resources"] == {"limits": SMALL, "requests": SMALL}
    assert "needs 1700 MiB" in made["metadata"]["annotations"][SIZING_ANNOTATION]


def test_the_pod_of_a_job_that_the_operator_made_is_admitted_as_it_is(
    control_plane, namespace, webhook, operator, store
):
    body = inference_job("run", model={"uri": f"{store.url}/model"})
    del body["spec"]["targetRef"]
    body["spec"]["template"] = {"spec": {"restartPolicy": "Never", "containers": pod("")["spec"]["containers"]}}
    control_plane.create(jobs(namespace), body)
    batch = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    (job,) = soon(lambda: control_plane.get(batch)["items"])
    template = job["spec"]["template"]
    assert template["spec"]["containers"][0]["resources"] == {"limits": SMALL, "requests": SMALL}

    # What the Job controller would create.
    controller = {"apiVersion": "batch/v1", "kind": "Job", "controller": True}
    owner = controller | {"name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
    metadata = template["metadata"] | {"generateName": "run-", "ownerReferences": [owner]}

    def admitted() -> dict[str, Any] | None:
        """Without a warning once the webhook, too, has heard what the operator predicted."""
        made, warnings = control_plane.request(
            "POST", f"/api/v1/namespaces/{namespace}/pods", {"metadata": metadata, "spec": template["spec"]}
        )
        assert not warnings or "there is no prediction yet" in warnings[0]
        return None if warnings else made

    made = soon(admitted)
    assert made["metadata"]["annotations"] == template["metadata"]["annotations"]
    assert made["spec"]["containers"][0]["resources"] == {"limits": SMALL, "requests": SMALL}
    assert 'endpoint="mutate",reason="AlreadySized"' in webhook.probe("metrics")[1]
