"""What the webhook's tests put in the place of a cluster."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

from dippm_operator.resource import InferenceJob, parse_inference_job
from dippm_operator.webhook.admit import admit
from dippm_operator.webhook.calculate import Facts
from dippm_operator.webhook.jobs import JobValidation
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.pods import PodPatches


class StoredJobs:
    """In the place of `JobCache`: what is stored is known, nothing else is."""

    def __init__(self, *bodies: Mapping[str, Any]) -> None:
        self.jobs = {job.key: job for job in map(parse_inference_job, bodies)}

    async def find(self, namespace: str, name: str) -> InferenceJob | None:
        return self.jobs.get((namespace, name))

    def jobs_of(self, namespace: str) -> Iterator[InferenceJob]:
        return (job for (place, _), job in self.jobs.items() if place == namespace)


class GivenFacts:
    """In the place of `FactFinder`: the same facts for every pod, one verdict for every user."""

    def __init__(self, *, readable: bool | Exception = True, **facts: Any) -> None:
        self.given = Facts(**facts)
        self.readable = readable
        self.asked: list[tuple[str, str, str]] = []

    async def facts(self, *_: object) -> Facts:
        return self.given

    async def may_read_secret(self, user: Mapping[str, Any], namespace: str, secret: str) -> bool:
        self.asked.append((user.get("username", ""), namespace, secret))
        if isinstance(self.readable, Exception):
            raise self.readable
        return self.readable


async def answer_of(
    stored: Mapping[str, Any] | None, facts: Mapping[str, Any], review: Mapping[str, Any], **options: Any
) -> dict[str, Any]:
    """The response to a review, its patch decoded; pods go to /mutate, jobs to /validate."""
    jobs = StoredJobs(*([stored] if stored else []))
    finder, metrics = GivenFacts(**facts, **options), Metrics()
    pods = review["request"]["kind"]["kind"] == "Pod"
    hop = (PodPatches if pods else JobValidation)(jobs, finder, metrics)  # type: ignore[arg-type]
    encoded = await admit(
        json.dumps(review).encode(), hop.answer, endpoint="mutate", budget_seconds=5.0, metrics=metrics
    )
    response: dict[str, Any] = json.loads(encoded)["response"]
    if "patch" in response:
        response["patch"] = json.loads(base64.b64decode(response["patch"]))
    return response
