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
    "none", "in", "out", "weight", "in+out", "in+weight", "out+weight", "in+out+weight", "2(in+out)", "in+2out",
    "int64 per output", "2 float32 per row", "float32 per row", "in+2 float32 per row", "float32 per query",
    "padded to 8", "padded to 4", "padded in to 8+weight", "padded in to 4+weight", "ratio",
)  # fmt: skip
"""Sums of input, output and weight bytes; per row of a normalisation; per query of an attention; the sums again with
channels padded to a multiple of 8 or 4, as cuDNN's tensor-core kernels want them. Only ever appended."""
RATIO = CLASSES.index("ratio")
TOLERANCE = 0.003
SLACK_BYTES = 4096
"""Rounding of several pieces to 512 B, and alignment inside a workspace."""
SMALL_BYTES = 65536
SMALL_SHARE = 0.002
"""A workspace under both (or under 4 KiB) is none: it decides no peak."""


@dataclass(frozen=True, slots=True)
class WorkspaceLabel:
    """Class index and, for the class `ratio`, log(bytes / (in + out + weight)); 0 otherwise."""

    index: int
    log_ratio: float


def candidates(work: Workload) -> tuple[int, ...]:
    """Bytes that each class but the last would mean for this operator."""
    i, o, w = work.bytes_in, work.bytes_out, work.bytes_weight
    rows = work.elements_out // max(1, work.last)
    i8, o8, w8 = _padded(work, 8)
    i4, o4, w4 = _padded(work, 4)
    return (
        0, i, o, w, i + o, i + w, o + w, i + o + w, 2 * (i + o), i + 2 * o,
        8 * work.elements_out, 8 * rows, 4 * rows, i + 8 * rows, 4 * work.products * work.m,
        i8 + o8 + w8, i4 + o4 + w4, i8 + w8, i4 + w4,
    )  # fmt: skip


def _padded(work: Workload, multiple: int) -> tuple[int, int, int]:
    """Bytes of input, output and weight with channels rounded up to a multiple."""
    groups = work.groups
    c, k = max(1, work.channels_in // groups), max(1, work.channels_out // groups)
    more_c, more_k = -(-c // multiple) * multiple / c, -(-k // multiple) * multiple / k
    return (
        round(work.bytes_in * more_c),
        round(work.bytes_out * more_k),
        round(work.bytes_weight * more_c * more_k),
    )


def classify(work: Workload, workspace_bytes: int) -> WorkspaceLabel:
    """The class that explains a measured workspace within rounding, the nearest (of equals the first)."""
    if workspace_bytes < SLACK_BYTES or workspace_bytes < min(SMALL_BYTES, SMALL_SHARE * reference_bytes(work)):
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
