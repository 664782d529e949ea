"""From a prediction and a policy to the status: which slice, why, and whether a node has it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dippm.case import Allocator, Case
from dippm.policy import Choice, Policy, Reason, choose
from dippm.prediction import Candidate, Prediction
from dippm_operator.resource import (
    AllocatorPolicy,
    CandidateStatus,
    InferenceJobSpec,
    PredictionStatus,
    Recommendation,
)
from dippm_operator.resource.names import NO_PROFILE
from dippm_operator.sizing.inventory import Inventory


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition without its time stamps."""

    status: bool | None
    """None is Unknown."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the status says about a prediction."""

    prediction: PredictionStatus
    recommendation: Recommendation
    candidates: tuple[CandidateStatus, ...]
    placeable: Verdict


def case_of(spec: InferenceJobSpec, device: str) -> Case:
    """The case that the predictor is asked about."""
    expandable = spec.policy.allocator is AllocatorPolicy.EXPANDABLE
    return Case(
        batch=spec.batch_size,
        precision=spec.precision,
        runtime=spec.runtime,
        allocator=Allocator.EXPANDABLE if expandable else Allocator.DEFAULT,
        device=device,
    )


def policy_of(spec: InferenceJobSpec) -> Policy:
    """The resource's policy in the predictor's terms."""
    limit = spec.policy.max_latency_milliseconds
    return Policy(
        processes=spec.processes,
        headroom_mib=float(spec.policy.headroom_mib),
        oom_risk_percent=float(spec.policy.oom_risk_percent),
        max_latency_ms=None if limit is None else float(limit),
        allowed_profiles=spec.policy.allowed_profiles,
        allow_full_gpu=spec.policy.allow_full_gpu,
    )


def decide(prediction: Prediction, spec: InferenceJobSpec, inventory: Inventory = Inventory()) -> Decision:  # noqa: B008 frozen
    """The slice for a prediction.

    1. Among the profiles that nodes offer now, the smallest that the policy accepts.
    2. If none of those will do, the smallest of the device: somebody may make it, or a node may come with it.
    3. If none of the device will do, none: recommendation `None`, Placeable=False.
    """
    policy = policy_of(spec)
    offered = [c for c in prediction.candidates if inventory.offers(prediction.device, c.resource)]
    here = choose(offered, policy)
    choice = here if here.candidate is not None else choose(prediction.candidates, policy)
    return Decision(
        prediction=prediction_status(prediction),
        recommendation=_recommendation(choice, prediction, inventory),
        candidates=tuple(_candidate_status(c) for c in prediction.candidates),
        placeable=_placeable(choice, prediction, inventory),
    )


def prediction_status(prediction: Prediction) -> PredictionStatus:
    """The prediction in whole MiB, microseconds and millijoules; memory is rounded up."""
    return PredictionStatus(
        predictor_version=prediction.predictor_version,
        device=prediction.device,
        runtime=prediction.runtime,
        basis=prediction.basis.value,
        memory_mib=math.ceil(prediction.memory_mib),
        required_mib=math.ceil(prediction.required_mib),
        required_upper_mib=math.ceil(prediction.required_upper_mib),
        latency_microseconds=round(prediction.latency_ms * 1_000),
        energy_millijoules=round(prediction.energy_j * 1_000),
    )


def _candidate_status(candidate: Candidate) -> CandidateStatus:
    return CandidateStatus(
        profile=candidate.profile,
        usable_mib=candidate.usable_mib,
        utilization_percent=math.ceil(candidate.utilization * 100),
        fits=candidate.fits,
        latency_microseconds=round(candidate.latency_ms * 1_000),
    )


def _recommendation(choice: Choice[Candidate], prediction: Prediction, inventory: Inventory) -> Recommendation:
    if choice.candidate is None:
        return Recommendation(profile=NO_PROFILE, reason=choice.reason.value)
    resource = choice.candidate.resource
    return Recommendation(
        profile=choice.candidate.profile,
        resource=resource,
        reason=choice.reason.value,
        tolerate_gpu_taint=inventory.needs_toleration(prediction.device, resource),
    )


def _placeable(choice: Choice[Candidate], prediction: Prediction, inventory: Inventory) -> Verdict:
    needs = f"the model needs at most {math.ceil(prediction.required_upper_mib)} MiB on {prediction.device}"
    candidate = choice.candidate
    if candidate is None:
        return Verdict(False, choice.reason.value, f"{needs}, and {_why_none(choice.reason, prediction.candidates)}.")
    if inventory.offers(prediction.device, candidate.resource):
        return Verdict(True, "NodeOffersProfile", f"{needs}; nodes offer {candidate.resource}.")
    so = f"{needs}, so {candidate.resource} will do"
    if inventory.device(prediction.device) is None:
        return Verdict(None, "NoNodeOfDevice", f"{so}, but no node has that device now; pods wait until one comes.")
    if not inventory.offers_slices(prediction.device):
        return Verdict(
            None,
            "NoSlicesAdvertised",
            f"{so}, but no node of that device advertises slices; set the device plugin's MIG strategy to mixed.",
        )
    return Verdict(
        False,
        "ProfileNotOffered",
        f"{so}, but no node offers it; "
        f"partition a GPU into {candidate.profile} or allow a larger profile that is offered.",
    )


def _why_none(reason: Reason, candidates: Sequence[Candidate]) -> str:
    largest = max((c.usable_mib for c in candidates), default=0)
    if reason is Reason.NOT_ALLOWED:
        return "no profile of policy.allowedProfiles holds that; allow a larger one"
    if reason is Reason.TOO_SLOW:
        return "no profile that holds it is within policy.maxLatencyMilliseconds; raise it or use a faster device"
    return f"the largest profile offers {largest} MiB; lower batchSize or precision, or name a larger device"
