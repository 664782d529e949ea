"""The fourth hop: pod, job and facts in, answer out. Pure; all that had to be looked up was looked up before."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dippm_operator.resource import ExistingRequest, InferenceJob, OnUnknown, PolicyMode
from dippm_operator.sizing import gpu_requests, size_pod
from dippm_operator.webhook.review import Answer, refusal
from dippm_operator.webhook.unknown import DENY_SECONDS, after_holding_back, holds_back, why_unknown


@dataclass(frozen=True, slots=True)
class Facts:
    """What the answer needs beside pod and job; looked up only where `needs_owner_age` or `needs_quota` say so."""

    owner_age_seconds: float = float("inf")
    """Since the pod's owner was made (the job, where the pod has none)."""
    quota_resources: Collection[str] = ()
    """Extended resources that a ResourceQuota of the namespace covers."""


def needs_owner_age(job: InferenceJob) -> bool:
    """Whether the answer depends on how long the pod's owner has waited."""
    return (
        job.status.recommendation is None
        and job.spec.policy.on_unknown is OnUnknown.DENY
        and job.spec.policy.mode is PolicyMode.AUTO
    )


def needs_quota(pod: Mapping[str, Any], job: InferenceJob) -> bool:
    """Whether a request may be replaced, so that quotas of the namespace count."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    return job.spec.policy.existing_request is ExistingRequest.REPLACE and any(map(gpu_requests, containers))


def calculate_patches(pod: Mapping[str, Any], job: InferenceJob, facts: Facts) -> Answer:
    """Size the pod, or hold it back while the job is unknown and its policy says Deny."""
    sizing = size_pod(pod, job, quota_resources=facts.quota_resources)
    if sizing.reason == "Unpredicted" and holds_back(job, facts.owner_age_seconds):
        # 503 without Retry-After: client-go would wait inside the call; the owner's own back-off does better.
        return refusal(
            503,
            "ServiceUnavailable",
            f"InferenceJob {job.metadata.name} is not predicted yet{why_unknown(job)}; "
            "policy.onUnknown: Deny holds the pod back until it is, "
            f"for at most {DENY_SECONDS:.0f} s from when its owner was made",
            reason="HeldBack",
        )
    if sizing.reason == "Unpredicted":
        sizing = size_pod(pod, after_holding_back(job), quota_resources=facts.quota_resources)
    return Answer(patch=tuple(sizing.patch), warnings=tuple(sizing.warnings), reason=sizing.reason)
