"""Fits of the summed costs: dispatch time by kind, the gap between kernels, energy by work done."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dippm.network.costs import ENERGY_COLUMNS, EnergyCost, HostCost

Array = npt.NDArray[np.float64]
DEFAULT_GAP_US = 1.0


def fit_gap_us(kernel_us: Sequence[float], kernels: Sequence[int], device_ms: Sequence[float]) -> float:
    """Device time a kernel besides its own, us: the median over cases, weighted by their number of kernels.

    Cases are given by the sum of kernel times, the number of kernels and the device time; 1 us where there are none.
    """
    counts = np.asarray(kernels, dtype=np.float64)
    gaps = (1e3 * np.asarray(device_ms) - np.asarray(kernel_us)) / np.maximum(1.0, counts)
    if not len(gaps):
        return DEFAULT_GAP_US
    order = np.argsort(gaps)
    middle = int(np.searchsorted(np.cumsum(counts[order]), counts.sum() / 2))
    return max(0.0, float(gaps[order][min(middle, len(gaps) - 1)]))


def least_squares_nonnegative(a: Array, b: Array, *, ridge: float = 0.0, rounds: int = 2000) -> Array:
    """argmin over x >= 0 of |a x - b|^2 + ridge |x / scale|^2, by cyclic coordinate descent on scaled columns.

    `a` is [n, k], `b` [n]; columns of zeros get 0.
    """
    scale = np.sqrt(np.square(a).mean(axis=0))
    used = scale > 0
    scaled = a[:, used] / scale[used]
    gram = scaled.T @ scaled + ridge * np.eye(int(used.sum()))
    target = scaled.T @ b
    x = np.zeros(len(target))
    for _ in range(rounds):
        before = x.copy()
        for j in range(len(x)):
            x[j] = max(0.0, x[j] + (target[j] - gram[j] @ x) / gram[j, j])
        if np.abs(x - before).max(initial=0.0) <= 1e-9 * max(1.0, np.abs(x).max(initial=0.0)):
            break
    out = np.zeros(a.shape[1])
    out[used] = x / scale[used]
    return out


def fit_host(counts: Array, host_ms: Array, *, ridge: float = 1.0) -> HostCost:
    """Host cost from kind counts [cases, len(KINDS)] and measured host ms [cases], in relative error.

    The ridge pulls kinds with little evidence towards the mean of all operators.
    """
    total = counts.sum(axis=1)
    design = np.concatenate([np.ones((len(counts), 1)), total[:, None], counts], axis=1) / (1e3 * host_ms)[:, None]
    x = _ridge_from_third(design, ridge)
    kind_us = x[1] + x[2:]
    return HostCost(pass_us=float(x[0]), kind_us=kind_us.astype(np.float32))


def _ridge_from_third(design: Array, ridge: float) -> Array:
    """Non-negative fit to ones with only the per-kind columns (third on) held back by the ridge."""
    scale = np.sqrt(np.square(design).mean(axis=0))
    used = scale > 0
    rows = np.zeros((int(used[2:].sum()), design.shape[1]))
    for row, column in enumerate(np.flatnonzero(used[2:]) + 2):
        rows[row, column] = np.sqrt(ridge) * scale[column]
    a = np.concatenate([design, rows])
    b = np.concatenate([np.ones(len(design)), np.zeros(len(rows))])
    return least_squares_nonnegative(a, b)


def fit_energy(terms: Array, latency_s: Array, energy_j: Array) -> EnergyCost:
    """Energy cost from summed terms [cases, len(ENERGY_COLUMNS)], latency [cases] and measured J, in relative error."""
    design = np.concatenate([latency_s[:, None], terms], axis=1) / energy_j[:, None]
    x = least_squares_nonnegative(design, np.ones(len(energy_j)))
    return EnergyCost(static_w=float(x[0]), coefficients=dict(zip(ENERGY_COLUMNS, map(float, x[1:]), strict=True)))
