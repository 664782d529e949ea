"""ONNX operators that reduce, choose or order elements, as ATen calls."""

from __future__ import annotations

from typing import Any

import torch

from dippm.frontend.onnx.calls import Converter, Emitted, Given
from dippm.frontend.onnx.layers import global_average

aten = torch.ops.aten


def _gather(g: Given) -> Emitted:
    axis = int(g.attribute("axis", 0)) % max(1, g.rank)
    index, weights = g.constant(1), g.calls.static.weights
    if index is not None and index.ndim == 0:
        return g.call(aten.select.int, g.x(), axis, int(index))
    if axis == 0 and g.rank == 2 and g.node.input[0] in weights:
        return g.call(aten.embedding.default, g.x(), g.x(1))
    if len(g.spec(1).shape) == 1 and axis:
        return g.call(aten.index_select.default, g.x(), axis, g.x(1))
    return g.call(aten.index.Tensor, g.x(), [None] * axis + [g.x(1)])


def _reduce(target: Any, *before: Any) -> Converter:
    def convert(g: Given) -> Emitted:
        axes = g.numbers(1, "axes")
        if not axes:
            if g.attribute("noop_with_empty_axes", 0):
                return g.x()
            axes = list(range(g.rank))
        return g.call(target, g.x(), *before, axes, bool(g.attribute("keepdims", 1)))

    return convert


def _mean(g: Given) -> Emitted:
    if g.step.kind.startswith("adaptive_avg_pool"):
        return global_average(g)
    return _reduce(aten.mean.dim)(g)


def _extreme_index(target: Any) -> Converter:
    return lambda g: g.call(target, g.x(), int(g.attribute("axis", 0)), bool(g.attribute("keepdims", 1)))


def _top(g: Given) -> Emitted:
    count = g.numbers(1, "k")
    if not count:
        return None
    flags = bool(g.attribute("largest", 1)), bool(g.attribute("sorted", 1))
    both = g.call(aten.topk.default, g.x(), count[0], int(g.attribute("axis", -1)), *flags)
    return [g.calls.part(both, 0), g.calls.part(both, 1)][: len(g.step.outputs)]


def _cumulated(g: Given) -> Emitted:
    axis = g.numbers(1)
    if axis is None or g.attribute("exclusive", 0) or g.attribute("reverse", 0):
        return None
    return g.call(aten.cumsum.default, g.x(), axis[0])


def _triangle(g: Given) -> Emitted:
    offset = g.numbers(1) or [0]
    return g.call(aten.triu.default if g.attribute("upper", 1) else aten.tril.default, g.x(), offset[0])


def _roll(g: Given) -> Emitted:
    named = g.step.attributes
    return g.call(aten.roll.default, g.calls.read(g.step.inputs[0]), list(named["shifts"]), list(named["dims"]))  # type: ignore[arg-type]


def _clone(g: Given) -> Emitted:
    """A call that was left away: a copy of what does not lie densely, a dropout of what does."""
    x = g.calls.read(g.step.inputs[0])
    if g.calls.value(x).is_contiguous():
        return g.call(aten.dropout.default, x, 0.0, False)
    return g.call(aten.clone.default, x, memory_format=torch.contiguous_format)


def _unbind(g: Given) -> Emitted:
    dim = int(g.step.attributes["dim"])  # type: ignore[arg-type]
    x = g.calls.read(g.step.inputs[0])
    many = g.call(aten.unbind.int, x, dim) if dim else g.call(aten.unbind.int, x)
    return [g.calls.part(many, i) for i in range(len(g.step.outputs))]


REDUCTIONS: dict[str, Converter] = {
    "roll": _roll, "clone": _clone, "unbind": _unbind, "Gather": _gather,
    "GatherElements": lambda g: g.call(aten.gather.default, g.x(), int(g.attribute("axis", 0)), g.x(1)),
    "ReduceMean": _mean, "ReduceSum": _reduce(aten.sum.dim_IntList), "ReduceMax": _reduce(aten.amax.default),
    "ReduceMin": _reduce(aten.amin.default), "ReduceL2": _reduce(aten.linalg_vector_norm.default, 2),
    "ReduceL1": _reduce(aten.linalg_vector_norm.default, 1), "ReduceLogSumExp": _reduce(aten.logsumexp.default),
    "ArgMax": _extreme_index(aten.argmax.default), "ArgMin": _extreme_index(aten.argmin.default), "TopK": _top,
    "CumSum": _cumulated, "Trilu": _triangle,
}  # fmt: skip
"""By ONNX operator, or by the kind of what was put together of several (in lower case)."""
