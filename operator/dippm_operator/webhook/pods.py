"""The third hop of /mutate: find the job that a pod is sized by, and what else the answer needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dippm_operator.resource.names import INJECT_ANNOTATION, JOB_LABEL
from dippm_operator.webhook.cache import JobCache
from dippm_operator.webhook.calculate import calculate_patches
from dippm_operator.webhook.facts import FactFinder
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.review import Answer, Review

ENDPOINT = "mutate"


class PodPatches:
    """Answers reviews of pods from stored predictions."""

    def __init__(self, jobs: JobCache, facts: FactFinder, metrics: Metrics) -> None:
        self._jobs = jobs
        self._facts = facts
        self._metrics = metrics

    async def answer(self, review: Review) -> Answer:
        """The patch for the pod under review; a pod that is not ours is let through as it is."""
        if review.kind != "Pod" or review.operation != "CREATE":
            return Answer(reason="NotAPod")
        metadata: Mapping[str, Any] = review.object.get("metadata") or {}
        labels = metadata.get("labels") or {}
        name = labels.get(JOB_LABEL)
        if not name:
            return Answer(reason="NotLabelled")
        if any(
            str(values.get(INJECT_ANNOTATION, "")).lower() == "false"
            for values in (labels, metadata.get("annotations") or {})
        ):
            return Answer(reason="OptedOut")
        namespace = review.namespace or str(metadata.get("namespace", ""))
        with self._metrics.step(ENDPOINT, "lookup"):
            job = await self._jobs.find(namespace, name)
            if job is None:
                return Answer(
                    warnings=(
                        f"there is no InferenceJob {name} in namespace {namespace}, which the label {JOB_LABEL} names; "
                        "the pod stays as it is.",
                    ),
                    reason="NoSuchJob",
                )
            facts = await self._facts.facts(review.object, namespace, job)
        with self._metrics.step(ENDPOINT, "calculate"):
            return calculate_patches(review.object, job, facts)
