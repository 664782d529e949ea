"""`spec.policy`: how a prediction becomes a slice. Every field has its enum, limits and default in the schema."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from dippm_operator.resource.base import Flag, Int, Part
from dippm_operator.resource.names import PROFILE_PATTERN

FALLBACK_MESSAGE = "policy.onUnknown: Fallback needs policy.fallbackProfile, the slice that an unpredicted pod gets"


class PolicyMode(StrEnum):
    """Whether anything beside the status is touched."""

    AUTO = "Auto"
    RECOMMEND = "Recommend"


class AllocatorPolicy(StrEnum):
    """What is done about PYTORCH_CUDA_ALLOC_CONF."""

    AS_IS = "AsIs"
    EXPANDABLE = "Expandable"


class ExistingRequest(StrEnum):
    """What happens to a GPU that the container already asks for."""

    KEEP = "Keep"
    REPLACE = "Replace"


class Allocation(StrEnum):
    """How the slice is asked for."""

    DEVICE_PLUGIN = "DevicePlugin"
    DRA = "DRA"


class OnUnknown(StrEnum):
    """What a pod gets that comes before the first prediction."""

    ALLOW = "Allow"
    DENY = "Deny"
    FALLBACK = "Fallback"


class OnOutOfMemory(StrEnum):
    """What happens when a sized pod runs out of memory."""

    REPORT = "Report"
    BUMP = "Bump"


class Repair(StrEnum):
    """What happens to pods that came up without their size, or with an old one."""

    NONE = "None"
    EVICT = "Evict"


Profile = Annotated[str, Field(pattern=PROFILE_PATTERN, max_length=32)]
"""A MIG profile name, e.g. `1g.5gb`."""


class Policy(Part):
    """How a prediction becomes a slice."""

    mode: PolicyMode = PolicyMode.AUTO
    """Auto sizes pods; Recommend writes the status and touches nothing."""
    oom_risk_percent: Annotated[Int, Field(ge=1, le=50)] = 1
    """Risk of running out of memory that the upper bound is taken at, percent."""
    headroom_mib: Annotated[Int, Field(ge=0, le=1_048_576, alias="headroomMiB")] = 0
    """Added to what the prediction requires, MiB."""
    max_latency_milliseconds: Annotated[Int, Field(ge=1, le=86_400_000)] | None = None
    """The smallest profile that is also this fast, milliseconds a forward pass."""
    allowed_profiles: (
        Annotated[
            tuple[Profile, ...],
            Field(min_length=1, max_length=32, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """Only these profiles; all of the device's when left out."""
    allow_full_gpu: Annotated[Flag, Field(alias="allowFullGPU")] = False
    """Take a whole GPU (nvidia.com/gpu) when no profile fits."""
    allocator: AllocatorPolicy = AllocatorPolicy.AS_IS
    """Expandable sets expandable_segments:True on the container, never over its own value, and sizes for it."""
    existing_request: ExistingRequest = ExistingRequest.KEEP
    """Replace takes the place of the one GPU that the container already asks for; Keep leaves it alone."""
    allocation: Allocation = Allocation.DEVICE_PLUGIN
    """DevicePlugin asks for nvidia.com/mig-<profile>; DRA for a ResourceClaimTemplate."""
    on_unknown: OnUnknown = OnUnknown.ALLOW
    """A pod that comes before the prediction: Allow (as it is), Deny (retriable, at most 120 s) or Fallback."""
    fallback_profile: Profile | None = None
    """The slice that onUnknown: Fallback gives."""
    on_out_of_memory: OnOutOfMemory = OnOutOfMemory.REPORT
    """Report out-of-memory ends of sized pods, or Bump to the next larger profile."""
    repair: Repair = Repair.NONE
    """Evict pods that came up without their size, or with an old one."""

    @model_validator(mode="after")
    def _fallback_is_named(self) -> Policy:
        if self.on_unknown is OnUnknown.FALLBACK and self.fallback_profile is None:
            raise ValueError(FALLBACK_MESSAGE)
        return self
