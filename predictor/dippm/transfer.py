"""Times and energies of one card carried over to another, operator by operator, and to MIG slices of it.

An operator's kernel time on the source card says how near it comes to that card's roofline. Where it is near, what
limits it (memory or arithmetic) decides how much slower the target is; where it is far (a small kernel), hardly
anything changes. In between the ratio was fitted on published pairs of measurements:

    log(t_target / t_source) = w(e) log(roof_target / roof_source) + c(b, e)
    e = roof_source / t_source             the efficiency reached on the source card
    b = arithmetic over memory time        the operator's balance on the source card

`w` and the table `c` are in `catalogue/transfer.yaml`, written by `bench/fit_transfer.py`, which names the sources and
prints the errors when whole sources are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dippm import catalogue
from dippm.devices import Hardware

if TYPE_CHECKING:
    from dippm.case import Precision
    from dippm.network.bundle import Estimates
    from dippm.network.workload import Workload

Array = npt.NDArray[np.float64]

OUTPUTS_PER_SM = 16384
"""Results of a matrix product that keep one multiprocessor busy: one 128 x 128 tile."""
BYTES_PER_SM = 65536
"""Bytes in flight that keep one multiprocessor's share of the memory system busy."""
ELEMENTWISE_FLOPS = 1.0
"""FLOP counted for each result of an operator without matrix work."""


@dataclass(frozen=True, slots=True)
class Work:
    """The operators of a graph as the roofline sees them; every array is [n_operators]."""

    flops: Array
    bytes: Array
    unit: tuple[str, ...]
    """What does the arithmetic: `fp32`, `tf32` or `half`."""
    results: Array
    """Results of matrix work; 0 elsewhere."""

    @classmethod
    def of(cls, work: Sequence[Workload], precision: Precision) -> Work:
        """From the workloads of a graph that is cast to `precision`."""
        from dippm.network.roofline import on_tensor_cores

        def unit(w: Workload) -> str:
            if not on_tensor_cores(w, precision):
                return "fp32"
            return "half" if w.dtype in ("float16", "bfloat16") else "tf32"

        return cls(
            flops=np.array([2.0 * w.macs if w.macs else ELEMENTWISE_FLOPS * w.elements_out for w in work]),
            bytes=np.array([float(w.bytes_moved) for w in work]),
            unit=tuple(unit(w) for w in work),
            results=np.array([float(w.elements_out) if w.macs else 0.0 for w in work]),
        )

    def arithmetic_us(self, card: Hardware) -> Array:
        """Least time of the arithmetic, microseconds."""
        rates = np.array([card.flops[u] for u in self.unit], dtype=np.float64)
        time: Array = 1e6 * self.flops / rates
        return time

    def memory_us(self, card: Hardware) -> Array:
        """Least time of the memory traffic, microseconds."""
        return 1e6 * self.bytes / card.bandwidth

    def roof_us(self, card: Hardware) -> Array:
        """The longer of the two."""
        roof: Array = np.maximum(np.maximum(self.arithmetic_us(card), self.memory_us(card)), 1e-6)
        return roof


@dataclass(frozen=True, slots=True)
class Table:
    """`c(b, e)` on a grid of log2 balance and log2 efficiency, linear between its knots and flat outside."""

    balance: tuple[float, ...]
    efficiency: tuple[float, ...]
    values: Array
    """[len(balance), len(efficiency)], natural log."""
    half_efficiency: float
    """`w(e) = e / (e + half_efficiency)`."""
    band: tuple[float, float]
    """Factors within which 9 of 10 whole models of sources left out came to lie."""
    source: str
    """Card whose pairs it was fitted on ..."""
    target: str
    """... and the one they were paired with."""

    def log_ratio(self, work: Work, source_us: Array, source: Hardware, target: Hardware) -> Array:
        """log(t_target / t_source) of each operator, [n]."""
        roof = work.roof_us(source)
        balance, efficiency = self.coordinates(work, source_us, source)
        reached = np.exp2(efficiency)
        weight = reached / (reached + self.half_efficiency)
        corner = basis(balance, self.balance)[:, :, None] * basis(efficiency, self.efficiency)[:, None, :]
        fitted = np.einsum("nbe,be->n", corner, self.values)
        ratio: Array = weight * np.log(work.roof_us(target) / roof) + fitted
        return ratio

    @staticmethod
    def coordinates(work: Work, source_us: Array, source: Hardware) -> tuple[Array, Array]:
        """log2 of balance and of efficiency on the source card, each [n]."""
        efficiency = np.minimum(1.0, work.roof_us(source) / np.maximum(source_us, 1e-6))
        balance = np.maximum(work.arithmetic_us(source), 1e-9) / np.maximum(work.memory_us(source), 1e-9)
        return np.log2(balance), np.log2(efficiency)


