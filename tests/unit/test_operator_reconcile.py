"""One look at an InferenceJob, against an API stand-in (kmock): what is written, made and told."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kmock as kmock_library
import pytest
from kubernetes.aio.client.configuration import Configuration
from tests.operator_api import ApiStandIn
from tests.operator_predictions import prediction_of

from dippm.errors import UnsupportedOperator
from dippm.prediction import Prediction
from dippm_operator.controller.health import Heartbeat
from dippm_operator.controller.metrics import JobsByReadiness, Metrics
from dippm_operator.controller.queue import WorkQueue
from dippm_operator.controller.reconcile import Reconciler
from dippm_operator.controller.resolve import Resolver
from dippm_operator.controller.run import _work
from dippm_operator.controller.secrets import secret_reader
from dippm_operator.controller.state import ClusterState, Key
from dippm_operator.controller.workload import Workloads
from dippm_operator.fetch import ArtifactCache, Fetcher, FetchLimits
from dippm_operator.kube import ApiClient, ApiFailure, Connection
from dippm_operator.predict import Question

KEY: Key = ("vision", "web")
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
JOBS = kmock_library.resource("batch", "v1", "jobs")
INFERENCE_JOBS = kmock_library.resource("dippm.dev", "v1alpha1", "inferencejobs")
SECRETS = kmock_library.resource("", "v1", "secrets")
EVENTS = kmock_library.resource("", "v1", "events")


class World:
    """An API stand-in, a folder of models, a clock, and a predictor that says what it is told to."""

    def __init__(self, server: ApiStandIn, folder: Path) -> None:
        self.server = server
        self.model = folder / "model"
        self.model.write_bytes(b"first")
        self.now = START
        self.questions: list[Question] = []
        self.required_mib = 1700.0
        self.failure: Exception | None = None
        self.state = ClusterState()
        self.metrics = Metrics()
        self.fetcher = Fetcher(ArtifactCache(folder / "cache", 1), FetchLimits(file_roots=(folder,)))
        configuration = Configuration(host=str(server.url).rstrip("/"), api_key={"BearerToken": "Bearer t"})
        self.api = ApiClient(Connection(configuration))
        for resource in (JOBS, INFERENCE_JOBS, EVENTS):
            server.resources[resource] = {}
        self.restart()

    def restart(self, version: str = "1+a") -> None:
        """A new process: nothing is remembered but what the API has."""
        resolver = Resolver(
            self.fetcher, self.predict, self.metrics, predictor_version=version, read_secret=secret_reader(self.api)
        )
        workloads = Workloads(self.api, self.state, self.metrics)
        self.reconciler = Reconciler(
            self.api, self.state, resolver, workloads, default_device="A100-SXM4-40GB", identity="me",
            clock=lambda: self.now,
        )  # fmt: skip

    async def predict(self, question: Question) -> Prediction:
        self.questions.append(question)
        if self.failure is not None:
            raise self.failure
        return prediction_of(self.required_mib, case=question.case, policy=question.policy, device=question.device)

    def create(self, **spec: Any) -> None:
        body = {
            "apiVersion": "dippm.dev/v1alpha1",
            "kind": "InferenceJob",
            "metadata": {
                "namespace": KEY[0], "name": KEY[1], "uid": "u-1", "generation": 1, "resourceVersion": "1",
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {
                "model": {"uri": f"file:{self.model}"},
                "batchSize": 8,
                "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}},
                **spec,
            },
        }  # fmt: skip
        body["spec"] = {k: v for k, v in body["spec"].items() if v is not None}
        self.server.objects[INFERENCE_JOBS, KEY[0], KEY[1]] = body
        self.state.see_inference_job("ADDED", copy.deepcopy(body))

    def edit(self, **spec: Any) -> None:
        body = copy.deepcopy(dict(self.state.inference_jobs[KEY]))
        body["spec"] |= spec
        body["metadata"]["generation"] += 1
        self.server.objects[INFERENCE_JOBS, KEY[0], KEY[1]].patch(body)
        self.state.see_inference_job("MODIFIED", body)

    async def look(self) -> float | None:
        return await self.reconciler.reconcile(KEY)

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.server.objects[INFERENCE_JOBS, KEY[0], KEY[1]]["status"])

    def condition(self, type_: str) -> tuple[str, str]:
        return next(((c["status"], c["reason"]) for c in self.status["conditions"] if c["type"] == type_), ("", ""))

    def message(self, type_: str) -> str:
        return next((c["message"] for c in self.status["conditions"] if c["type"] == type_), "")

    def jobs(self) -> list[str]:
        return [name for (resource, _, name), o in self.server.objects.items() if resource == JOBS and not o.deleted]

    def status_writes(self) -> int:
        return len(self.server[INFERENCE_JOBS])

    def event_reasons(self) -> list[str]:
        return [request.data["reason"] for request in self.server[EVENTS]]


@pytest.fixture
def kmock_options() -> dict[str, Any]:
    return {"cls": ApiStandIn}


@pytest.fixture
async def world(kmock: ApiStandIn, tmp_path: Path) -> AsyncIterator[World]:
    world = World(kmock, tmp_path)
    async with world.api:
        yield world
    await world.fetcher.close()


async def test_second_look_changes_nothing(world: World) -> None:
    world.create()
    again = await world.look()
    assert again == 3600
    first = world.status
    assert world.jobs() == ["web"]
    assert (world.condition("Ready"), world.condition("Placeable")) == (
        ("True", "JobMade"),
        ("Unknown", "NoNodeOfDevice"),
    )
    writes, events = world.status_writes(), len(world.event_reasons())
    world.now += timedelta(minutes=10)
    await world.look()
    assert world.status == first
    assert (world.status_writes(), len(world.event_reasons()), len(world.questions)) == (writes, events, 1)


async def test_restart_trusts_the_status_and_predicts_nothing_anew(world: World) -> None:
    world.create()
    await world.look()
    world.restart()
    world.now += timedelta(minutes=10)
    assert await world.look() == 3000
    assert len(world.questions) == 1


async def test_uri_is_asked_again_and_only_a_new_upload_is_a_new_prediction(world: World) -> None:
    world.create()
    await world.look()
    world.now += timedelta(minutes=61)
    await world.look()
    assert len(world.questions) == 1
    assert world.status["model"]["resolvedAt"] == "2026-01-02T04:05:05Z"
    world.model.write_bytes(b"second upload")
    world.required_mib = 9000
    world.now += timedelta(minutes=61)
    await world.look()
    assert len(world.questions) == 2
    assert world.status["recommendation"]["profile"] == "1g.10gb"
    assert world.condition("Stale") == ("True", "JobOutdated"), "the Job that exists keeps its slice"
    assert world.jobs() == ["web"]


async def test_time_of_a_condition_moves_only_with_its_status(world: World) -> None:
    world.create()
    await world.look()
    world.now += timedelta(minutes=1)
    world.edit(batchSize=16)
    await world.look()
    times = {c["type"]: (c["lastTransitionTime"], c["observedGeneration"]) for c in world.status["conditions"]}
    assert times["Predicted"] == ("2026-01-02T03:04:05Z", 2)
    assert times["Ready"] == ("2026-01-02T03:04:05Z", 2)


async def test_status_that_was_not_written_is_not_lost(world: World) -> None:
    world.create()
    world.server.conflicts = 1
    with pytest.raises(ApiFailure, match=r"^409: "):
        await world.look()
    await world.look()
    assert world.status["recommendation"]["profile"] == "1g.5gb"
    assert world.condition("Ready") == ("True", "JobMade")
    assert (len(world.questions), world.jobs()) == (1, ["web"])


async def test_failure_that_may_pass_is_tried_again_sooner_each_time_later(world: World) -> None:
    world.create(model={"uri": f"file:{world.model}-missing"})
    waits = []
    for _ in range(4):
        waits.append(await world.look())
        world.now += timedelta(seconds=waits[-1] or 0)
    assert waits == [15, 30, 60, 120]
    assert world.condition("Ready") == ("False", "ArtifactUnreachable")
    assert world.event_reasons().count("ArtifactUnreachable") == 1
    Path(f"{world.model}-missing").write_bytes(b"there now")
    await world.look()
    assert world.condition("Ready") == ("True", "JobMade")


async def test_failure_of_the_model_itself_waits_for_another_upload(world: World) -> None:
    world.failure = UnsupportedOperator("model.onnx: the operator com.acme.Magic is not known.")
    world.create()
    assert await world.look() == 3600
    assert world.condition("Resolved") == ("True", "ArtifactResolved")
    assert world.condition("Predicted") == ("False", "UnsupportedOperator")
    assert world.condition("Ready") == ("False", "UnsupportedOperator")
    assert world.jobs() == []


async def test_unknown_device_is_one_sentence(world: World) -> None:
    world.create(device="H900")
    await world.look()
    assert world.condition("Predicted") == ("False", "UnknownDevice")
    assert world.questions == []


async def test_secret_is_read_with_the_operators_own_account(world: World) -> None:
    reader = {"namespace": "vision", "name": "reader"}
    world.server.resources[SECRETS] = {}
    world.create(model={"uri": "s3://models/m.onnx", "secretRef": {"name": "reader"}})
    await world.look()
    assert world.condition("Resolved") == ("False", "ArtifactUnreachable")
    assert "there is no Secret reader" in world.message("Resolved")
    keys = {"AWS_ACCESS_KEY_ID": "a2V5", "AWS_SECRET_ACCESS_KEY": "c2VjcmV0"}
    world.server.objects[SECRETS, "vision", "reader"] = {"apiVersion": "v1", "kind": "Secret", "metadata": reader,
                                                        "data": keys}  # fmt: skip
    world.now += timedelta(hours=2)
    await world.look()
    assert "Secret reader may not be sent to s3.amazonaws.com" in world.message("Resolved")
    assert "c2VjcmV0" not in str(world.status)


def node(product: str, *, taint: bool = False, **slices: str) -> dict[str, Any]:
    return {
        "metadata": {"name": product, "labels": {"nvidia.com/gpu.product": product}},
        "spec": {"taints": [{"key": "nvidia.com/gpu", "effect": "NoSchedule"}] if taint else []},
        "status": {"allocatable": {f"nvidia.com/mig-{k.replace('_', '.')}": v for k, v in slices.items()}},
    }


async def test_device_and_slice_follow_the_nodes(world: World) -> None:
    world.state.see_node("ADDED", node("NVIDIA-A30", **{"1g_6gb": "4"}))
    world.create()
    await world.look()
    assert world.questions[0].case.device == "A30"
    assert world.questions[0].device is not None
    assert world.status["recommendation"]["profile"] == "1g.6gb"
    assert world.condition("Placeable") == ("True", "NodeOffersProfile")


async def test_other_sizes_in_the_labels_of_nodes_are_another_answer(world: World) -> None:
    """`usableMiB` and what fits are of the slices as they are now, not as they were when the model was uploaded."""
    a30 = node("NVIDIA-A30", **{"1g_6gb": "4"})
    world.state.see_node("ADDED", copy.deepcopy(a30))
    world.create()
    await world.look()
    await world.look()
    assert len(world.questions) == 1
    a30["metadata"]["labels"]["nvidia.com/mig-1g.6gb.memory"] = "1500"
    world.state.see_node("MODIFIED", copy.deepcopy(a30))
    await world.look()
    assert len(world.questions) == 2
    smallest = world.status["candidates"][0]
    assert (smallest["profile"], smallest["usableMiB"], smallest["fits"]) == ("1g.6gb", 1500, False)
    await world.look()
    world.restart()
    await world.look()
    world.state.see_node("DELETED", a30)
    world.edit(device="A30")
    await world.look()
    assert len(world.questions) == 3, "an edit is another question; a node that goes is none"
    world.state.see_node("ADDED", a30)
    world.failure = UnsupportedOperator("model.onnx: the operator com.acme.Magic is not known.")
    await world.look()
    await world.look()
    assert len(world.questions) == 4, "a failure waits for its next look"


async def test_ghost_is_dropped_and_not_tried_for_ever(world: World) -> None:
    """The watch missed that the object went: its status cannot be written."""
    world.create()
    del world.server.objects[INFERENCE_JOBS, KEY[0], KEY[1]]
    assert await world.look() is None
    assert world.state.inference_job(KEY) is None
    assert world.event_reasons() == []


async def test_ghost_that_cannot_be_read_is_dropped_too(world: World) -> None:
    world.create(template=None)
    del world.server.objects[INFERENCE_JOBS, KEY[0], KEY[1]]
    assert await world.look() is None
    assert world.state.inference_job(KEY) is None


async def test_job_is_not_made_for_a_slice_that_nobody_offers_and_is_once_somebody_does(world: World) -> None:
    world.required_mib = 30_000
    world.create()
    world.state.see_node("ADDED", node("NVIDIA-A100-SXM4-40GB", **{"1g_5gb": "7"}))
    await world.look()
    assert world.condition("Ready") == ("False", "ProfileNotOffered")
    assert world.jobs() == []
    world.state.see_node("MODIFIED", node("NVIDIA-A100-SXM4-40GB", **{"7g_40gb": "1"}))
    await world.look()
    assert world.condition("Ready") == ("True", "JobMade")
    assert len(world.questions) == 1, "the nodes do not change what the model needs"


async def test_job_of_another_owner_is_not_touched(world: World) -> None:
    world.server.objects[JOBS, KEY[0], KEY[1]] = {"metadata": {"name": "web", "namespace": "vision", "uid": "theirs"}}
    world.create()
    await world.look()
    assert world.condition("Ready") == ("False", "NameTaken")
    assert "JobCreated" not in world.event_reasons()


async def test_job_of_a_look_that_was_cut_short_is_ours(world: World) -> None:
    world.create()
    await world.look()
    body = dict(world.state.inference_jobs[KEY])
    del body["status"]
    state, world.state = world.state, ClusterState()
    world.state.see_inference_job("ADDED", body)
    assert state.job(KEY) is not None
    world.restart()
    await world.look()
    assert world.condition("Ready") == ("True", "JobMade")
    assert world.status["workload"]["runID"] == "1"
    assert world.jobs() == ["web"]


async def test_container_with_a_gpu_keeps_it_and_the_person_is_told(world: World) -> None:
    gpu = {"limits": {"nvidia.com/gpu": 1}}
    world.create(template={"spec": {"containers": [{"name": "c", "image": "i", "resources": gpu}]}})
    await world.look()
    assert world.jobs() == ["web"]
    assert "ExistingRequest" in world.event_reasons()


async def test_template_whose_container_cannot_be_told_makes_no_job(world: World) -> None:
    world.create(template={"spec": {"containers": [{"name": "a"}, {"name": "b"}]}})
    await world.look()
    assert world.condition("Ready") == ("False", "NoContainer")
    assert world.jobs() == []
    told = world.event_reasons()
    assert told.count("NoContainer") == 1
    await world.look()
    assert world.event_reasons() == told, "the same news is told once"


async def test_refusal_of_the_job_is_told_once(world: World) -> None:
    world.server.refusal = "exceeded quota"
    world.create()
    await world.look()
    await world.look()
    assert world.condition("Ready") == ("False", "JobRefused")
    assert world.event_reasons().count("JobRefused") == 1
    world.server.refusal = ""
    await world.look()
    assert world.condition("Ready") == ("True", "JobMade")


async def test_finished_job_says_how_it_ended(world: World) -> None:
    world.create()
    await world.look()
    body = copy.deepcopy(dict(world.state.job(KEY) or {}))
    failed = {
        "type": "Failed",
        "status": "True",
        "message": "BackoffLimitExceeded",
        "lastTransitionTime": "2026-01-03T00:00:00Z",
    }
    body["status"] = {"conditions": [failed]}
    world.state.see_job("MODIFIED", body)
    await world.look()
    assert world.condition("Ready") == ("False", "JobFailed")
    assert world.status["workload"]["finishedAt"] == "2026-01-03T00:00:00Z"


async def test_object_that_cannot_be_read_says_so_and_stops_nobody(world: World) -> None:
    world.create(template=None)
    await world.look()
    assert world.condition("Ready") == ("False", "ManifestInvalid")
    writes = world.status_writes()
    await world.look()
    assert world.status_writes() == writes


async def test_object_that_is_being_deleted_is_left(world: World) -> None:
    world.create()
    body = copy.deepcopy(dict(world.state.inference_jobs[KEY]))
    body["metadata"]["deletionTimestamp"] = "2026-01-02T00:00:00Z"
    world.state.see_inference_job("MODIFIED", body)
    assert await world.look() is None
    assert world.jobs() == []


async def test_worker_retries_what_fails_and_goes_on(world: World, caplog: pytest.LogCaptureFixture) -> None:
    queue: WorkQueue[Key] = WorkQueue()
    calls: list[Key] = []

    class Failing:
        async def reconcile(self, key: Key) -> float | None:
            calls.append(key)
            if key == ("a", "fault"):
                raise ZeroDivisionError("a fault of ours")
            if key == ("a", "refused"):
                raise ApiFailure(500, "no")
            return None

    with caplog.at_level(logging.CRITICAL):
        worker = asyncio.ensure_future(_work(0, queue, Failing(), world.metrics, Heartbeat(60)))  # type: ignore[arg-type]
        for key in (("a", "fault"), ("a", "refused"), ("a", "good")):
            queue.add(key)
        async with asyncio.timeout(30):
            while min(calls.count(("a", "fault")), calls.count(("a", "refused"))) < 2:
                await asyncio.sleep(0.05)
        worker.cancel()
    queue.close()
    assert calls.count(("a", "good")) == 1


async def test_metrics_count_jobs_by_readiness(world: World) -> None:
    world.create()
    await world.look()
    (family,) = JobsByReadiness(world.state).collect()
    assert [(s.labels, s.value) for s in family.samples] == [({"ready": "True", "reason": "JobMade"}, 1)]


async def test_what_has_no_effect_yet_is_said_once(world: World) -> None:
    world.create(policy={"onOutOfMemory": "Bump", "repair": "Evict"})
    await world.look()
    await world.look()
    assert world.event_reasons().count("NotServedYet") == 2


async def test_other_weights_are_another_answer(world: World) -> None:
    world.create()
    await world.look()
    world.restart("1+b")
    await world.look()
    assert len(world.questions) == 2
    assert world.status["prediction"]["predictorVersion"] == "1+b"
