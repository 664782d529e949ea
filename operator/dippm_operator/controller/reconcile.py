"""One look at one InferenceJob: read it whole, make the world match, write what is so into its status."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from dippm.errors import ManifestError
from dippm_operator.controller import events, pods, waiting
from dippm_operator.controller.conditions import ready, verdict_of, with_verdicts
from dippm_operator.controller.resolve import Resolver
from dippm_operator.controller.state import DELETED, Body, ClusterState, Key, key_of
from dippm_operator.controller.workload import Workloads
from dippm_operator.kube import ApiClient, ApiFailure
from dippm_operator.resource import (
    Condition,
    ConditionType,
    InferenceJobStatus,
    parse_inference_job,
)
from dippm_operator.resource.names import API_VERSION, GROUP, KIND, PLURAL, VERSION
from dippm_operator.resource.served import not_served
from dippm_operator.sizing.decision import Verdict, recommend

logger = logging.getLogger(__name__)


class Reconciler:
    """Level-based: what is done depends on what is, never on which event came."""

    def __init__(
        self,
        api: ApiClient,
        state: ClusterState,
        resolver: Resolver,
        workloads: Workloads,
        *,
        default_device: str,
        identity: str,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._state = state
        self._resolver = resolver
        self._workloads = workloads
        self._default_device = default_device
        self._identity = identity
        self._clock = clock

    async def reconcile(self, key: Key) -> float | None:
        """Look at one InferenceJob; the seconds after which to look again, None if only an event can change anything.

        Raises ApiFailure, aiohttp.ClientError, TimeoutError where the API server does not do as asked: look again.

        1. The object as last seen; one that is being deleted needs nothing (its Job goes with it).
        2. Artifact and prediction, when they are due.
        3. The slice, anew at every look, because nodes come and go.
        4. The workload, and what its pods say.
        5. Conditions; status and Events where something changed.
        """
        body = self._state.inference_job(key)  # 1
        if body is None:
            return None
        if body["metadata"].get("deletionTimestamp"):
            self._resolver.forget(body["metadata"].get("uid", ""))
            return None
        try:
            job = parse_inference_job(body, strict=False)
        except ManifestError as error:
            await self._refuse(body, error)
            return None
        now, inventory = self._clock(), self._state.inventory
        device = job.spec.device or inventory.usual_product() or self._default_device
        resolution = await self._resolver.resolve(job, device, inventory, now)  # 2

        answer, recommendation = resolution.answer, resolution.answer.recommendation
        placeable = verdict_of(job.status.condition(ConditionType.PLACEABLE))
        if answer.prediction is not None and resolution.predicted.status is True:  # 3
            recommendation, placeable = recommend(answer.prediction, answer.candidates, job.spec, inventory)
        status = job.status.model_copy(
            update={
                "observed_generation": job.metadata.generation,
                "model": answer.model,
                "prediction": answer.prediction,
                "candidates": answer.candidates,
                "recommendation": recommendation,
            }
        )
        current, seen = job.model_copy(update={"status": status}), self._state.pods(key)
        outcome = await self._workloads.ensure(current, predicted=resolution.predicted, placeable=placeable)  # 4
        workload = pods.missized(current, seen) or outcome.verdict
        verdicts = {  # 5
            ConditionType.RESOLVED: resolution.resolved,
            ConditionType.PREDICTED: resolution.predicted,
            ConditionType.PLACEABLE: placeable,
            ConditionType.READY: ready(resolution.resolved, resolution.predicted, placeable, workload),
            ConditionType.OUT_OF_MEMORY: pods.out_of_memory(current, seen),
            ConditionType.STALE: outcome.stale,
        }
        conditions = with_verdicts(job.status.conditions, verdicts, generation=job.metadata.generation, now=now)
        status = status.model_copy(update={"workload": outcome.workload, "conditions": conditions})
        news = outcome.news + events.changes(job.status.conditions, conditions)
        if job.status.observed_generation != job.metadata.generation:
            news += [events.News(True, "NotServedYet", sentence) for sentence in not_served(job.spec)]
        if not await self._write(body, job.status, status):
            return None
        if waiting.just_predicted(job, now_fits=recommendation is not None and recommendation.fits):
            woken = await waiting.wake(self._api, job, now)
            news += [events.News(False, "RetryAsked", f"ReplicaSet {name} may make its pods now.") for name in woken]
        await events.post(self._api, job, news, instance=self._identity, now=now)
        return max((resolution.next_look - now).total_seconds(), 1.0)

    async def _write(self, body: Body, previous: InferenceJobStatus, status: InferenceJobStatus) -> bool:
        """Replace the status where it differs; False where the object is gone."""
        if status == previous and body.get("status"):
            return True
        metadata = body["metadata"]
        replaced = dict(body) | {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        if not await self._replace_status(body, replaced):
            return False
        chosen, stand = status.recommendation, status.condition(ConditionType.READY)
        logger.info(
            "%s/%s: profile %s, ready %s (%s)",
            metadata["namespace"],
            metadata["name"],
            chosen.profile if chosen is not None else "unknown",
            stand.status if stand is not None else "Unknown",
            stand.reason if stand is not None else "",
        )
        return True

    async def _replace_status(self, body: Body, replaced: Body) -> bool:
        """Whether there was an object whose status could be replaced.

        A conflict is an ApiFailure of 409: somebody wrote in between. On 404 the watch missed that the object went (or
        is about to tell): it is dropped here, or it would be tried again for ever.
        """
        try:
            written = await self._api.replace(f"{_path(body['metadata'])}/status", replaced)
        except ApiFailure as failure:
            if failure.code != 404:
                raise
            if self._state.inference_job(key_of(body)) is body:  # else another one of that name has come meanwhile
                self._state.see_inference_job(DELETED, body)
            self._resolver.forget(body["metadata"].get("uid", ""))
            return False
        self._state.see_inference_job(None, written)
        return True

    async def _refuse(self, body: Body, error: ManifestError) -> None:
        """An object that the schema let through and that still cannot be read."""
        metadata = body["metadata"]
        generation, now = metadata.get("generation", 0), self._clock()
        refused = Verdict(False, error.reason, str(error))
        previous = _conditions(body)
        verdicts = {ConditionType.RESOLVED: refused, ConditionType.READY: refused}
        conditions = with_verdicts(previous, verdicts, generation=generation, now=now)
        if conditions == previous:
            return
        status = dict(body.get("status") or {}) | {
            "observedGeneration": generation,
            "conditions": [c.model_dump(mode="json", by_alias=True, exclude_none=True) for c in conditions],
        }
        if not await self._replace_status(body, dict(body) | {"status": status}):
            return
        logger.warning("%s/%s: %s", metadata.get("namespace"), metadata["name"], error)


def _path(metadata: Mapping[str, Any]) -> str:
    return f"/apis/{GROUP}/{VERSION}/namespaces/{metadata['namespace']}/{PLURAL}/{metadata['name']}"


def _conditions(body: Body) -> tuple[Condition, ...]:
    listed = (body.get("status") or {}).get("conditions") or []
    return tuple(Condition.model_validate(c, extra="ignore") for c in listed)
