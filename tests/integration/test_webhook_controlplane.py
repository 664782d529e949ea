"""Pods and InferenceJobs as a real API server admits them, asked about by a real webhook process."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.integration.webhook_process import RBAC, inference_job, jobs, pod, recommend, sized_soon

from dippm_operator.kube.api import ApiClient, ApiFailure
from dippm_operator.kube.connection import Connection
from dippm_operator.resource.names import INJECTION_LABEL, SIZING_ANNOTATION

pytestmark = pytest.mark.controlplane


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


def test_a_pod_joins_by_the_owner_of_its_owner(control_plane, namespace, webhook):
    """A Deployment that nobody edited, in a namespace that asks for it."""
    control_plane.create(jobs(namespace), inference_job("by-owner"))
    recommend(control_plane, namespace, "by-owner", "2g.10gb")
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod("")["spec"]}
    selector = {"matchLabels": {"app": "web"}}
    deployment = control_plane.create(
        f"/apis/apps/v1/namespaces/{namespace}/deployments",
        {"metadata": {"name": "web"}, "spec": {"selector": selector, "template": template}},
    )
    replica_set = control_plane.create(
        f"/apis/apps/v1/namespaces/{namespace}/replicasets",
        {
            "metadata": {"name": "web-5d8c7", "ownerReferences": [reference("Deployment", deployment)]},
            "spec": {"selector": selector, "template": template},
        },
    )
    owned = pod("") | {
        "metadata": {
            "generateName": "web-5d8c7-",
            "labels": {"app": "web"},
            "ownerReferences": [reference("ReplicaSet", replica_set)],
        }
    }
    pods = f"/api/v1/namespaces/{namespace}/pods"
    made = control_plane.create(pods, owned)
    assert SIZING_ANNOTATION not in made["metadata"].get("annotations", {})  # the namespace did not ask for it
    control_plane.patch(f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": {INJECTION_LABEL: "enabled"}}})
    webhook.wait(lambda: SIZING_ANNOTATION in control_plane.create(pods, owned)["metadata"].get("annotations", {}))
    made = control_plane.create(pods, owned)
    assert made["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/mig-2g.10gb": "1"}
    owned["metadata"]["labels"]["dippm.dev/inject"] = "false"
    assert SIZING_ANNOTATION not in control_plane.create(pods, owned)["metadata"].get("annotations", {})


def reference(kind: str, owner: dict[str, Any]) -> dict[str, Any]:
    metadata = owner["metadata"]
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
    }


def test_a_quota_on_gpus_is_not_got_around(control_plane, namespace, webhook):
    control_plane.create(
        f"/api/v1/namespaces/{namespace}/resourcequotas",
        {"metadata": {"name": "gpus"}, "spec": {"hard": {"requests.nvidia.com/gpu": "4"}}},
    )
    # Without a controller-manager nobody counts: the quota's own admission wants a status to count against.
    status = {"status": {"hard": {"requests.nvidia.com/gpu": "4"}, "used": {"requests.nvidia.com/gpu": "0"}}}
    control_plane.patch(f"/api/v1/namespaces/{namespace}/resourcequotas/gpus/status", status)
    control_plane.create(jobs(namespace), inference_job("greedy", policy={"existingRequest": "Replace"}))
    recommend(control_plane, namespace, "greedy")
    asking = pod("greedy")
    asking["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    webhook.wait(
        lambda: "QuotaUncovered" in webhook.probe("metrics")[1] or not warned(control_plane, namespace, asking)
    )
    assert any("a ResourceQuota covers nvidia.com/gpu" in w for w in warned(control_plane, namespace, asking))


def warned(control_plane, namespace, body) -> list[str]:
    return control_plane.request("POST", f"/api/v1/namespaces/{namespace}/pods", body)[1]


def test_a_secret_may_only_be_named_by_whoever_may_read_it(control_plane, namespace, webhook, tmp_path):
    """A tenant who may write jobs but not read Secrets, and then one who may read this one."""
    rules = [{"apiGroups": ["dippm.dev"], "resources": ["inferencejobs"], "verbs": ["create"]}]
    role = f"{RBAC}/namespaces/{namespace}/roles"
    control_plane.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "tenant"}})
    control_plane.create(role, {"metadata": {"name": "tenant"}, "rules": rules})
    binding = {
        "metadata": {"name": "tenant"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "tenant"},
        "subjects": [{"kind": "ServiceAccount", "name": "tenant", "namespace": namespace}],
    }
    control_plane.create(f"{RBAC}/namespaces/{namespace}/rolebindings", binding)
    kubeconfig = control_plane.kubeconfig_of(namespace, "tenant", tmp_path / "tenant")
    model = {"uri": "https://models.example/m.onnx", "secretRef": {"name": "models-reader"}}

    async def create(name: str) -> None:
        async with ApiClient(await Connection.from_kubeconfig(kubeconfig)) as api:
            await api.create(jobs(namespace), inference_job(name, model=model))

    with pytest.raises(ApiFailure, match=f"{namespace}:tenant may not read Secret models-reader") as refused:
        asyncio.run(create("first"))
    assert refused.value.code == 403
    reading = {"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["models-reader"], "verbs": ["get"]}
    control_plane.patch(f"{role}/tenant", {"rules": [*rules, reading]})

    def may_now() -> bool:
        try:
            asyncio.run(create("second"))
        except ApiFailure as failure:
            if failure.code == 403:
                return False
            raise
        return True

    webhook.wait(may_now)


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
        ({"policy": {"onOutOfMemory": "Bump"}}, "spec.policy.onOutOfMemory: Bump is not served by this version yet"),
        ({"policy": {"repair": "Evict"}}, "spec.policy.repair: Evict is not served by this version yet"),
        (
            {"generation": {"maxContextTokens": 4096, "maxNewTokens": 512}},
            "spec.generation is not served by this version yet; give the sequence length in spec.model.inputs instead",
        ),
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


def test_metrics_tell_what_was_answered(control_plane, namespace, webhook):
    control_plane.create(jobs(namespace), inference_job())
    _, text = webhook.probe("metrics")
    assert 'dippm_webhook_reviews_total{allowed="true",endpoint="validate",reason="Valid"}' in text
    assert 'dippm_webhook_step_seconds_bucket{endpoint="mutate",le="0.005",step="calculate"}' in text