def basis(x: Array, knots: Sequence[float]) -> Array:
    """Weights of linear interpolation between `knots`, [n, len(knots)]; each row adds up to 1."""
    grid = np.asarray(knots, dtype=np.float64)
    x = np.clip(x, grid[0], grid[-1])
    left = np.clip(np.searchsorted(grid, x, side="right") - 1, 0, len(grid) - 2)
    share = (x - grid[left]) / (grid[left + 1] - grid[left])
    weights = np.zeros((len(x), len(grid)))
    rows = np.arange(len(x))
    weights[rows, left] = 1.0 - share
    weights[rows, left + 1] = share
    return weights


UNFITTED = Table((0.0, 1.0), (-1.0, 0.0), np.zeros((2, 2)), half_efficiency=0.1, band=(0.5, 2.0), source="", target="")
"""Between cards of one architecture, and where no pairs are published: the efficiency carries over unchanged."""


@cache
def table(source_architecture: str, target_architecture: str) -> Table:
    """The fitted table between two architectures; `UNFITTED` where there is none."""
    body = catalogue.read("transfer.yaml").get(f"{source_architecture}-{target_architecture}")
    if body is None:
        return UNFITTED
    return Table(
        balance=tuple(body["balance_log2"]),
        efficiency=tuple(body["efficiency_log2"]),
        values=np.array(body["log_ratio"], dtype=np.float64),
        half_efficiency=body["half_efficiency"],
        band=tuple(body["band"]),
        source=body["source"],
        target=body["target"],
    )


def carry_over(
    estimates: Estimates, work: Work, source: Hardware, target: Hardware, *, part: Hardware | None = None
) -> Estimates:
    """Estimates of `source` as they would be on `target`, or on the slice `part` of it.

    Host times and workspaces stay. An operator's energy above the static power goes with its time and with what the
    board may draw above its static power; static power is the target's.
    """
    if source.product == target.product and part is None:
        return estimates
    kernel_us = np.asarray(estimates.kernel_us, dtype=np.float64)
    kernels = np.asarray(estimates.kernels)
    ratio = np.exp(log_ratio(work, kernel_us, source, target))
    moved = kernel_us * ratio
    if part is not None:
        moved = moved * slice_factor(work, target, part)
    moved = np.where(kernel_us > 0, np.maximum(moved, target.kernel_floor_us * np.minimum(kernels, 1)), 0.0)
    power = (target.tdp_w - target.static_w) / (source.tdp_w - source.static_w)
    return replace(
        estimates,
        kernel_us=tuple(moved.tolist()),
        energy_j=tuple((np.asarray(estimates.energy_j) * ratio * power).tolist()),
        gap_us=estimates.gap_us * target.launch_gap_us / source.launch_gap_us,
        static_w=estimates.static_w * target.static_w / source.static_w,
    )


def log_ratio(work: Work, source_us: Array, source: Hardware, target: Hardware) -> Array:
    """log(t_target / t_source) of each operator between two whole cards, [n]."""
    if source.product == target.product:
        return np.zeros(len(source_us))
    return table(source.architecture, target.architecture).log_ratio(work, source_us, source, target)


def slice_factor(work: Work, whole: Hardware, part: Hardware) -> Array:
    """How much longer each operator's kernels take on a slice than on the whole card, at least 1, [n].

    An operator that fills the whole card slows by the share of what limits it that is lost (multiprocessors or
    bandwidth); one that leaves multiprocessors idle only by what no longer fits on the slice.
    """
    loads = np.maximum(np.maximum(work.results / OUTPUTS_PER_SM, work.bytes / BYTES_PER_SM), 1.0)
    packed = np.minimum(loads, whole.sms) / np.minimum(loads, part.sms)
    memory_bound = work.memory_us(whole) > work.arithmetic_us(whole)
    lost = np.where(memory_bound, whole.bandwidth / part.bandwidth, whole.sms / part.sms)
    if whole.sms == part.sms:
        return np.maximum(lost, 1.0)
    factor: Array = np.exp(np.log(packed) * np.log(np.maximum(lost, 1.0)) / np.log(whole.sms / part.sms))
    return factor
