"""What a pod gets that comes before its job was ever predicted (`policy.onUnknown`). Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from dippm_operator.resource import ConditionType, InferenceJob, OnUnknown

DENY_SECONDS = 120.0
"""A pod is held back for at most this long, counted from when its owner was made: a predictor that is down must not
keep a service down."""


def age_seconds(created: str, now: datetime) -> float:
    """Seconds since a Kubernetes timestamp (`2026-01-02T03:04:05Z`); infinite where it cannot be read."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return float("inf")
    return (now - (moment if moment.tzinfo else moment.replace(tzinfo=UTC))).total_seconds()


def holds_back(job: InferenceJob, owner_age_seconds: float) -> bool:
    """Whether the pod is refused for now, to be tried again by its owner."""
    return job.spec.policy.on_unknown is OnUnknown.DENY and owner_age_seconds < DENY_SECONDS


def after_holding_back(job: InferenceJob) -> InferenceJob:
    """The job as it counts once the pod is no longer held back: with its fallback, if it names one."""
    policy = job.spec.policy
    if policy.on_unknown is not OnUnknown.DENY or policy.fallback_profile is None:
        return job
    fallback = policy.model_copy(update={"on_unknown": OnUnknown.FALLBACK})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"policy": fallback})})


def why_unknown(job: InferenceJob) -> str:
    """What the operator says about the missing prediction, in brackets; empty where it says nothing."""
    for kind in (ConditionType.PREDICTED, ConditionType.RESOLVED):
        condition = job.status.condition(kind)
        if condition is not None and condition.status == "False" and condition.message:
            return f" ({condition.message.rstrip('. ')})"
    return ""
