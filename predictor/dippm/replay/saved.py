"""What the autograd graph keeps: tensors that an operator saves for its backward pass.

After `tools/autograd/derivatives.yaml` of PyTorch: a formula that reads `self`, `weight` or `result` saves it, if
something that it gives the gradient of requires one. With gradients on and one graph alive what is saved lives until
the output is released.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dippm.graph import DTYPE_BYTES, FLOAT_DTYPES, ModelGraph, Operator, ValueKind
from dippm.products import product_copies
from dippm.strides import strides_of

_NOTHING = frozenset(
    {"add", "subtract", "mean", "sum", "reshape", "transpose", "permute", "expand", "slice", "select", "split",
     "squeeze", "unsqueeze", "flatten", "identity", "dropout", "concat", "stack", "pad", "copy", "cast", "roll",
     "repeat", "flip", "unfold", "pixel_shuffle", "neg", "round", "floor", "compare", "bitwise", "argmax", "full",
     "arange", "one_hot", "nonzero", "tril", "any", "all", "cumsum", "floor_divide", "interpolate"}
)  # fmt: skip
"""Linear in their tensors, or not differentiable: shapes are enough."""
_RESULT = frozenset({"relu", "sigmoid", "tanh", "softmax", "log_softmax", "exp", "sqrt", "rsqrt", "reciprocal", "selu"})
"""Save what they put out."""
_BOTH = frozenset({"scaled_dot_product_attention", "lstm", "gru", "rnn", "norm", "prod", "elu"})
"""Save what they read and what they put out."""
_EACH_OTHER = frozenset({"multiply", "matmul", "batch_matmul", "einsum", "linear"})
"""Products: a factor is saved if another one requires a gradient."""
_CONDITIONS = frozenset({"where", "masked_fill"})
"""Save the boolean tensor alone."""
_INDICES = frozenset({"embedding", "index", "gather", "scatter"})
"""Save what is no floating-point tensor."""


_CLONED_IN_PLACE = frozenset(
    {"silu", "hardswish", "relu6", "hardtanh", "hardsigmoid", "mish", "clamp", "gelu", "square"}
)
"""Kinds whose formula reads the input: called in place, they first save a copy of it."""


def saved_for_backward(graph: ModelGraph) -> tuple[int, ...]:
    """Ids of the values that the autograd graph of one forward pass keeps alive, in order, repeated at most once.

    A kind without a rule saves its inputs, which is what most formulas do.
    """
    needs = require_gradients(graph)
    copied = _copied_factors(graph, needs)
    saved = (
        value
        for operator, copies in zip(graph.operators, copied, strict=True)
        for value in _saved(graph, operator, needs)
        if value not in copies
    )
    return tuple(dict.fromkeys(saved))


def kept_extras(graph: ModelGraph) -> tuple[int, ...]:
    """Bytes that each operator makes for its backward pass alone: indices, statistics, log-sum-exps, copies."""
    needs = require_gradients(graph)
    return tuple(
        _extra(graph, operator) + sum(copies.values()) if any(needs[i] for i in operator.outputs) else 0
        for operator, copies in zip(graph.operators, _copied_factors(graph, needs), strict=True)
    )


def _copied_factors(graph: ModelGraph, needs: Sequence[bool]) -> list[dict[int, int]]:
    """Per operator the factors of which it saves a contiguous copy instead, and the copy's bytes.

    A product multiplies the copies that `dippm.products` tells of, so it is they that its formula reads.
    """
    strides = strides_of(graph)
    found: list[dict[int, int]] = []
    for operator in graph.operators:
        copies = product_copies(graph, operator, strides, needs)
        found.append({})
        if copies is not None and copies.first + copies.second:
            first, second = operator.inputs[:2]
            width = DTYPE_BYTES[graph.values[operator.outputs[0]].spec.dtype]
            found[-1] = {
                factor: elements * width
                for factor, other, elements in ((first, second, copies.first), (second, first, copies.second))
                if elements and needs[other]
            }
    return found


def require_gradients(graph: ModelGraph) -> list[bool]:
    """Per value whether it requires a gradient: weights do, and what is computed from them in floating point."""
    needs = [v.kind is ValueKind.PARAMETER and v.spec.dtype in FLOAT_DTYPES for v in graph.values]
    for operator in graph.operators:
        if any(needs[i] for i in operator.inputs):
            for i in operator.outputs:
                needs[i] = graph.values[i].spec.dtype in FLOAT_DTYPES
    return needs


def _saved(graph: ModelGraph, operator: Operator, needs: list[bool]) -> Iterator[int]:
    kind = operator.kind
    if kind in _NOTHING or not any(needs[i] for i in operator.outputs) or _clones(graph, operator):
        return
    if kind in _CONDITIONS or kind in _INDICES:
        yield from (i for i in operator.inputs if graph.values[i].spec.dtype not in FLOAT_DTYPES)
    elif kind in _EACH_OTHER:
        factors = operator.inputs[:2] if kind == "linear" else operator.inputs
        for position, factor in enumerate(factors):
            if any(needs[other] for place, other in enumerate(factors) if place != position):
                yield factor
    elif kind not in _RESULT:
        yield from operator.inputs
    if kind in _RESULT or kind in _BOTH:
        yield from operator.outputs


def _extra(graph: ModelGraph, operator: Operator) -> int:
    given = graph.values[operator.inputs[0]].spec
    put_out = graph.values[operator.outputs[0]].spec
    match operator.kind:
        case "max_pool1d" | "max_pool2d" | "max_pool3d" | "adaptive_max_pool2d":
            return 8 * put_out.numel if len(operator.outputs) == 1 else 0
        case "layer_norm":
            normalised = operator.attributes.get("normalized_shape")
            width = math.prod(normalised) if isinstance(normalised, tuple) else given.shape[-1]
            return 8 * (given.numel // max(1, width))
        case "group_norm":
            groups = operator.attributes.get("num_groups")
            return 8 * given.shape[0] * (groups if isinstance(groups, int) else 1)
        case "scaled_dot_product_attention":
            return 4 * math.prod(given.shape[:-1])
        case _:
            return given.nbytes if _clones(graph, operator) else 0


def _clones(graph: ModelGraph, operator: Operator) -> bool:
    """Whether the operator saves a copy of the input that it then overwrites."""
    if operator.kind not in _CLONED_IN_PLACE:
        return False
    return graph.storage(operator.outputs[0]) == graph.storage(operator.inputs[0])
