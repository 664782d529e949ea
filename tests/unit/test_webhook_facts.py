"""What is looked up about a pod: owners, their age, quotas; each question asked as rarely as possible."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.webhook_stand_ins import StoredJobs

from dippm_operator.kube import ApiFailure
from dippm_operator.resource import InferenceJob, parse_inference_job
from dippm_operator.webhook.facts import FactFinder
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.owners import Owner, job_of
from dippm_operator.webhook.pods import PodPatches
from dippm_operator.webhook.review import Review

APPS = "/apis/apps/v1/namespaces/vision"


class Objects:
    """In the place of `ApiClient`: objects by path, and what was asked for."""

    def __init__(self, objects: dict[str, dict[str, Any]]) -> None:
        self.objects = objects
        self.asked: list[str] = []

    async def get_or_none(self, path: str, *, accept: str = "") -> dict[str, Any] | None:
        assert "PartialObjectMetadata" in accept  # templates of owners are none of our business
        self.asked.append(path)
        found = self.objects.get(path)
        if found is not None and "denied" in found:
            raise ApiFailure(403, "forbidden")
        return found

    async def get(self, path: str) -> dict[str, Any]:
        self.asked.append(path)
        return self.objects[path]


def metadata(uid: str, *, seconds: float = 60, owner: tuple[str, str, str, str] | None = None) -> dict[str, Any]:
    created = datetime.now(UTC) - timedelta(seconds=seconds)
    body: dict[str, Any] = {"uid": uid, "creationTimestamp": created.strftime("%Y-%m-%dT%H:%M:%SZ")}
    if owner is not None:
        version, kind, name, owner_uid = owner
        reference = {"apiVersion": version, "kind": kind, "name": name, "uid": owner_uid}
        body["ownerReferences"] = [{**reference, "name": "other"}, {**reference, "controller": True}]
    return {"metadata": body}


def pod(owner: tuple[str, str, str, str] | None = ("apps/v1", "ReplicaSet", "web-1", "rs")) -> dict[str, Any]:
    spec = {"containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}
    return {"metadata": metadata("pod", owner=owner)["metadata"] | {"name": "web-1-abc"}, "spec": spec}


def job(
    name: str = "resnet50",
    target: tuple[str, str, str] = ("apps/v1", "Deployment", "web"),
    age: str = "1",
    **policy: Any,
) -> dict[str, Any]:
    version, kind, target_name = target
    return {
        "apiVersion": "dippm.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"name": name, "namespace": "vision", "creationTimestamp": f"2026-01-0{age}T00:00:00Z"},
        "spec": {
            "model": {"uri": "https://models.example/m.onnx"},
            "batchSize": 1,
            "policy": policy,
            "targetRef": {"apiVersion": version, "kind": kind, "name": target_name},
        },
        "status": {
            "recommendation": {"profile": "1g.5gb", "resource": "nvidia.com/mig-1g.5gb", "reason": "FitsWithHeadroom"}
        },
    }


def unpredicted(**policy: Any) -> InferenceJob:
    body = job(**policy)
    del body["status"]
    return parse_inference_job(body)


DEPLOYED = {
    f"{APPS}/replicasets/web-1": metadata("rs", seconds=30, owner=("apps/v1", "Deployment", "web", "d")),
    f"{APPS}/deployments/web": metadata("d", seconds=9_999, owner=("serving.example/v1", "Service", "front", "s")),
}


async def answer(objects: Objects, *jobs: dict[str, Any], body: dict[str, Any] | None = None) -> str:
    finder = FactFinder(objects)  # type: ignore[arg-type]
    patches = PodPatches(StoredJobs(*jobs), finder, Metrics())  # type: ignore[arg-type]
    review = Review(uid="1", operation="CREATE", kind="Pod", namespace="vision", name="", object=body or pod())
    answered = await patches.answer_owned(review)
    return answered.reason


@pytest.mark.parametrize(
    "target",
    [
        ("apps/v1", "Deployment", "web"),
        ("apps/v1beta2", "Deployment", "web"),
        ("apps/v1", "ReplicaSet", "web-1"),
        ("serving.example/v1beta1", "Service", "front"),
        ("v1", "Pod", "web-1-abc"),
    ],
)
async def test_a_pod_joins_by_any_of_its_owners(target: tuple[str, str, str]) -> None:
    body = pod()
    del body["spec"]["containers"][0]["resources"]
    assert await answer(Objects(DEPLOYED), job(target=target), body=body) == "Sized"


@pytest.mark.parametrize(
    "target",
    [
        ("apps/v1", "Deployment", "other"),
        ("apps/v1", "StatefulSet", "web"),
        ("extensions/v1beta1", "Deployment", "web"),
    ],
)
async def test_a_pod_of_somebody_else_is_left_alone(target: tuple[str, str, str]) -> None:
    assert await answer(Objects(DEPLOYED), job(target=target)) == "NotOwned"


async def test_nothing_is_asked_where_no_job_could_own_the_pod() -> None:
    objects = Objects(DEPLOYED)
    templated = job()
    del templated["spec"]["targetRef"]
    templated["spec"]["template"] = {"spec": {"containers": [{"name": "c", "image": "i"}]}}
    assert await answer(objects, templated) == "NotOwned"
    assert objects.asked == []


async def test_each_owner_is_asked_for_once() -> None:
    objects = Objects(DEPLOYED)
    finder = FactFinder(objects)  # type: ignore[arg-type]
    for _ in range(3):
        chain = await finder.owners.chain(pod(), "vision")
        assert [owner.kind for owner in chain] == ["Pod", "ReplicaSet", "Deployment", "Service"]
    assert objects.asked == [f"{APPS}/replicasets/web-1", f"{APPS}/deployments/web"]


async def test_an_owner_of_the_same_name_that_is_another_object_does_not_count() -> None:
    remade = {f"{APPS}/replicasets/web-1": metadata("another", owner=("apps/v1", "Deployment", "web", "d"))}
    assert await answer(Objects(remade), job()) == "NotOwned"


async def test_owners_that_may_not_be_read_end_the_chain() -> None:
    hidden = DEPLOYED | {f"{APPS}/deployments/web": {"denied": {}}}
    body = pod()
    del body["spec"]["containers"][0]["resources"]
    assert await answer(Objects(hidden), job(), body=body) == "Sized"  # the ReplicaSet names the Deployment


def test_the_oldest_job_of_a_workload_counts() -> None:
    jobs = [parse_inference_job(job(name, age=age)) for name, age in (("c", "3"), ("b", "2"), ("a", "2"))]
    found = job_of([Owner("apps", "Deployment", "web", "d")], jobs)
    assert found is not None
    assert found.metadata.name == "a"
    assert job_of([], jobs) is None


async def test_the_age_that_counts_is_the_owners_else_the_jobs() -> None:
    finder = FactFinder(Objects(DEPLOYED))  # type: ignore[arg-type]
    waiting = unpredicted(onUnknown="Deny")
    assert 25 < (await finder.facts(pod(), "vision", waiting)).owner_age_seconds < 9_000
    assert (await finder.facts(pod(None), "vision", waiting)).owner_age_seconds > 86_400
    assert (await finder.facts(pod(), "vision", unpredicted())).owner_age_seconds == float("inf")


async def test_quotas_are_asked_for_only_where_a_gpu_may_be_replaced() -> None:
    path = "/api/v1/namespaces/vision/resourcequotas"
    quotas = [{"spec": {"hard": {"requests.nvidia.com/gpu": "4", "pods": "10"}}}, {"spec": {}}]
    objects = Objects({path: {"items": quotas}})
    finder = FactFinder(objects)  # type: ignore[arg-type]
    assert (await finder.facts(pod(), "vision", parse_inference_job(job()))).quota_resources == frozenset()
    assert objects.asked == []
    replacing = parse_inference_job(job(existingRequest="Replace"))
    for _ in range(3):
        assert (await finder.facts(pod(), "vision", replacing)).quota_resources == {"nvidia.com/gpu", "pods"}
    assert objects.asked == [path]
