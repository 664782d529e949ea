"""What pods that are there say about their size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dippm_operator.controller.pods import missized, out_of_memory
from dippm_operator.controller.state import ClusterState
from dippm_operator.resource import InferenceJob, parse_inference_job
from dippm_operator.sizing.pod_state import PodState, pod_state

SMALL = "nvidia.com/mig-1g.5gb"


def job(mode: str = "Auto", resource: str | None = SMALL) -> InferenceJob:
    recommendation = {"profile": "1g.5gb", "resource": resource, "reason": "Fits"} if resource else None
    return parse_inference_job(
        {
            "apiVersion": "dippm.dev/v1alpha1",
            "kind": "InferenceJob",
            "metadata": {"name": "web"},
            "spec": {
                "model": {"uri": "https://h/m"},
                "batchSize": 1,
                "policy": {"mode": mode},
                "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            },
            "status": {"recommendation": recommendation},
        }
    )


def pod(name: str = "p", resource: str | None = None, words: str = "", **changes: Any) -> dict[str, Any]:
    annotations = {"dippm.dev/sizing": json.dumps({"resource": resource})} if resource else {}
    ended = {"terminated": {"message": words, "finishedAt": "2026-01-02T00:00:00Z"}} if words else {}
    body = {
        "metadata": {"name": name, "labels": {"dippm.dev/inference-job": "web"}, "annotations": annotations},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "c", "state": {}, "lastState": ended}]},
    }
    for path, value in changes.items():
        section, key = path.split("__")
        body[section][key] = value
    return body


@pytest.mark.parametrize(
    ("pods", "reason", "named"),
    [
        ([], None, ""),
        ([pod(resource=SMALL)], None, ""),
        ([pod("a"), pod("b", SMALL)], "UnsizedPods", "pod a came"),
        ([pod(str(i)) for i in range(5)], "UnsizedPods", "pods 0, 1, 2 and 2 more came"),
        ([pod("a", "nvidia.com/mig-2g.10gb")], "OutdatedPods", "pod a came"),
        ([pod(status__phase="Succeeded")], None, ""),
        ([pod(metadata__deletionTimestamp="2026-01-02T00:00:00Z")], None, ""),
        ([pod(metadata__annotations={"dippm.dev/inject": "false"})], None, ""),
        ([pod(spec__containers=[{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}])], None, ""),
    ],
)
def test_pods_without_their_slice_are_named(pods: list[dict[str, Any]], reason: str | None, named: str) -> None:
    verdict = missized(job(), [pod_state(p) for p in pods])
    assert (None if verdict is None else verdict.reason) == reason
    assert verdict is None or (verdict.status is False and verdict.message.startswith(named))


def test_no_pod_is_missized_where_nothing_is_touched_or_known() -> None:
    unsized = [pod_state(pod())]
    assert missized(job(mode="Recommend"), unsized) is None
    assert missized(job(resource=None), unsized) is None


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("x\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n", True),
        ("RuntimeError: NVML_SUCCESS == r INTERNAL ASSERT FAILED at CUDACachingAllocator.cpp", True),
        ("ValueError: Free memory on device (4.5/4.9 GiB) is less than desired GPU memory utilization (0.9)", True),
        ("Traceback: KeyError: 'memory'", False),
        ("OOMKilled", False),
    ],
)
def test_last_words_tell_an_end_for_want_of_gpu_memory(words: str, found: bool) -> None:
    verdict = out_of_memory(job(), [pod_state(pod("a", SMALL, words))])
    assert (verdict is not None) == found
    assert verdict is None or (verdict.status is True and "pod a ran out of memory on 1g.5gb" in verdict.message)


def test_end_on_an_earlier_slice_says_nothing_about_the_present_one() -> None:
    assert out_of_memory(job(), [pod_state(pod("a", "nvidia.com/mig-1g.10gb", "CUDA out of memory"))]) is None


def test_state_tells_when_a_pod_changes_its_standing() -> None:
    state, key = ClusterState(), ("default", "web")
    assert state.see_pod("ADDED", pod(resource=SMALL)) == key
    assert state.see_pod("MODIFIED", pod(resource=SMALL)) is None
    assert state.pods(key) == (PodState("p", SMALL, True, None),)
    assert state.see_pod("MODIFIED", pod(resource=SMALL, words="CUDA out of memory")) == key
    assert state.see_pod("DELETED", pod(resource=SMALL)) == key
    assert state.pods(key) == ()
