"""Workspace of an operator as a class: a sum of its own tensors, or else a ratio to them.

Measured workspaces are, nearly always, one of a few sums (nothing, everything it touches, inputs and outputs, ...), so
the network picks a class; the last class is a free ratio, regressed in log space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dippm.graph import DTYPE_BYTES
from dippm.network.workload import Workload

CLASSES: tuple[str, ...] = (
    "none", "in+out+weight", "in+out", "in+weight", "out+weight", "weight", "in", "out",
    "2(in+out)", "int64 per output", "2 float32 per row", "float32 per row", "ratio",
)  # fmt: skip
"""Only ever appended."""
RATIO = CLASSES.index("ratio")
TOLERANCE = 0.002
SLACK_BYTES = 4096
"""Allocator rounding (512 B) of several pieces."""


@dataclass(frozen=True, slots=True)
class WorkspaceLabel:
    """Class index and, for the class `ratio`, log(bytes / (in + out + weight)); 0 otherwise."""

    index: int
    log_ratio: float


def candidates(work: Workload) -> tuple[int, ...]:
    """Bytes that each class but the last would mean for this operator."""
    i, o, w = work.bytes_in, work.bytes_out, work.bytes_weight
    rows = work.elements_out // max(1, work.last)
    return (0, i + o + w, i + o, i + w, o + w, w, i, o, 2 * (i + o), 8 * work.elements_out, 8 * rows, 4 * rows)


def classify(work: Workload, workspace_bytes: int) -> WorkspaceLabel:
    """The class that explains a measured workspace, the first that fits within rounding."""
    if workspace_bytes <= 0:
        return WorkspaceLabel(0, 0.0)
    slack = max(SLACK_BYTES, round(TOLERANCE * workspace_bytes))
    options = candidates(work)
    nearest = min(range(1, len(options)), key=lambda c: (abs(options[c] - workspace_bytes), c))
    if options[nearest] > 0 and abs(options[nearest] - workspace_bytes) <= slack:
        return WorkspaceLabel(nearest, 0.0)
    return WorkspaceLabel(RATIO, float(np.log(workspace_bytes / reference_bytes(work))))


def workspace_bytes(work: Workload, index: int, log_ratio: float) -> int:
    """Bytes that a class (and, for `ratio`, its log ratio) means for this operator."""
    if index == RATIO:
        return round(reference_bytes(work) * float(np.exp(min(4.0, log_ratio))))
    return candidates(work)[index]


def reference_bytes(work: Workload) -> int:
    """Bytes that a ratio is told of: everything that the operator touches, one element at least."""
    return max(work.bytes_in + work.bytes_out + work.bytes_weight, DTYPE_BYTES.get(work.dtype, 4))
