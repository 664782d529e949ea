"""What a pod gets: which container, which operations, which warnings; and that twice is the same as once."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dippm_operator.resource import InferenceJob, parse_inference_job
from dippm_operator.resource.names import INJECT_ANNOTATION, SIZING_ANNOTATION
from dippm_operator.sizing import choose_container, size_pod
from dippm_operator.sizing.tensor_parallel import tensor_parallel_size

SMALL = "nvidia.com/mig-1g.5gb"


def job(
    policy: dict[str, Any] | None = None,
    recommendation: dict[str, Any] | None = ...,
    **spec: Any,  # type: ignore[assignment]
) -> InferenceJob:
    if recommendation is ...:
        recommendation = {"profile": "1g.5gb", "resource": SMALL, "reason": "FitsWithHeadroom"}
    status: dict[str, Any] = {}
    if recommendation:
        prediction = dict.fromkeys(
            ("memoryMiB", "requiredMiB", "requiredUpperMiB", "latencyMicroseconds", "energyMillijoules"), 1700
        )
        status = {
            "recommendation": recommendation,
            "prediction": prediction | {"device": "A100-SXM4-40GB", "basis": "transferred"},
        }
    return parse_inference_job(
        {
            "apiVersion": "dippm.dev/v1alpha1",
            "kind": "InferenceJob",
            "metadata": {"name": "web", "namespace": "vision"},
            "spec": {
                "model": {"uri": "https://models.example/m.onnx"},
                "batchSize": 1,
                "policy": policy or {},
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
                **spec,
            },
            "status": status,
        }
    )


def pod(*containers: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    named = [{"name": f"c{index}", "image": "i"} | c for index, c in enumerate(containers)]
    return {"metadata": metadata, "spec": {"containers": named}}


def gpu(quantity: object = "1", name: str = "nvidia.com/gpu") -> dict[str, Any]:
    return {"resources": {"limits": {name: quantity}, "requests": {name: quantity}}}


def resources_of(sized: dict[str, Any], index: int = 0) -> dict[str, Any]:
    return sized["spec"]["containers"][index].get("resources", {})


def test_plain_pod_gets_the_slice_and_the_record() -> None:
    before = pod({"resources": {"limits": {"cpu": "2"}}})
    sizing = size_pod(before, job())
    assert sizing.reason == "Sized"
    assert sizing.warnings == []
    after = jsonpatch.apply_patch(before, sizing.patch)
    assert resources_of(after) == {"limits": {"cpu": "2", SMALL: 1}, "requests": {SMALL: 1}}
    assert after["spec"]["containers"][0]["terminationMessagePolicy"] == "FallbackToLogsOnError"
    record = json.loads(after["metadata"]["annotations"][SIZING_ANNOTATION])
    assert record["profile"] == "1g.5gb"
    assert record["container"] == "c0"
    assert "1700 MiB" in record["because"]


def test_terminationMessagePolicy_of_the_owner_stays() -> None:  # noqa: N802 the field's own name
    sizing = size_pod(pod({"terminationMessagePolicy": "File"}), job())
    assert sizing.pod["spec"]["containers"][0]["terminationMessagePolicy"] == "File"


@pytest.mark.parametrize(
    ("document", "sized_by", "reason", "warned"),
    [
        (pod({}, annotations={INJECT_ANNOTATION: "false"}), job(), "OptedOut", ""),
        (pod({}, labels={INJECT_ANNOTATION: "false"}), job(), "OptedOut", ""),
        (pod({}), job({"mode": "Recommend"}), "RecommendOnly", ""),
        (pod({}), job({"allocation": "DRA"}), "AllocationUnsupported", "DevicePlugin"),
        (pod({}), job(recommendation=None), "Unpredicted", "no prediction yet"),
        (pod({}), job(recommendation={"profile": "None", "reason": "TooLarge"}), "NoProfileFits", "large enough"),
        (pod({}, {}), job(), "NoContainer", "c0, c1"),
        (pod({}), job(container="server"), "NoContainer", "'server'"),
        (pod(gpu()), job(), "ExistingRequest", "existingRequest: Replace"),
        (pod(gpu("1", SMALL)), job(), "AlreadyAsked", ""),
        (pod(gpu(2)), job({"existingRequest": "Replace"}), "ReplaceRefused", "exactly one GPU"),
        (pod(gpu(), gpu()), job({"existingRequest": "Replace"}, container="c0"), "ReplaceRefused", "c1"),
    ],
)
def test_pod_that_stays_as_it_is(document: dict[str, Any], sized_by: InferenceJob, reason: str, warned: str) -> None:
    sizing = size_pod(document, sized_by)
    assert (sizing.reason, sizing.patch, sizing.pod) == (reason, [], document)
    assert not sizing.sized
    assert bool(sizing.warnings) == bool(warned)
    assert all(warned in w and w.startswith("InferenceJob web: ") for w in sizing.warnings)


def test_fallback_sizes_a_pod_that_comes_before_the_prediction() -> None:
    waiting = job({"onUnknown": "Fallback", "fallbackProfile": "1g.10gb+me"}, recommendation=None)
    assert resources_of(size_pod(pod({}), waiting).pod)["limits"] == {"nvidia.com/mig-1g.10gb.me": 1}


def test_replace_takes_the_place_of_the_one_gpu() -> None:
    sizing = size_pod(pod({}, gpu(1)), job({"existingRequest": "Replace"}))
    assert resources_of(sizing.pod, 1) == {"limits": {SMALL: 1}, "requests": {SMALL: 1}}
    assert json.loads(sizing.pod["metadata"]["annotations"][SIZING_ANNOTATION])["replaced"] == "nvidia.com/gpu"


def test_replace_does_not_get_around_a_quota() -> None:
    replace = job({"existingRequest": "Replace"})
    refused = size_pod(pod(gpu()), replace, quota_resources={"nvidia.com/gpu"})
    assert refused.reason == "QuotaUncovered"
    assert f"requests.{SMALL}" in refused.warnings[0]
    assert size_pod(pod(gpu()), replace, quota_resources={"nvidia.com/gpu", SMALL}).sized


def test_a_size_of_ours_follows_a_new_recommendation_without_being_asked_to_replace() -> None:
    once = size_pod(pod({}), job()).pod
    larger = job(recommendation={"profile": "2g.10gb", "resource": "nvidia.com/mig-2g.10gb", "reason": "Fits"})
    assert resources_of(size_pod(once, larger).pod)["limits"] == {"nvidia.com/mig-2g.10gb": 1}


def test_expandable_allocator_is_set_but_never_over_the_users_own() -> None:
    expandable = job({"allocator": "Expandable"})
    assert size_pod(pod({}), expandable).pod["spec"]["containers"][0]["env"] == [
        {"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:True"}
    ]
    own = {"env": [{"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "max_split_size_mb:64"}]}
    kept = size_pod(pod(own), expandable)
    assert kept.pod["spec"]["containers"][0]["env"] == own["env"]
    assert "PYTORCH_CUDA_ALLOC_CONF" in kept.warnings[0]


def test_taint_is_tolerated_where_the_nodes_have_it() -> None:
    tainted = job(recommendation={"profile": "1g.5gb", "resource": SMALL, "reason": "Fits", "tolerateGPUTaint": True})
    added = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert size_pod(pod({}), tainted).pod["spec"]["tolerations"] == [added]
    everything = pod({})
    everything["spec"]["tolerations"] = [{"operator": "Exists"}]
    assert size_pod(everything, tainted).pod["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_default_container_annotation_names_the_container() -> None:
    annotated = pod({}, {}, annotations={"kubectl.kubernetes.io/default-container": "c1"})
    assert choose_container(annotated, None).name == "c1"
    assert choose_container(pod({}, gpu()), None).name == "c1"


@pytest.mark.parametrize(
    ("container", "degree"),
    [
        ({"args": ["--tensor-parallel-size", "4"]}, 4),
        ({"args": ["--tensor-parallel-size=2"]}, 2),
        ({"command": ["sh", "-c", "vllm serve m -tp 8 --port 80"]}, 8),
        ({"args": ["--port", "80"]}, 1),
        ({"args": ["-tp"]}, 1),
    ],
)
def test_tensor_parallelism_is_found_in_the_command(container: dict[str, Any], degree: int) -> None:
    assert tensor_parallel_size(container) == degree
    assert bool(size_pod(pod(container), job()).warnings) == (degree > 1)


quantities = st.sampled_from(["1", 1, "2", 2])
gpu_names = st.sampled_from(["nvidia.com/gpu", SMALL, "nvidia.com/mig-2g.10gb", "mig.das.com/1g.5gb", "cpu"])
sections = st.none() | st.dictionaries(gpu_names, quantities, max_size=2)
containers = st.fixed_dictionaries(
    {"name": st.sampled_from(["server", "proxy", "log"])},
    optional={
        "resources": st.none() | st.fixed_dictionaries({}, optional={"limits": sections, "requests": sections}),
        "terminationMessagePolicy": st.sampled_from(["File", "FallbackToLogsOnError"]),
        "env": st.none()
        | st.lists(st.just({"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "x:1"}) | st.just({"name": "A"}), max_size=2),
        "args": st.lists(st.sampled_from(["-tp", "2", "--x"]), max_size=3),
    },
)
pods = st.fixed_dictionaries(
    {
        "spec": st.fixed_dictionaries(
            {"containers": st.lists(containers, max_size=3, unique_by=lambda c: c["name"])},
            optional={
                "tolerations": st.none() | st.just([]) | st.just([{"key": "nvidia.com/gpu", "operator": "Exists"}])
            },
        )
    },
    optional={
        "metadata": st.none()
        | st.fixed_dictionaries(
            {}, optional={"annotations": st.none() | st.just({"a/b~c": "d"}) | st.just({SIZING_ANNOTATION: "no json"})}
        )
    },
)
jobs = st.builds(
    lambda existing, allocator, taint, container: job(
        {"existingRequest": existing, "allocator": allocator},
        {"profile": "1g.5gb", "resource": SMALL, "reason": "Fits", "tolerateGPUTaint": taint},
        **({"container": container} if container else {}),
    ),
    st.sampled_from(["Keep", "Replace"]),
    st.sampled_from(["AsIs", "Expandable"]),
    st.booleans(),
    st.sampled_from([None, "server"]),
)


@given(pods, jobs)
def test_patch_applies_and_applying_twice_changes_nothing(document: dict[str, Any], sized_by: InferenceJob) -> None:
    original = copy.deepcopy(document)
    first = size_pod(document, sized_by)
    assert document == original
    after = jsonpatch.apply_patch(document, first.patch)
    assert after == first.pod
    second = size_pod(after, sized_by)
    assert second.patch == []
    assert second.pod == after


@given(pods, jobs)
def test_only_the_chosen_container_changes_and_it_asks_for_exactly_one_slice(
    document: dict[str, Any], sized_by: InferenceJob
) -> None:
    sizing = size_pod(document, sized_by)
    if not sizing.patch:
        return
    changed = [
        (before, after)
        for before, after in zip(document["spec"]["containers"], sizing.pod["spec"]["containers"], strict=True)
        if before != after
    ]
    assert len(changed) == 1
    before, after = changed[0]
    gpus = {k: v for s in after["resources"].values() if s for k, v in s.items() if k != "cpu"}
    assert {k: str(v) for k, v in gpus.items()} == {SMALL: "1"}
    assert set(after) - set(before) <= {"resources", "terminationMessagePolicy", "env"}
