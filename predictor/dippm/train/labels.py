"""Labels of whole cases, beside the operators' of the corpus."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dippm.train.corpus import Example

TARGETS: tuple[str, ...] = (
    "allocated_bytes", "activations_bytes", "reserved_bytes", "min_cap_bytes", "device_ms", "host_ms", "latency_ms",
    "energy_j",
)  # fmt: skip
"""Names shared by `CaseLabels` and `dippm.network.compose.Composition`."""


@dataclass(frozen=True, slots=True)
class CaseLabels:
    """What was measured of a case as a whole; NaN where it was not."""

    weights_bytes: float
    inputs_bytes: float
    allocated_bytes: float
    reserved_bytes: float
    min_cap_bytes: float = math.nan
    context_bytes: float = math.nan
    device_ms: float = math.nan
    host_ms: float = math.nan
    latency_ms: float = math.nan
    energy_j: float = math.nan

    @property
    def activations_bytes(self) -> float:
        """Allocated less weights and inputs."""
        return self.allocated_bytes - self.weights_bytes - self.inputs_bytes


@dataclass(frozen=True, slots=True)
class MeasuredCase:
    """A case of the data set as training and evaluation see it."""

    example: Example
    labels: CaseLabels
