"""Measured operators by signature: a known operator's workspace and kernel time are looked up, not predicted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dippm.case import Case
from dippm.graph import ModelGraph, Operator
from dippm.network import attention
from dippm.signature import signature


@dataclass(frozen=True, slots=True)
class Table:
    """Sorted keys and, row by row, what was measured. Unmeasured entries are -1 (workspace) or NaN (time)."""

    keys: npt.NDArray[np.uint64]
    workspace_bytes: npt.NDArray[np.int64]
    kernel_us: npt.NDArray[np.float32]
    """Sum over the operator's kernels, median over where it was measured."""
    kernels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Row of each key, -1 where it is not in the table."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        rows = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[rows] == keys, rows, -1).astype(np.int64)


EMPTY = Table(
    np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros(0, np.uint8)
)  # fmt: skip


def operator_keys(graph: ModelGraph, case: Case) -> npt.NDArray[np.uint64]:
    """Key of each operator, [n]: signature, precision (it decides TF32) and whether gradients are recorded.

    Attention with a mask is told apart by runtime too: the eager call may leave the mask away.
    """
    return np.array(
        [
            key(signature(graph, index) + (case.runtime.value if _is_masked(operator) else ""), case)
            for index, operator in enumerate(graph.operators)
        ],
        dtype=np.uint64,
    )


def _is_masked(operator: Operator) -> bool:
    return operator.kind == attention.KIND and len(operator.inputs) > 3


def key(text: str, case: Case) -> int:
    """64-bit key of one signature under a case."""
    full = f"{text}|{case.precision.value}|{case.mode.value}"
    return int.from_bytes(hashlib.blake2b(full.encode(), digest_size=8).digest(), "little")


def build(
    keys: npt.ArrayLike, workspace_bytes: npt.ArrayLike, kernel_us: npt.ArrayLike, kernels: npt.ArrayLike
) -> Table:
    """Table of measured rows: per key the largest workspace, the median kernel time, the most frequent kernel count."""
    key_array = np.asarray(keys, dtype=np.uint64)
    order = np.argsort(key_array, kind="stable")
    unique, starts = np.unique(key_array[order], return_index=True)
    workspaces = np.asarray(workspace_bytes, dtype=np.int64)[order]
    times = np.asarray(kernel_us, dtype=np.float64)[order]
    counts = np.asarray(kernels, dtype=np.int64)[order]
    out_us = np.full(len(unique), np.nan, dtype=np.float32)
    out_kernels = np.zeros(len(unique), dtype=np.uint8)
    for row, (times_here, counts_here) in enumerate(
        zip(np.split(times, starts[1:]), np.split(counts, starts[1:]), strict=True)
    ):
        finite = np.isfinite(times_here)
        if finite.any():
            out_us[row] = np.median(times_here[finite])
            out_kernels[row] = min(255, int(np.bincount(counts_here[finite]).argmax()))
    largest = np.maximum.reduceat(workspaces, starts) if len(unique) else workspaces
    return Table(unique, largest, out_us, out_kernels)
