"""What operators cost besides memory and kernel time: dispatch time on the host, and energy.

Both are sums over operators with non-negative coefficients, fitted on whole cases (nothing finer is measured), so
they stay in proportion for graphs unlike those measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dippm.case import Precision
from dippm.network.roofline import on_tensor_cores
from dippm.network.workload import Workload
from dippm.vocabulary import KINDS

Array = npt.NDArray[np.float64]

ENERGY_COLUMNS: tuple[str, ...] = ("tensor_core_half_flops", "tf32_flops", "vector_flops", "bytes", "kernel_seconds")
"""What an operator's energy is a sum of: coefficients are J a FLOP, J a byte, and W."""


@dataclass(frozen=True, slots=True)
class HostCost:
    """Host time to enqueue one forward: so much a pass, so much an operator of each kind."""

    pass_us: float
    kind_us: npt.NDArray[np.float32]
    """[len(KINDS)]; kinds that were never measured hold the mean of those that were."""

    def of(self, kinds: npt.NDArray[np.int64]) -> Array:
        """Microseconds of each operator, [n]."""
        return self.kind_us[kinds].astype(np.float64)


@dataclass(frozen=True, slots=True)
class EnergyCost:
    """Energy of one forward: static power over its latency, and the work of each operator."""

    static_w: float
    coefficients: Mapping[str, float]
    """By `ENERGY_COLUMNS`."""

    def of(self, work: Sequence[Workload], precision: Precision, kernel_us: Array) -> Array:
        """Joules of each operator above the static power, [n]."""
        weights = np.array([self.coefficients[c] for c in ENERGY_COLUMNS])
        total: Array = energy_terms(work, precision, kernel_us) @ weights
        return total


def energy_terms(work: Sequence[Workload], precision: Precision, kernel_us: Array) -> Array:
    """[n, len(ENERGY_COLUMNS)] in FLOP, bytes and seconds."""
    terms = np.zeros((len(work), len(ENERGY_COLUMNS)))
    for row, w in enumerate(work):
        flops = 2.0 * w.macs if w.macs else float(0 if w.is_view else w.elements_out)
        column = 2
        if on_tensor_cores(w, precision):
            column = 0 if w.dtype in ("float16", "bfloat16") else 1
        terms[row, column] = flops
        terms[row, 3] = w.bytes_moved
    terms[:, 4] = kernel_us * 1e-6
    return terms


def kind_counts(kinds: npt.NDArray[np.int64]) -> Array:
    """How many operators of each kind, [len(KINDS)]."""
    return np.bincount(kinds, minlength=len(KINDS)).astype(np.float64)
