"""Workspace of an operator as a class: a sum of its own tensors, or else a ratio to them.

Measured workspaces are, nearly always, one of a few sums (nothing, everything it touches, inputs and outputs, ...), so
the network picks a class; the last class is a free ratio, regressed in log space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dippm.graph import DTYPE_BYTES
from dippm.network.workload import Workload
from dippm.vocabulary import CONVOLUTIONS

_EXACT: tuple[str, ...] = (
    "none", "in", "out", "weight", "in+out", "in+weight", "out+weight", "in+out+weight", "2(in+out)", "in+2out",
    "int64 per output", "2 float32 per row", "float32 per row", "in+2 float32 per row", "float32 per query",
    "padded to 8", "padded to 4", "padded in to 8+weight", "padded in to 4+weight", "padded to 16", "padded to 32",
    "padded to 64", "2 in to 16+weight", "2 in to 8+out+weight", "2 in to 64", "3 in to 16", "3 out to 16",
    "3 out to 64", "in+3 out to 64", "2 out to 64+2 weight", "in+2 out to 64+2 weight", "2 weight",
)  # fmt: skip
_BUFFERED: tuple[str, ...] = (
    "buffer", "in+buffer", "padded to 8, no weight+buffer", "out to 4+weight+buffer", "padded to 64+buffer",
)  # fmt: skip
CLASSES: tuple[str, ...] = (*_EXACT, *_BUFFERED, "ratio")
"""Sums of input, output and weight bytes; per row of a normalisation; per query of an attention; the sums again with
the channels of a group padded to a multiple, as cuDNN's tensor-core kernels want them; and some of these with a buffer
for partial sums beside them, whose size (1 to 11 MiB) is not told. What is left is a ratio: 1.7 % of convolutions."""
RATIO = CLASSES.index("ratio")
FIRST_BUFFERED = len(_EXACT)
BUFFER_BYTES, BUFFER_SLACK = 6 * 2**20, 5 * 2**20
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
    i16, o16, w16 = _padded(work, 16)
    i32, o32, w32 = _padded(work, 32)
    i64, o64, w64 = _padded(work, 64)
    buffer = BUFFER_BYTES
    return (
        0, i, o, w, i + o, i + w, o + w, i + o + w, 2 * (i + o), i + 2 * o,
        8 * work.elements_out, 8 * rows, 4 * rows, i + 8 * rows, 4 * work.products * work.m,
        i8 + o8 + w8, i4 + o4 + w4, i8 + w8, i4 + w4, i16 + o16 + w16, i32 + o32 + w32,
        i64 + o64 + w64, 2 * i16 + w16, 2 * i8 + o8 + w8, 2 * i64, 3 * i16, 3 * o16,
        3 * o64, i64 + 3 * o64, 2 * o64 + 2 * w64, i64 + 2 * o64 + 2 * w64, 2 * w,
        buffer, i + buffer, i8 + o8 + buffer, o4 + w4 + buffer, i64 + o64 + w64 + buffer,
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
    for span, near in ((range(1, FIRST_BUFFERED), slack), (_buffered_of(work), BUFFER_SLACK)):
        nearest = min(span, key=lambda c: (abs(options[c] - workspace_bytes), c), default=0)
        if options[nearest] > 0 and abs(options[nearest] - workspace_bytes) <= near:
            return WorkspaceLabel(nearest, 0.0)
    return WorkspaceLabel(RATIO, float(np.log(workspace_bytes / reference_bytes(work))))


def _buffered_of(work: Workload) -> range:
    """Classes with a buffer: only convolutions have one."""
    return range(FIRST_BUFFERED, RATIO) if work.kind in CONVOLUTIONS else range(0)


def workspace_bytes(work: Workload, index: int, log_ratio: float) -> int:
    """Bytes that a class (and, for `ratio`, its log ratio) means for this operator."""
    if index == RATIO:
        return round(reference_bytes(work) * float(np.exp(min(4.0, log_ratio))))
    return candidates(work)[index]


def reference_bytes(work: Workload) -> int:
    """Bytes that a ratio is told of: everything that the operator touches, one element at least."""
    return max(work.bytes_in + work.bytes_out + work.bytes_weight, DTYPE_BYTES.get(work.dtype, 4))
