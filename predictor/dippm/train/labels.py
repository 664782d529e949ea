"""Labels of whole cases and of their operators, and the measured case that carries them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dippm.case import Case
from dippm.graph import ModelGraph

TARGETS: tuple[str, ...] = (
    "allocated_bytes", "activations_bytes", "reserved_bytes", "min_cap_bytes", "device_ms", "host_ms", "latency_ms",
    "energy_j",
)  # fmt: skip
"""Names shared by `CaseLabels` and `dippm.network.compose.Composition`."""
UNMEASURED = -1


@dataclass(frozen=True, slots=True)
class OperatorLabels:
    """What was measured of each operator of one case, in order; `UNMEASURED` or NaN where it was not."""

    workspace_bytes: npt.NDArray[np.int64]
    kernel_us: npt.NDArray[np.float64]
    kernels: npt.NDArray[np.int64]


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


class Source(Protocol):
    """Where the graph and the operators of a case are read from, when they are asked for.

    Ten thousand graphs at once would fill the memory; another process gets the source, not what it gives.
    """

    @property
    def mark(self) -> str:
        """Changes with what is read."""
        ...

    def graph(self) -> ModelGraph:
        """The case's graph, at its batch and in its precision."""
        ...

    def operators(self, graph: ModelGraph) -> OperatorLabels:
        """What was measured of the operators of that graph."""
        ...


@dataclass(frozen=True, slots=True)
class MeasuredCase:
    """A case of the data set as training and evaluation see it."""

    id: str
    architecture: str
    group: str
    """Super-family: what a split must not divide."""
    network: str
    """What stands next to each other in an order by it shares a graph."""
    case: Case
    labels: CaseLabels
    source: Source
