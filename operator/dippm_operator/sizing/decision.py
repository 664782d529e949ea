"""From a prediction and a policy to the status: which slice, why, and whether a node has it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dippm.case import Allocator, Case
from dippm.policy import Policy, Reason, choose
from dippm.prediction import Candidate, Prediction
from dippm.profiles import resource_name
from dippm_operator.resource import (
    AllocatorPolicy,
    CandidateStatus,
    InferenceJobSpec,
    PredictionStatus,
    Recommendation,
)
from dippm_operator.resource.names import NO_PROFILE
from dippm_operator.sizing.inventory import Inventory

NO_NODES = Inventory()
"""No cluster at hand, or one without GPU nodes."""


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
    candidates: tuple[CandidateStatus, ...]
    recommendation: Recommendation
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


def decide(prediction: Prediction, spec: InferenceJobSpec, inventory: Inventory = NO_NODES) -> Decision:
    """All that the status says about a new prediction."""
    needs = prediction_status(prediction)
    candidates = tuple(_candidate_status(c) for c in prediction.candidates)
    return Decision(needs, candidates, *recommend(needs, candidates, spec, inventory))


def recommend(
    needs: PredictionStatus, candidates: Sequence[CandidateStatus], spec: InferenceJobSpec, inventory: Inventory
) -> tuple[Recommendation, Verdict]:
    """The slice, and whether it can be placed; again at every look, because nodes come and go.

    1. Among the profiles that nodes offer now, the smallest that the policy accepts.
    2. If none of those will do, among those that are declared to come when they are needed.
    3. If none of those, the smallest of the device: somebody may make it.
    4. If none of the device will do, none: recommendation `None`, Placeable=False.
    """
    policy, device = policy_of(spec), needs.device
    offered = [c for c in candidates if inventory.offers(device, resource_name(c.profile))]
    expected = [c for c in candidates if inventory.expects(device, resource_name(c.profile))]
    for among in (offered, expected, candidates):
        choice = choose(among, policy)
        if choice.candidate is not None:
            break
    if choice.candidate is None:
        why = _why_none(choice.reason, candidates)
        message = f"the model needs at most {needs.required_upper_mib} MiB on {device}, and {why}."
        return (
            Recommendation(profile=NO_PROFILE, reason=choice.reason.value),
            Verdict(False, choice.reason.value, message),
        )
    resource = resource_name(choice.candidate.profile)
    chosen = Recommendation(
        profile=choice.candidate.profile,
        resource=resource,
        reason=choice.reason.value,
        tolerate_gpu_taint=inventory.needs_toleration(device, resource),
    )
    return chosen, _placeable(chosen.profile, resource, needs, inventory)


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


def _placeable(profile: str, resource: str, needs: PredictionStatus, inventory: Inventory) -> Verdict:
    so = f"the model needs at most {needs.required_upper_mib} MiB on {needs.device}, for which {resource} will do"
    if inventory.offers(needs.device, resource):
        return Verdict(True, "NodeOffersProfile", f"{so}; nodes offer it.")
    if inventory.expects(needs.device, resource):
        return Verdict(None, "AwaitingScaleUp", f"{so}; it is declared, and a node with it comes when a pod waits.")
    if inventory.device(needs.device) is None:
        return Verdict(None, "NoNodeOfDevice", f"{so}, but no node has that device now; pods wait until one comes.")
    if not inventory.offers_slices(needs.device):
        return Verdict(
            None,
            "NoSlicesAdvertised",
            f"{so}, but no node of that device advertises slices; set the device plugin's MIG strategy to mixed.",
        )
    return Verdict(
        False,
        "ProfileNotOffered",
        f"{so}, but no node offers it; partition a GPU into {profile} or allow a larger profile that is offered.",
    )


def _why_none(reason: Reason, candidates: Sequence[CandidateStatus]) -> str:
    largest = max((c.usable_mib for c in candidates), default=0)
    if reason is Reason.NOT_ALLOWED:
        return "no profile of policy.allowedProfiles holds that; allow a larger one"
    if reason is Reason.TOO_SLOW:
        return "no profile that holds it is within policy.maxLatencyMilliseconds; raise it or use a faster device"
    return f"the largest profile offers {largest} MiB; lower batchSize or precision, or name a larger device"
