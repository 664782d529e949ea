"""Workspaces that follow from a rule: of every kind where nothing better is known, of some kinds always."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dippm.attention import KIND
from dippm.case import Case, Mode
from dippm.graph import DTYPE_BYTES, ModelGraph, Operator
from dippm.network.attention import attention_workspace
from dippm.network.recurrent import GATES, recurrent_workspace
from dippm.network.workload import Workload
from dippm.products import product_copies
from dippm.replay.saved import require_gradients
from dippm.replay.workspace import workspace_bytes
from dippm.strides import Strides, is_contiguous

ALWAYS = frozenset({KIND, *GATES})
"""Kinds whose rule is taken unless this very operator was measured: which kernel PyTorch picks for attention and which
buffers cuDNN asks for are no matter of statistics."""
_DENSE_FIRST = frozenset({"layer_norm", "softmax", "log_softmax"})
"""Kinds whose kernels read dense rows alone: any other operand is copied first (`cuda/layer_norm_kernel.cu`,
`cuda/SoftMax.cu` in `aten/src/ATen/native`)."""


_CAST_INSIDE = frozenset({("float16", "float32"), *((dtype, dtype) for dtype in DTYPE_BYTES)})


@dataclass(frozen=True, slots=True)
class Rules:
    """What the rules say of each operator of a graph; sequences as long as `graph.operators`, in their order."""

    workspaces: tuple[int, ...]
    """Bytes; by `dippm.replay.workspace` where there is no better rule here."""
    exact: tuple[bool, ...]
    """Whether that follows from shapes and strides alone. It then stands over what was measured of an operator with
    the same signature: a signature does not tell strides."""
    copied: tuple[int, ...]
    """Bytes of operands that a product copies before it computes: kernels of their own, whatever becomes of them."""


def workspace_rules(graph: ModelGraph, case: Case, work: Sequence[Workload], strides: Sequence[Strides]) -> Rules:
    """What the rules say of each operator of a graph that is cast to the case's precision."""
    workspaces = list(workspace_bytes(graph))
    exact, copied = [False] * len(workspaces), [0] * len(workspaces)
    needs = require_gradients(graph) if case.mode is Mode.AUTOGRAD else None
    for index, (operator, w) in enumerate(zip(graph.operators, work, strict=True)):
        if operator.kind == KIND and len(operator.inputs) >= 3:
            workspaces[index] = attention_workspace(graph, operator, strides, case.runtime)
        elif operator.kind in GATES:
            workspaces[index] = recurrent_workspace(graph, operator, w, case.mode)
        elif operator.kind in _DENSE_FIRST and operator.target.startswith("aten."):
            exact[index] = True
            copied[index] = _dense_first(graph, operator, strides)
            # Statistics are saved for the backward pass; they stay, and are no workspace.
            kept = 0 if case.mode is Mode.AUTOGRAD else _statistics(graph, operator)
            workspaces[index] = copied[index] + kept
        elif (copies := product_copies(graph, operator, strides, needs)) is not None:
            width = DTYPE_BYTES[w.dtype]
            copied[index], exact[index] = copies.total * width, True
            # What `reshape` made is saved for the backward pass; it stays, and is no workspace.
            workspaces[index] = (copies.dense if case.mode is Mode.AUTOGRAD else copies.total) * width
    return Rules(tuple(workspaces), tuple(exact), tuple(copied))


def _dense_first(graph: ModelGraph, operator: Operator, strides: Sequence[Strides]) -> int:
    """Bytes of the operand's copy; 0 where it is contiguous.

    A softmax that is asked for another dtype casts its operand first, but for float16 to float32, which its kernel does
    (`softmax`, `aten/src/ATen/native/SoftMax.cpp`).
    """
    first = operator.inputs[0]
    spec = graph.values[first].spec
    asked = operator.attributes.get("dtype") or spec.dtype
    if isinstance(asked, str) and asked in DTYPE_BYTES and (spec.dtype, asked) not in _CAST_INSIDE:
        return spec.numel * DTYPE_BYTES[asked]
    return 0 if is_contiguous(spec.shape, strides[first]) else spec.nbytes


def _statistics(graph: ModelGraph, operator: Operator) -> int:
    """Bytes of mean and reciprocal deviation of each row of a layer norm, in float32."""
    if operator.kind != "layer_norm":
        return 0
    spec = graph.values[operator.inputs[0]].spec
    normalised = operator.attributes.get("normalized_shape")
    width = math.prod(normalised) if isinstance(normalised, tuple) else spec.shape[-1] if spec.shape else 1
    return 8 * (spec.numel // max(1, width))
