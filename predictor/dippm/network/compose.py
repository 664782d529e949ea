"""From operators to the whole graph: what is computed before anything is corrected.

Memory is replayed (`dippm.replay`) with the estimated workspaces; time is the two clocks; energy is static power over
the latency and the operators' work. The graph's log residuals of `Estimates` are told over these figures, so training,
evaluation and prediction all compose here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dippm.case import Case
from dippm.graph import ModelGraph
from dippm.network.bundle import Estimates
from dippm.network.clocks import device_ms, host_ms, latency_ms
from dippm.replay import Replay, replay
from dippm.replay.workspace import cublas_bytes


@dataclass(frozen=True, slots=True)
class Composition:
    """Figures of one case on the measured device: bytes, ms, J."""

    weights_bytes: int
    inputs_bytes: int
    allocated_bytes: float
    reserved_bytes: float
    min_cap_bytes: float
    device_ms: float
    host_ms: float
    latency_ms: float
    """Eager latency: the two clocks, operator by operator."""
    energy_j: float
    """Of back-to-back eager passes."""

    @property
    def activations_bytes(self) -> float:
        """Allocated less weights and inputs."""
        return self.allocated_bytes - self.weights_bytes - self.inputs_bytes


def compose(graph: ModelGraph, case: Case, estimates: Estimates, device: str = "H200") -> Composition:
    """Figures of a graph (cast to its precision), composed of its operators, without the graph's residuals."""
    return composition_of(
        replay(
            graph,
            runtime=case.runtime,
            allocator=case.allocator,
            mode=case.mode,
            workspaces=estimates.workspace_bytes,
            cublas_bytes=cublas_bytes(device),
        ),
        estimates,
    )


def composition_of(memory: Replay, estimates: Estimates) -> Composition:
    """Memory as replayed, and the two clocks and the energy of the operators' costs."""
    latency = latency_ms(
        estimates.host_us,
        estimates.kernel_us,
        estimates.kernels,
        host_pass_us=estimates.host_pass_us,
        gap_us=estimates.gap_us,
    )
    return Composition(
        weights_bytes=memory.weights_bytes,
        inputs_bytes=memory.inputs_bytes,
        allocated_bytes=memory.allocated_bytes,
        reserved_bytes=memory.reserved_bytes,
        min_cap_bytes=memory.min_cap_bytes,
        device_ms=device_ms(estimates.kernel_us, estimates.kernels, estimates.gap_us),
        host_ms=host_ms(estimates.host_us, estimates.host_pass_us),
        latency_ms=latency,
        energy_j=estimates.static_w * latency / 1e3 + sum(estimates.energy_j),
    )


def correct(composed: Composition, log_residuals: Mapping[str, float]) -> Composition:
    """The composition with the graph's expected residuals applied; never less memory than weights and inputs.

    Residuals are those of `Estimates.log_residuals`; that of `device_ms` carries over to the latency as far as the
    device is what it waits for.
    """
    factor = {name: math.exp(value) for name, value in log_residuals.items()}
    floor = composed.weights_bytes + composed.inputs_bytes
    allocated = max(floor, composed.allocated_bytes * factor.get("allocated", 1.0))
    reserved_factor = factor.get("reserved", 1.0)
    device = composed.device_ms * factor.get("device_ms", 1.0)
    host = composed.host_ms * factor.get("host_ms", 1.0)
    exposed = composed.latency_ms - max(composed.device_ms, composed.host_ms)
    return replace(
        composed,
        allocated_bytes=allocated,
        reserved_bytes=max(allocated, composed.reserved_bytes * reserved_factor),
        min_cap_bytes=max(allocated, composed.min_cap_bytes),
        device_ms=device,
        host_ms=host,
        latency_ms=max(device, host) + exposed,
        energy_j=composed.energy_j * factor.get("energy_j", 1.0),
    )
