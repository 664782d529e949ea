"""Admission: what may come in, what goes out, and that faults let pods through."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.strategies import inference_jobs, json_values, labelled_pods
from tests.unit.webhook_stand_ins import answer_of

from dippm.errors import ManifestError
from dippm_operator.kube.api import ApiFailure
from dippm_operator.resource import parse_inference_job
from dippm_operator.resource.names import URI_SCHEMES
from dippm_operator.resource.served import not_served
from dippm_operator.webhook.admit import admit
from dippm_operator.webhook.calculate import Facts, calculate_patches, needs_owner_age, needs_quota
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.review import Answer, Review, read_review, write_review
from dippm_operator.webhook.rules import check_job
from dippm_operator.webhook.unknown import age_seconds

facts = st.builds(
    Facts,
    owner_age_seconds=st.sampled_from([0.0, 119.0, 120.0, float("inf")]),
    quota_resources=st.sampled_from([(), ("nvidia.com/gpu",), ("nvidia.com/gpu", "nvidia.com/mig-1g.5gb")]),
)


def review_of(body: dict[str, Any], kind: str = "Pod", **request: Any) -> dict[str, Any]:
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1-2-3",
            "kind": {"kind": kind},
            "namespace": "vision",
            "operation": "CREATE",
            "object": body,
            "userInfo": {"username": "ada", "groups": ["devs"]},
        }
        | request,
    }


@given(labelled_pods(), inference_jobs(), facts)
def test_a_patch_applies_and_applying_twice_changes_nothing(
    pod: dict[str, Any], job: dict[str, Any], known: Facts
) -> None:
    stored = parse_inference_job(job)
    first = calculate_patches(pod, stored, known)
    after = jsonpatch.apply_patch(pod, [dict(operation) for operation in first.patch])
    second = calculate_patches(after, stored, known)
    assert second.patch == ()
    assert second.allowed == first.allowed


@given(labelled_pods(), inference_jobs(), facts)
def test_only_a_young_unpredicted_pod_under_deny_is_refused(
    pod: dict[str, Any], job: dict[str, Any], known: Facts
) -> None:
    answer = calculate_patches(pod, parse_inference_job(job), known)
    if not answer.allowed:
        assert "status" not in job
        assert job["spec"]["policy"]["onUnknown"] == "Deny"
        assert known.owner_age_seconds < 120
        assert answer.code == 503
        assert answer.patch == ()


@given(labelled_pods(), inference_jobs(), facts)
def test_facts_that_are_not_asked_for_do_not_matter(pod: dict[str, Any], job: dict[str, Any], known: Facts) -> None:
    stored = parse_inference_job(job)
    asked = Facts(
        owner_age_seconds=known.owner_age_seconds if needs_owner_age(stored) else float("inf"),
        quota_resources=known.quota_resources if needs_quota(pod, stored) else (),
    )
    assert calculate_patches(pod, stored, asked) == calculate_patches(pod, stored, known)


@given(json_values)
def test_what_is_no_review_is_refused_with_one_sentence(document: object) -> None:
    with pytest.raises(ManifestError) as refused:
        read_review(json.dumps(document).encode())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe", b"[" * 100_000, b'{"apiVersion": "admission.k8s.io/v1beta1", "request": {"uid": "1"}}'],
    ids=["empty", "no text", "too deep", "v1beta1"],
)
def test_bytes_that_are_no_review_are_refused(body: bytes) -> None:
    with pytest.raises(ManifestError):
        read_review(body)


@given(st.dictionaries(st.sampled_from(["kind", "object", "oldObject", "userInfo", "operation"]), json_values))
async def test_a_strange_request_is_let_through(request: dict[str, Any]) -> None:
    """Whatever stands in the fields of a review with a uid: an answer to that uid, and never a traceback."""
    review = review_of({}, **request)
    review["request"]["kind"] = {"kind": "Pod"}
    answer = await answer_of(None, {}, review)
    assert (answer["uid"], answer["allowed"]) == ("1-2-3", True)


@given(st.text(max_size=600))
def test_warnings_are_short_single_lines(text: str) -> None:
    response = json.loads(write_review("u", Answer(warnings=(text,) * 20)))["response"]
    assert len(response["warnings"]) <= 8
    assert all(len(w) <= 256 and "\n" not in w and "\r" not in w for w in response["warnings"])


@pytest.mark.parametrize("fault", [RuntimeError("boom"), KeyError("metadata"), ApiFailure(500, "etcd is away"), None])
async def test_a_fault_lets_the_pod_in_with_a_warning(fault: Exception | None) -> None:
    async def answerer(_: Review) -> Answer:
        if fault is not None:
            raise fault
        await asyncio.sleep(10)
        return Answer(allowed=False)

    metrics = Metrics()
    body = json.dumps(review_of({"metadata": {"name": "p"}})).encode()
    encoded = await admit(body, answerer, endpoint="mutate", budget_seconds=0.05, metrics=metrics)
    response = json.loads(encoded)["response"]
    assert response["allowed"] is True
    assert "patch" not in response
    (warning,) = response["warnings"]
    assert warning.startswith("dippm could not look at this Pod, which stays as it is")
    assert "boom" not in warning  # what went wrong is for the log
    kind = "Timeout" if fault is None else "ApiServer" if isinstance(fault, ApiFailure) else "Fault"
    assert metrics.registry.get_sample_value("dippm_webhook_faults_total", {"endpoint": "mutate", "fault": kind}) == 1


def job_with_secret(name: str = "models-reader") -> dict[str, Any]:
    return {
        "apiVersion": "dippm.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"generateName": "resnet-", "namespace": "vision"},
        "spec": {
            "model": {"uri": "https://models.example/m.onnx", "secretRef": {"name": name}},
            "batchSize": 1,
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    }


async def test_a_secret_may_be_named_by_whoever_may_read_it() -> None:
    review = review_of(job_with_secret(), "InferenceJob")
    assert (await answer_of(None, {}, review, readable=True))["allowed"] is True
    refused = await answer_of(None, {}, review, readable=False)
    assert refused["status"]["code"] == 403
    assert "ada may not read Secret models-reader in namespace vision" in refused["status"]["message"]


async def test_an_authorizer_that_does_not_answer_is_no_permission() -> None:
    review = review_of(job_with_secret(), "InferenceJob")
    refused = await answer_of(None, {}, review, readable=ApiFailure(500, "down"))
    assert (refused["allowed"], refused["status"]["code"]) == (False, 503)


@pytest.mark.parametrize("fault", [RuntimeError("boom"), ApiFailure(500, "etcd is away"), None])
async def test_a_fault_does_not_let_a_job_in_that_names_a_secret(fault: Exception | None) -> None:
    async def answerer(_: Review) -> Answer:
        if fault is not None:
            raise fault
        await asyncio.sleep(10)
        return Answer()

    async def allowed(body: dict[str, Any]) -> bool:
        review = json.dumps(review_of(body, "InferenceJob")).encode()
        encoded = await admit(review, answerer, endpoint="validate", budget_seconds=0.05, metrics=Metrics())
        return bool(json.loads(encoded)["response"]["allowed"])

    without = job_with_secret()
    del without["spec"]["model"]["secretRef"]
    assert not await allowed(job_with_secret())
    assert await allowed(without)


async def test_the_secret_is_checked_again_when_it_would_go_somewhere_else() -> None:
    """Keeping the Secret but changing the host that it is sent to needs the permission as well."""
    old = job_with_secret()
    elsewhere = job_with_secret()
    elsewhere["spec"]["model"]["uri"] = "https://collector.example/m.onnx"
    same_place = job_with_secret()
    same_place["spec"]["batchSize"] = 2
    for new, allowed in ((elsewhere, False), (same_place, True)):
        review = review_of(new, "InferenceJob", operation="UPDATE", oldObject=old)
        assert (await answer_of(None, {}, review, readable=False))["allowed"] is allowed


@pytest.mark.parametrize("namespace", ["..", "a/b", "", 7, None, "a%2Fb"])
def test_a_namespace_that_would_lead_elsewhere_is_no_namespace(namespace: object) -> None:
    with pytest.raises(ManifestError, match=r"request\.namespace"):
        read_review(json.dumps(review_of({}, namespace=namespace)).encode())


async def test_a_label_that_is_no_name_asks_for_nothing() -> None:
    body = {"metadata": {"labels": {"dippm.dev/inference-job": "../secrets/x"}}}
    assert (await answer_of(None, {}, review_of(body)))["auditAnnotations"] == {"reason": "NoSuchJob"}


def job_with(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "dippm.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"name": "web", "namespace": "vision"},
        "spec": {
            "model": {"uri": "https://models/m.onnx"},
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "batchSize": 1,
            **spec,
        },
    }


@pytest.mark.parametrize("scheme", URI_SCHEMES)
def test_every_scheme_of_the_schema_is_served(scheme: str) -> None:
    check_job(parse_inference_job(job_with(model={"uri": f"{scheme}://models/resnet50.onnx"})))


@pytest.mark.parametrize(
    "part",
    [
        {"policy": {"onOutOfMemory": "Bump"}},
        {"policy": {"repair": "Evict"}},
        {"policy": {"allocation": "DRA"}},
        {"generation": {"maxContextTokens": 8, "maxNewTokens": 4}},
    ],
)
def test_what_has_no_effect_yet_is_refused_with_the_sentence_that_the_controller_tells(part: dict[str, Any]) -> None:
    job = parse_inference_job(job_with(**part))
    (sentence,) = not_served(job.spec)
    with pytest.raises(ManifestError, match=re.escape(f"InferenceJob {job.metadata.name}: {sentence}")):
        check_job(job)


async def test_a_job_that_is_going_away_may_lose_its_finalizers() -> None:
    body = job_with_secret() | {"spec": {}}
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    review = review_of(body, "InferenceJob", operation="UPDATE", oldObject=job_with_secret())
    assert (await answer_of(None, {}, review))["allowed"] is True


def test_age_is_counted_from_kubernetes_timestamps() -> None:
    now = datetime(2026, 1, 1, 0, 2, tzinfo=UTC)
    assert age_seconds("2026-01-01T00:00:00Z", now) == 120
    assert age_seconds((now - timedelta(seconds=5)).isoformat(), now) == 5
    assert age_seconds("", now) == float("inf")
