"""Strides of every value, as PyTorch would have them: they decide which kernels copy before they compute.

A permuted tensor makes `layer_norm` and `reshape` copy, a channels-last one spares a convolution its conversion. The
graph holds shapes only, so strides are followed from operator to operator: views by their arithmetic, element-wise
operators and pooling keep the order of dimensions that they are given, everything else puts out a contiguous tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from dippm.graph import Attribute, ModelGraph, Operator
from dippm.vocabulary import CONVOLUTIONS

Strides = tuple[int, ...]

_KEEPING = frozenset({
    "batch_norm", "relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "gelu", "silu", "sigmoid", "hardsigmoid",
    "hardswish", "hardtanh", "tanh", "softplus", "mish", "dropout", "add", "subtract", "multiply", "divide", "power",
    "maximum", "minimum", "addcmul", "exp", "log", "sqrt", "rsqrt", "abs", "neg", "sin", "cos", "erf", "clamp", "round",
    "floor", "reciprocal", "square", "bitwise", "compare", "where", "masked_fill", "cast", "identity", "full", "roll",
})  # fmt: skip
"""Kinds that compute element by element, or whose result is made like their first operand."""
_LIKE_FIRST = frozenset({"batch_norm", "full", "roll"})
"""Those of them that look at their first operand alone."""
_CHANNELS_LAST = CONVOLUTIONS | {
    "concat", "pad", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "interpolate"
}  # fmt: skip
"""Kinds that know two orders: channels last where their pictures suggest it, else contiguous."""

_RECURRENT = frozenset({"lstm", "gru", "rnn"})


def strides_of(graph: ModelGraph) -> list[Strides]:
    """Strides (elements per dimension) of every value of the graph, by id."""
    found = [contiguous(value.spec.shape) for value in graph.values]
    for operator in graph.operators:
        for position, output in enumerate(operator.outputs):
            found[output] = _result(graph, operator, position, output, found)
    return found


@lru_cache(maxsize=4096)
def contiguous(shape: tuple[int, ...]) -> Strides:
    """Strides of a dense tensor in the order of its dimensions."""
    out, step = [], 1
    for size in reversed(shape):
        out.append(step)
        step *= max(1, size)
    return tuple(reversed(out))


def is_contiguous(shape: tuple[int, ...], strides: Strides) -> bool:
    """As PyTorch tells it: dimensions of size 1 do not count."""
    dense = contiguous(shape)
    return strides == dense or all(s == d or n == 1 for n, s, d in zip(shape, strides, dense, strict=True))


def is_channels_last(shape: Sequence[int], strides: Strides) -> bool:
    """Whether a batch of pictures suggests to have its channels innermost; a part of such a batch does too.

    `is_channels_last_strides_2d_s4` (`c10/core/MemoryFormat.h`); nothing is suggested where orders cannot be told
    apart.
    """
    if len(shape) != 4 or not strides[1]:
        return False
    least = 0
    for dim in (1, 3, 2, 0):
        if strides[dim] < least or not shape[dim] or (dim == 0 and least == strides[1]):
            return False
        least = strides[dim] * max(1, shape[dim])
    return True


def _result(graph: ModelGraph, operator: Operator, position: int, output: int, found: list[Strides]) -> Strides:
    shape = graph.values[output].spec.shape
    plain = contiguous(shape)
    if graph.values[output].alias_of is not None and operator.inputs:
        source = operator.inputs[0]
        given = graph.values[source].spec.shape
        return view(operator.kind, operator.attributes, given, found[source], shape) or plain
    if operator.kind in _CHANNELS_LAST and len(shape) == 4 and not position:
        pictures = operator.inputs if operator.kind == "concat" else operator.inputs[:1]
        last = pictures and all(is_channels_last(graph.values[i].spec.shape, found[i]) for i in pictures)
        return in_order(shape, (0, 2, 3, 1)) if last else plain
    if operator.kind in _RECURRENT and not position and len(shape) == 3 and operator.attributes.get("batch_first"):
        return in_order(shape, (1, 0, 2))  # computed step by step, and turned
    if operator.kind in _KEEPING and shape:
        operands = [(graph.values[i].spec.shape, found[i]) for i in operator.inputs]
        if operator.kind in _LIKE_FIRST:
            operands = operands[:1]
        return iterated(shape, [o for o in operands if o[0] and len(o[0]) <= len(shape)])
    return plain


def iterated(shape: tuple[int, ...], operands: Sequence[tuple[tuple[int, ...], Strides]]) -> Strides:
    """Strides of what an element-wise kernel puts out (`reorder_dimensions`, `aten/src/ATen/TensorIterator.cpp`).

    Dimensions are sorted by their strides in the first operand that tells two of them apart; broadcast ones tell
    nothing.
    """
    if all(given == shape and is_contiguous(given, strides) for given, strides in operands):
        return contiguous(shape)
    steps = [expanded(given, strides, shape) for given, strides in operands]
    order = list(range(len(shape)))[::-1]  # innermost first
    for start in range(1, len(order)):
        moving = start
        for place in range(start - 1, -1, -1):
            compared = _compared(shape, steps, order[place], order[moving])
            if compared < 0:
                break
            if compared > 0:
                order[place], order[moving] = order[moving], order[place]
                moving = place
    return in_order(shape, order[::-1])


def _compared(shape: Sequence[int], steps: Sequence[Strides], inner: int, outer: int) -> int:
    """1 where two dimensions are to change places, -1 where they lie right, 0 where no operand tells."""
    for strides in steps:
        a, b = strides[inner], strides[outer]
        if a and b:
            if a != b:
                return -1 if a < b else 1
            if shape[inner] > shape[outer]:
                return 1
    return 0


def in_order(shape: Sequence[int], order: Sequence[int]) -> Strides:
    """Dense strides with the dimensions laid out in an order, outermost first."""
    out, step = [0] * len(shape), 1
    for dim in reversed(order):
        out[dim] = step
        step *= max(1, shape[dim])
    return tuple(out)


def view(
    kind: str, named: Mapping[str, Attribute], given: Sequence[int], strides: Strides, shape: Sequence[int]
) -> Strides | None:
    """Strides of a view, None where this does not know them."""
    rank = len(given)
    if kind == "permute" and isinstance(dims := named.get("dims"), tuple) and len(dims) == rank:
        return tuple(strides[d] for d in dims)
    if kind == "transpose" and rank >= 2:
        a, b = (_dim(named.get(n), rank, default) for n, default in (("dim0", -2), ("dim1", -1)))
        swapped = list(strides)
        swapped[a], swapped[b] = swapped[b], swapped[a]
        return tuple(swapped)
    if kind in ("select", "split") and rank == len(shape) + 1:  # `unbind` is a split into single slices
        dim = _dim(named.get("dim"), rank, 0)
        return strides[:dim] + strides[dim + 1 :]
    if kind == "expand":
        return expanded(given, strides, shape)
    if kind == "unfold" and rank + 1 == len(shape):
        dim, step = _dim(named.get("dimension"), rank, -1), named.get("step", 1)
        moved = (s * step if d == dim and isinstance(step, int) else s for d, s in enumerate(strides))
        return (*moved, strides[dim])
    if kind == "slice" and rank == len(shape):
        step = named.get("step", 1)
        dim = _dim(named.get("dim"), rank, 0)
        return tuple(s * step if d == dim and isinstance(step, int) else s for d, s in enumerate(strides))
    if rank == len(shape) and (tuple(given) == tuple(shape) or kind == "split"):
        return strides
    return reshaped(given, strides, shape)


def _dim(value: Attribute, rank: int, default: int) -> int:
    dim = value if isinstance(value, int) else default
    return dim % rank


def expanded(given: Sequence[int], strides: Strides, shape: Sequence[int]) -> Strides:
    lead = len(shape) - len(given)
    return tuple(0 if d < lead or given[d - lead] != size else strides[d - lead] for d, size in enumerate(shape))


def reshaped(given: Sequence[int], strides: Strides, shape: Sequence[int]) -> Strides | None:
    """ATen's computeStride: runs of dimensions that lie densely are split anew; None where that is no view."""
    out = [0] * len(shape)
    place = len(shape) - 1
    run, base = 1, strides[-1] if strides else 1
    for dim in range(len(given) - 1, -1, -1):
        run *= given[dim]
        if dim == 0 or (given[dim - 1] != 1 and strides[dim - 1] != run * base):
            filled = 1
            while place >= 0 and (filled < run or shape[place] == 1):
                out[place] = filled * base
                filled *= shape[place]
                place -= 1
            if filled != run:
                return None
            if dim:
                run, base = 1, strides[dim - 1]
    return tuple(out) if place < 0 else None
