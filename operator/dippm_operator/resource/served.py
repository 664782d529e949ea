"""What the schema has room for and this version does not do yet. Pure."""

from __future__ import annotations

from dippm_operator.resource.policy import Allocation, OnOutOfMemory, Repair
from dippm_operator.resource.spec import InferenceJobSpec


def not_served(spec: InferenceJobSpec) -> tuple[str, ...]:
    """One sentence for each field whose value has no effect yet, with the way out.

    Refused at admission; of an object that got past (the webhook was away, or is older) the controller tells them as
    Events.
    """
    policy = spec.policy
    asked = (
        (
            "policy.allocation: DRA",
            policy.allocation is not Allocation.DEVICE_PLUGIN,
            f"use {Allocation.DEVICE_PLUGIN}",
        ),
        ("policy.onOutOfMemory: Bump", policy.on_out_of_memory is OnOutOfMemory.BUMP, f"use {OnOutOfMemory.REPORT}"),
        (
            "policy.repair: Evict",
            policy.repair is Repair.EVICT,
            f"use {Repair.NONE}, and restart pods that Ready names",
        ),
        ("generation", spec.generation is not None, "give the sequence length in spec.model.inputs instead"),
    )
    return tuple(
        f"spec.{field} is not served by this version yet; {way_out}" for field, wanted, way_out in asked if wanted
    )
