"""From prediction, policy and nodes to the recommendation; the Job that is rendered from it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator_predictions import prediction_of

from dippm.case import Allocator, Case, Precision
from dippm.errors import ManifestError, UnknownDevice, UnknownProfile
from dippm.profiles import size_order
from dippm_operator.resource import InferenceJob, InferenceJobStatus, parse_inference_job
from dippm_operator.resource.names import NO_PROFILE
from dippm_operator.sizing.decision import case_of, decide, policy_of
from dippm_operator.sizing.inventory import Inventory, declare, inventory_of
from dippm_operator.sizing.job import job_name, render_job, template_digest
from dippm_operator.sizing.workload import size_workload

A100 = "A100-SXM4-40GB"
PRODUCT = "NVIDIA-A100-SXM4-40GB"


def job(**spec: Any) -> InferenceJob:
    body = {
        "apiVersion": "dippm.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"name": "web", "namespace": "vision", "uid": "u"},
        "spec": {
            "model": {"uri": "https://h/m"},
            "batchSize": 4,
            "template": {
                "metadata": {"labels": {"team": "a"}, "annotations": {"note": "kept"}},
                "spec": {"containers": [{"name": "c"}]},
            },
            **spec,
        },
    }
    body["spec"] = {k: v for k, v in body["spec"].items() if v is not None}
    return parse_inference_job(body)


def node(*slices: str, product: str = PRODUCT, tainted: bool = False, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "labels": {"nvidia.com/gpu.product": product, **labels}},
        "spec": {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}] if tainted else None},
        "status": {"allocatable": {f"nvidia.com/mig-{s}": "1" for s in slices} | {"cpu": "8"}},
    }


inventories = st.lists(
    st.lists(st.sampled_from(["1g.5gb", "2g.10gb", "3g.20gb", "7g.40gb"]), max_size=3).map(lambda s: node(*s)),
    max_size=2,
).map(inventory_of)
policies = st.fixed_dictionaries(
    {},
    optional={
        "allowedProfiles": st.lists(
            st.sampled_from(["1g.5gb", "2g.10gb", "3g.20gb"]), min_size=1, max_size=2, unique=True
        ),
        "maxLatencyMilliseconds": st.integers(5, 100),
        "allowFullGPU": st.booleans(),
    },
)


@given(st.floats(1, 90_000), st.floats(1, 90_000), policies, inventories)
def test_larger_prediction_never_gets_a_smaller_profile(
    one: float, other: float, policy: dict[str, Any], inventory: Inventory
) -> None:
    spec = job(policy=policy).spec
    chosen = []
    for required in sorted((one, other)):
        prediction = prediction_of(required, policy=policy_of(spec))
        recommendation = decide(prediction, spec, inventory).recommendation
        sizes = {c.profile: size_order(c.usable_mib, c.profile) for c in prediction.candidates}
        chosen.append(sizes.get(recommendation.profile, (True, float("inf"), 9, "~")))
        if recommendation.fits:
            assert required <= {c.profile: c.usable_mib for c in prediction.candidates}[recommendation.profile]
    assert chosen[0] <= chosen[1]


@given(st.floats(1, 90_000), policies, inventories)
def test_recommendation_and_placeable_agree(required: float, policy: dict[str, Any], inventory: Inventory) -> None:
    spec = job(policy=policy).spec
    decision = decide(prediction_of(required, policy=policy_of(spec)), spec, inventory)
    if decision.recommendation.profile == NO_PROFILE:
        assert decision.placeable.status is False
        assert decision.recommendation.resource is None
    elif decision.placeable.status is True:
        assert inventory.offers(A100, str(decision.recommendation.resource))
    assert decision.placeable.message.endswith(".")
    assert f"{decision.prediction.required_upper_mib} MiB" in decision.placeable.message


@pytest.mark.parametrize(
    ("required", "policy", "nodes", "profile", "placeable", "reason"),
    [
        (1700, {}, [], "1g.5gb", None, "NoNodeOfDevice"),
        (1700, {}, [node("1g.5gb")], "1g.5gb", True, "NodeOffersProfile"),
        (1700, {}, [node("3g.20gb")], "3g.20gb", True, "NodeOffersProfile"),
        (1700, {}, [node()], "1g.5gb", None, "NoSlicesAdvertised"),
        (30_000, {}, [node("3g.20gb")], "7g.40gb", False, "ProfileNotOffered"),
        (99_000, {}, [node("3g.20gb")], "None", False, "TooLargeForEveryProfile"),
        (9_000, {"allowedProfiles": ["1g.5gb"]}, [], "None", False, "FitsNoAllowedProfile"),
        (1700, {"maxLatencyMilliseconds": 24}, [], "3g.20gb", None, "NoNodeOfDevice"),
        (1700, {"maxLatencyMilliseconds": 5}, [], "None", False, "TooSlowOnEveryProfile"),
        (40_300, {"allowFullGPU": True}, [], "full", None, "NoNodeOfDevice"),
        (1700, {}, [node("1g.5gb", product="NVIDIA-A30")], "1g.5gb", None, "NoNodeOfDevice"),
        (1700, {}, [node("1g.5gb", **{"nvidia.com/mig.config.state": "pending"})], "1g.5gb", None, "NoNodeOfDevice"),
    ],
)
def test_decision(
    required: float, policy: dict[str, Any], nodes: list[Any], profile: str, placeable: bool | None, reason: str
) -> None:
    spec = job(policy=policy).spec
    decision = decide(prediction_of(required, policy=policy_of(spec)), spec, inventory_of(nodes))
    assert decision.recommendation.profile == profile
    assert (decision.placeable.status, decision.placeable.reason) == (placeable, reason)


def test_usual_product_is_that_of_most_nodes_with_slices() -> None:
    nodes = [node("1g.6gb", product="NVIDIA-A30"), node(product="NVIDIA-H100-PCIe"), node(product="NVIDIA-H100-PCIe")]
    assert inventory_of(nodes).usual_product() == "A30"
    assert inventory_of([]).usual_product() is None
    assert inventory_of([{"metadata": {"name": "cpu"}}]).nodes == ()


def test_toleration_is_needed_only_where_all_that_offer_are_tainted() -> None:
    resource = "nvidia.com/mig-1g.5gb"
    tainted, free = node("1g.5gb", tainted=True), node("1g.5gb")
    assert inventory_of([tainted]).needs_toleration(A100, resource)
    assert not inventory_of([tainted, free]).needs_toleration(A100, resource)


def test_size_of_a_slice_is_what_the_node_says() -> None:
    device = inventory_of([node("1g.5gb", **{"nvidia.com/mig-1g.5gb.memory": "4096"})]).device(A100)
    assert device is not None
    assert device.profile("1g.5gb").usable_mib == 4096


def test_case_and_policy_are_what_the_spec_says() -> None:
    spec = job(
        precision="bf16", processes=2, policy={"allocator": "Expandable", "headroomMiB": 64, "oomRiskPercent": 5}
    ).spec
    assert case_of(spec, "A30") == Case(4, Precision.BF16, allocator=Allocator.EXPANDABLE, device="A30")
    policy = policy_of(spec)
    assert (policy.processes, policy.headroom_mib, policy.oom_risk_percent) == (2, 64.0, 5.0)


def sized(inference_job: InferenceJob, required: float = 1700) -> InferenceJob:
    decision = decide(prediction_of(required), inference_job.spec)
    status = InferenceJobStatus(prediction=decision.prediction, recommendation=decision.recommendation)
    return inference_job.model_copy(update={"status": status})


def test_rendered_job() -> None:
    rendered = render_job(sized(job(job={"ttlSecondsAfterFinished": 60, "suspend": True}))).manifest
    assert rendered["metadata"]["ownerReferences"][0] | {"uid": "u", "controller": True} == {
        "apiVersion": "dippm.dev/v1alpha1", "kind": "InferenceJob", "name": "web", "uid": "u", "controller": True,
        "blockOwnerDeletion": True,
    }  # fmt: skip
    spec = rendered["spec"]
    assert (spec["ttlSecondsAfterFinished"], spec["backoffLimit"], spec["suspend"]) == (60, 2, True)
    template = spec["template"]
    assert template["metadata"]["labels"] == {"team": "a", "dippm.dev/inference-job": "web"}
    assert template["metadata"]["annotations"]["note"] == "kept"
    assert template["spec"]["restartPolicy"] == "Never"
    assert (
        rendered["metadata"]["annotations"]["dippm.dev/sizing"]
        == template["metadata"]["annotations"]["dippm.dev/sizing"]
    )


def test_restart_policy_of_the_owner_stays() -> None:
    template = {"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "c"}]}}
    assert (
        render_job(sized(job(template=template))).manifest["spec"]["template"]["spec"]["restartPolicy"] == "OnFailure"
    )


@given(st.text(min_size=1, max_size=63))
def test_job_names_are_dns_labels_and_differ_by_run(run: str) -> None:
    named = job(runID=run)
    name = job_name(named.model_copy(update={"metadata": named.metadata.model_copy(update={"name": "x" * 52})}))
    assert len(name) <= 63
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert (job_name(named) == "web") == (run == "1")


def test_digest_tells_what_makes_a_job_stale() -> None:
    first = sized(job())
    assert template_digest(first) == template_digest(sized(job(batchSize=8)))
    for other in (sized(job(), 9000), sized(job(job={"backoffLimit": 0})), sized(job(container="c"))):
        assert template_digest(other) != template_digest(first)


def test_job_without_template_is_one_sentence() -> None:
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    with pytest.raises(ManifestError, match=r"spec\.template is missing"):
        render_job(job(template=None, targetRef=target))


@pytest.mark.parametrize(
    ("workload", "path"),
    [
        ({"kind": "Pod", "spec": {"containers": [{"name": "c"}]}}, ()),
        (
            {"kind": "StatefulSet", "spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}},
            ("spec", "template"),
        ),
        (
            {
                "kind": "CronJob",
                "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}},
            },
            ("spec", "jobTemplate", "spec", "template"),
        ),
    ],
)
def test_pod_template_of_any_workload_is_found(workload: dict[str, Any], path: tuple[str, ...]) -> None:
    found = size_workload(workload, sized(job()))
    assert found is not None
    node: Any = found[0]
    for key in path:
        node = node[key]
    assert node["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/mig-1g.5gb": 1}
    assert size_workload({"kind": "ConfigMap", "data": {}}, sized(job())) is None


def test_declared_profiles_are_awaited_and_come_after_what_is_there() -> None:
    declared = declare("NVIDIA-A100-SXM4-40GB=2g.10gb,3g.20gb")
    spec = job().spec
    waiting = decide(prediction_of(1700), spec, Inventory(declared=declared))
    assert (waiting.recommendation.profile, waiting.placeable.reason) == ("2g.10gb", "AwaitingScaleUp")
    assert waiting.placeable.status is None
    there = Inventory(inventory_of([node("7g.40gb")]).nodes, declared)
    assert decide(prediction_of(1700), spec, there).recommendation.profile == "7g.40gb"
    assert Inventory(declared=declared).usual_product() == A100


@pytest.mark.parametrize("text", ["A30", "=1g.6gb", "A30=small", "A30=1c.2g.12gb"])
def test_declaration_that_cannot_be_read_is_one_sentence(text: str) -> None:
    with pytest.raises((UnknownDevice, UnknownProfile)):
        declare(text)
