"""What the predictor says: one frozen value, shared by the command line, Python and the operator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Basis(StrEnum):
    """On what measurements a figure stands."""

    MEASURED = "measured"
    """The network and tables were trained on this device and runtime."""
    TRANSFERRED = "transferred"
    """Time and energy were carried over from a measured card, operator by operator, with a wider band."""
    PROXY = "proxy"
    """The runtime was never measured: the nearest measured one stands in, with a wider bound."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One MIG profile of the device, and whether the model fits it."""

    profile: str
    resource: str
    """Extended resource name, e.g. `nvidia.com/mig-1g.5gb`."""
    usable_mib: int
    required_mib: float
    """Processes x (smallest cap + context on this profile) + headroom, MiB: the estimate."""
    required_upper_mib: float
    """The calibrated upper bound of `required_mib`: what the choice uses."""
    fits: bool
    utilization: float
    """`required_mib / usable_mib`."""
    latency_ms: float
    """Eager latency on this slice, ms."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Memory in MiB, times in ms, energy in J; all for one forward pass of one process.

    Unpacks to the paper's four: (memory MB, energy J, latency ms, MIG profile).
    """

    memory_mib: float
    """The footprint: context + reserved, as `nvidia-smi` shows it on the whole device."""
    required_mib: float
    required_upper_mib: float
    allocated_mib: float
    activations_mib: float
    weights_mib: float
    reserved_mib: float
    min_cap_mib: float
    context_mib: float
    latency_ms: float
    device_ms: float
    host_ms: float
    energy_j: float
    device: str
    runtime: str
    precision: str
    batch: int
    basis: Basis
    mig_profile: str | None
    """The smallest profile that fits (None: none does)."""
    resource: str | None
    candidates: tuple[Candidate, ...]
    static_features: Mapping[str, float] = field(default_factory=dict)
    """Equation 1: `macs`, `batch`, `convs`, `denses`, `relus`."""
    digest: str = ""
    """Digest of the model graph."""
    format: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by stage: `load`, `convert`, `replay`, `network`, `total`."""
    predictor_version: str = ""
    notes: tuple[str, ...] = ()
    """What the reader should know: which network was priced, a proxy runtime, ..."""

    def __iter__(self) -> Iterator[Any]:
        """The paper's figure 5: memory (MB), energy (J), latency (ms), MIG profile."""
        return iter((round(self.memory_mib), round(self.energy_j, 3), round(self.latency_ms, 3), self.mig_profile))
