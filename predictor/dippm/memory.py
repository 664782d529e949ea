"""What a container must be offered: the smallest allocator cap, its upper bound, and the context of each slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dippm.case import Case
from dippm.devices import MIB, Hardware, context_on
from dippm.policy import Policy, candidate
from dippm.prediction import Candidate
from dippm.profiles import Device, Profile
from dippm.runtimes import PROXY_FACTOR

if TYPE_CHECKING:
    from dippm.graph import ModelGraph
    from dippm.network.bundle import Estimates
    from dippm.network.calibration import UpperBound
    from dippm.network.compose import Composition
    from dippm.network.workload import Workload


UNCALIBRATED_RATE = 0.4
"""Rate of the upper bound (see `dippm.network.calibration`) where a bundle holds no calibration: about 1.5 times
what is all activations."""


@dataclass(frozen=True, slots=True)
class Cap:
    """The smallest allocator cap of one process, MiB."""

    estimate_mib: float
    upper_mib: float
    bound: UpperBound
    """The calibration that the upper bound started from."""
    workspace_bounded: bool
    """Whether convolution workspaces of a card never measured were taken at their bound."""


def cap(
    graph: ModelGraph,
    case: Case,
    work: Sequence[Workload],
    *,
    composed: Composition,
    estimates: Estimates,
    is_proxy: bool,
    target: Hardware,
    unmeasured_architecture: bool,
) -> Cap:
    """The cap and its upper bound, which is the largest of what is known to go wrong.

    1. The calibrated bound of the estimate: the more of it is activations, the wider.
    2. Where a measured runtime stands in for another: what lies above weights and inputs, widened by what the measured
       runtimes differ, then the same bound.
    3. On an architecture that was never measured other convolution engines are picked: each dense convolution's
       workspace at its bound, bytes in + out + weight, replayed.
    """
    from dippm.network.calibration import UpperBound

    bound = estimates.upper.get("min_cap") or UpperBound(UNCALIBRATED_RATE, None, "uncalibrated", 0)
    held = composed.weights_bytes + composed.inputs_bytes
    widened = held + (composed.min_cap_bytes - held) * (PROXY_FACTOR if is_proxy else 1.0)
    upper = bound.above(widened, held)
    if unmeasured_architecture:
        upper = max(upper, _with_bounded_workspaces(graph, case, work, estimates, target, floor=int(upper)))
    bounded = unmeasured_architecture and any(map(_is_dense_convolution, work))
    return Cap(composed.min_cap_bytes / MIB, upper / MIB, bound, bounded)


def _with_bounded_workspaces(
    graph: ModelGraph, case: Case, work: Sequence[Workload], estimates: Estimates, target: Hardware, *, floor: int
) -> int:
    """The smallest cap with them, bytes; where it is no more than `floor`, some number that is no more either."""
    from dippm.replay import replay

    workspaces = tuple(
        max(known, w.bytes_in + w.bytes_out + w.bytes_weight) if _is_dense_convolution(w) else known
        for known, w in zip(estimates.workspace_bytes, work, strict=True)
    )
    replayed = replay(
        graph,
        runtime=case.runtime,
        allocator=case.allocator,
        mode=case.mode,
        workspaces=workspaces,
        cublas_bytes=target.cublas_workspace_bytes,
        cap_floor=floor,
    )
    return replayed.min_cap_bytes


def _is_dense_convolution(work: Workload) -> bool:
    from dippm.vocabulary import CONVOLUTIONS

    depthwise = work.groups > 1 and work.groups == work.channels_in
    return work.kind in CONVOLUTIONS and not depthwise


def requirement(device: Device, profile: Profile, need: Cap, policy: Policy, *, latency_ms: float) -> Candidate:
    """One profile: processes x (cap + context on this slice) + headroom, estimate and upper bound."""
    context = context_on(device, profile)
    return candidate(
        profile,
        required_mib=policy.processes * (need.estimate_mib + context.estimate) + policy.headroom_mib,
        required_upper_mib=policy.processes * (need.upper_mib + context.high) + policy.headroom_mib,
        latency_ms=latency_ms,
    )
