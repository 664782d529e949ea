"""Measured operators by signature: a known operator's workspace and kernel time are looked up, not predicted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dippm.attention import KIND as ATTENTION
from dippm.case import Case
from dippm.graph import ModelGraph, Operator
from dippm.network import workspace
from dippm.network.workload import Workload
from dippm.signature import signature

KEY_BITS = 40
"""So much of a key is kept: among a million measured operators another one is taken for one of them once in a million
times."""
_DROPPED = np.uint64(64 - KEY_BITS)


@dataclass(frozen=True, slots=True)
class Table:
    """Sorted keys and, row by row, what was measured. Unmeasured times are NaN."""

    keys: npt.NDArray[np.uint64]
    """The first `KEY_BITS` of each key."""
    classes: npt.NDArray[np.uint8]
    """Class of the workspace (`dippm.network.workspace.CLASSES`)."""
    exact_bytes: npt.NDArray[np.int64]
    """The workspace itself where its class does not tell it to the byte; -1 elsewhere."""
    kernel_us: npt.NDArray[np.float32]
    """Sum over the operator's kernels, median over where it was measured."""
    kernels: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
        """Row of each key, -1 where it is not in the table."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.int64)
        short = keys >> _DROPPED
        rows = np.minimum(np.searchsorted(self.keys, short), len(self.keys) - 1)
        return np.where(self.keys[rows] == short, rows, -1).astype(np.int64)

    def workspace_bytes(self, row: int, work: Workload) -> int:
        """What was measured of the operator in a row, whose work is this."""
        exact = int(self.exact_bytes[row])
        return exact if exact >= 0 else workspace.workspace_bytes(work, int(self.classes[row]), 0.0)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The table as it is kept: six bytes an operator, and more only where more was measured."""
        exact, timed = np.flatnonzero(self.exact_bytes >= 0), np.flatnonzero(np.isfinite(self.kernel_us))
        return {
            "keys_high": (self.keys >> np.uint64(8)).astype(np.uint32),
            "keys_low": (self.keys & np.uint64(255)).astype(np.uint8),
            "classes": self.classes,
            "exact_rows": exact.astype(np.uint32),
            "exact_bytes": self.exact_bytes[exact],
            "timed_rows": timed.astype(np.uint32),
            "kernel_us": self.kernel_us[timed],
            "kernels": self.kernels[timed],
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Table:
        """Inverse of `arrays`."""
        count = len(arrays["classes"])
        exact, us = np.full(count, -1, dtype=np.int64), np.full(count, np.nan, dtype=np.float32)
        kernels = np.zeros(count, dtype=np.uint8)
        exact[arrays["exact_rows"]] = arrays["exact_bytes"]
        us[arrays["timed_rows"]], kernels[arrays["timed_rows"]] = arrays["kernel_us"], arrays["kernels"]
        keys = arrays["keys_high"].astype(np.uint64) << np.uint64(8) | arrays["keys_low"].astype(np.uint64)
        return cls(keys, arrays["classes"], exact, us, kernels)


EMPTY = Table(
    np.zeros(0, np.uint64), np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.float32),
    np.zeros(0, np.uint8),
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
    return operator.kind == ATTENTION and len(operator.inputs) > 3


def key(text: str, case: Case) -> int:
    """64-bit key of one signature under a case."""
    full = f"{text}|{case.precision.value}|{case.mode.value}"
    return int.from_bytes(hashlib.blake2b(full.encode(), digest_size=8).digest(), "little")


def build(
    keys: npt.ArrayLike,
    classes: npt.ArrayLike,
    workspace_bytes: npt.ArrayLike,
    kernel_us: npt.ArrayLike,
    kernels: npt.ArrayLike,
) -> Table:
    """Table of measured rows: per key the largest workspace, the median kernel time, the most frequent kernel count."""
    short = np.asarray(keys, dtype=np.uint64) >> _DROPPED
    workspaces = np.asarray(workspace_bytes, dtype=np.int64)
    unique, starts = np.unique(np.sort(short), return_index=True)
    largest = np.lexsort((-workspaces, short))[starts]
    found = np.asarray(classes, dtype=np.uint8)[largest]
    exact = np.where(found >= workspace.FIRST_BUFFERED, workspaces[largest], -1)
    out_us = np.full(len(unique), np.nan, dtype=np.float32)
    out_kernels = np.zeros(len(unique), dtype=np.uint8)
    times, counts = np.asarray(kernel_us, dtype=np.float64), np.asarray(kernels, dtype=np.int64)
    timed = np.flatnonzero(np.isfinite(times))
    timed = timed[np.argsort(short[timed], kind="stable")]
    for here in np.split(timed, np.flatnonzero(np.diff(short[timed])) + 1):
        if len(here):
            row = int(np.searchsorted(unique, short[here[0]]))
            out_us[row] = np.median(times[here])
            out_kernels[row] = min(255, int(np.bincount(counts[here]).argmax()))
    return Table(unique, found, exact, out_us, out_kernels)
