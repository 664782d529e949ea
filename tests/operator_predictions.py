"""Predictions made up for tests of what comes after the predictor: the profiles and the choice among them are real."""

from __future__ import annotations

from dippm.case import Case
from dippm.policy import DEFAULT_POLICY, Policy, candidate, choose
from dippm.prediction import Basis, Prediction
from dippm.profiles import Device, resolve_device


def prediction_of(
    required_mib: float,
    *,
    case: Case | None = None,
    policy: Policy = DEFAULT_POLICY,
    device: Device | None = None,
) -> Prediction:
    """A prediction whose requirement is so many MiB on every profile of the device (else of the case's)."""
    case = case or Case(batch=1)
    device = device or resolve_device(case.device)
    candidates = tuple(
        candidate(p, required_mib=required_mib, required_upper_mib=required_mib, latency_ms=70 / p.compute)
        for p in (device.with_full_gpu() if policy.allow_full_gpu else device.profiles)
    )
    choice = choose(candidates, policy)
    return Prediction(
        memory_mib=required_mib,
        required_mib=required_mib,
        required_upper_mib=required_mib,
        allocated_mib=required_mib,
        activations_mib=10,
        weights_mib=required_mib - 10,
        reserved_mib=required_mib,
        min_cap_mib=required_mib,
        context_mib=0,
        latency_ms=10,
        device_ms=10,
        host_ms=5,
        energy_j=2,
        device=device.product,
        runtime="graph",
        precision=case.precision.value,
        batch=case.batch,
        basis=Basis.TRANSFERRED,
        mig_profile=choice.profile,
        resource=None if choice.candidate is None else choice.candidate.resource,
        candidates=candidates,
        digest="sha256:" + "a" * 64,
        format="onnx",
        predictor_version="0.1.0",
    )
