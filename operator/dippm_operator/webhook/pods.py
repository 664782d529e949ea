"""The third hop of /mutate and /mutate-owned: find the job that a pod is sized by, and what else the answer needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dippm_operator.resource import InferenceJob
from dippm_operator.resource.names import JOB_LABEL
from dippm_operator.sizing import opted_out
from dippm_operator.webhook.cache import JobCache
from dippm_operator.webhook.calculate import calculate_patches
from dippm_operator.webhook.facts import FactFinder
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.owners import job_of
from dippm_operator.webhook.review import Answer, Review, is_name

ENDPOINT = "mutate"
OWNED_ENDPOINT = "mutate-owned"
"""For pods without the label, in namespaces labelled `dippm.dev/injection: enabled`: they join by their owners."""


class PodPatches:
    """Answers reviews of pods from stored predictions."""

    def __init__(self, jobs: JobCache, facts: FactFinder, metrics: Metrics) -> None:
        self._jobs = jobs
        self._facts = facts
        self._metrics = metrics

    async def answer(self, review: Review) -> Answer:
        """The patch for a pod that names its job by the label; any other is let through as it is."""
        if reason := _not_ours(review):
            return Answer(reason=reason)
        name = _labels(review).get(JOB_LABEL)
        if not name:
            return Answer(reason="NotLabelled")
        with self._metrics.step(ENDPOINT, "lookup"):
            job = await self._jobs.find(review.namespace, name) if is_name(name) else None
        if job is None:
            return Answer(
                warnings=(
                    f"there is no InferenceJob {name} in namespace {review.namespace}, "
                    f"which the label {JOB_LABEL} names; the pod stays as it is.",
                ),
                reason="NoSuchJob",
            )
        return await self._patches(review, job, ENDPOINT)

    async def answer_owned(self, review: Review) -> Answer:
        """The patch for a pod whose owner, or owner's owner, is the `targetRef` of a job. The label outranks it."""
        if reason := _not_ours(review):
            return Answer(reason=reason)
        if _labels(review).get(JOB_LABEL):
            return Answer(reason="Labelled")
        jobs = [job for job in self._jobs.jobs_of(review.namespace) if job.spec.target_ref is not None]
        if not jobs:
            return Answer(reason="NotOwned")
        with self._metrics.step(OWNED_ENDPOINT, "lookup"):
            job = job_of(await self._facts.owners.chain(review.object, review.namespace), jobs)
        if job is None:
            return Answer(reason="NotOwned")
        return await self._patches(review, job, OWNED_ENDPOINT)

    async def _patches(self, review: Review, job: InferenceJob, endpoint: str) -> Answer:
        with self._metrics.step(endpoint, "facts"):
            facts = await self._facts.facts(review.object, review.namespace, job)
        with self._metrics.step(endpoint, "calculate"):
            return calculate_patches(review.object, job, facts)


def _labels(review: Review) -> Mapping[str, Any]:
    labels: Mapping[str, Any] = (review.object.get("metadata") or {}).get("labels") or {}
    return labels


def _not_ours(review: Review) -> str:
    """Why the object is none that is sized; empty when it may be."""
    if review.kind != "Pod" or review.operation != "CREATE":
        return "NotAPod"
    return "OptedOut" if opted_out(review.object) else ""
