"""What the autograd graph keeps: tensors that an operator saves for its backward pass.

After `tools/autograd/derivatives.yaml` of PyTorch: a formula that reads `self`, `weight` or `result` saves it, if
something that it gives the gradient of requires one. With gradients on and one graph alive what is saved lives until
the output is released.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dippm.attention import HALF, AttentionCall, attention_call
from dippm.case import Runtime
from dippm.graph import DTYPE_BYTES, FLOAT_DTYPES, ModelGraph, Operator, ValueKind
from dippm.products import Operand, matmul_copies, product_copies
from dippm.strides import Strides, contiguous, is_contiguous, strides_of

_NOTHING = frozenset(
    {"add", "subtract", "mean", "sum", "reshape", "transpose", "permute", "expand", "slice", "select", "split",
     "squeeze", "unsqueeze", "flatten", "identity", "dropout", "concat", "stack", "pad", "copy", "cast", "roll",
     "repeat", "flip", "unfold", "pixel_shuffle", "neg", "round", "floor", "compare", "bitwise", "argmax", "full",
     "arange", "one_hot", "nonzero", "tril", "any", "all", "cumsum", "floor_divide", "interpolate"}
)  # fmt: skip
"""Linear in their tensors, or not differentiable: shapes are enough."""
_RESULT = frozenset({"relu", "sigmoid", "tanh", "softmax", "log_softmax", "exp", "sqrt", "rsqrt", "reciprocal", "selu"})
"""Save what they put out."""
_BOTH = frozenset({"scaled_dot_product_attention", "lstm", "gru", "rnn", "norm", "prod"})
"""Save what they read and what they put out."""
_EACH_OTHER = frozenset({"multiply", "matmul", "batch_matmul", "einsum", "linear"})
"""Products: a factor is saved if another one requires a gradient; a factor that is a number saves nothing."""
_HALVES = "aten.glu."
"""A product too, but of the halves of its only operand."""
_CHOOSING = frozenset({"max", "min", "topk", "sort"})
"""With a dimension they put out values and the indices of these, and save the indices."""
_SUM_OF_EXPONENTIALS = "aten.logsumexp."
_CONDITIONS = frozenset({"where", "masked_fill"})
"""Save the boolean tensor alone."""
_INDICES = frozenset({"embedding", "index", "gather", "scatter"})
"""Save what is no floating-point tensor."""


_CLONED_IN_PLACE = frozenset(
    {"silu", "hardswish", "relu6", "hardtanh", "hardsigmoid", "mish", "clamp", "gelu", "square"}
)
"""Kinds whose formula reads the input: called in place, they first save a copy of it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the autograd graph of one forward pass keeps alive."""

    values: tuple[int, ...]
    """Ids of the values, in order, each once."""
    extras: tuple[int, ...]
    """Per operator: bytes that it makes for its backward pass alone (indices, statistics, log-sum-exps, copies)."""


@dataclass(frozen=True, slots=True)
class _Copies:
    """Copies that an operator saves, and the values that it saves no longer for that."""

    of: frozenset[int] = frozenset()
    nbytes: int = 0


def kept_for_backward(graph: ModelGraph, runtime: Runtime) -> Kept:
    """What is saved for backward in one forward pass of `graph`.

    A kind without a rule saves its inputs, which is what most formulas do.
    """
    needs, strides, leads = require_gradients(graph), strides_of(graph), _lead_to_outputs(graph)
    values: dict[int, None] = {}
    extras: list[int] = []
    for operator in graph.operators:
        if not any(needs[i] and leads[i] for i in operator.outputs):
            extras.append(0)
            continue
        copies = _copies(graph, operator, strides, needs, runtime)
        values |= {value: None for value in _saved(graph, operator, needs) if value not in copies.of}
        extras.append(_extra(graph, operator, copies) + copies.nbytes)
    return Kept(tuple(values), tuple(extras))


def _lead_to_outputs(graph: ModelGraph) -> list[bool]:
    """Per value whether an output of the graph is computed from it: what is not goes, and its backward node with it."""
    leads = [False] * len(graph.values)
    for value in graph.outputs:
        leads[value] = True
    for operator in reversed(graph.operators):
        if any(leads[i] for i in operator.outputs):
            for i in operator.inputs:
                leads[i] = True
    return leads


def _copies(
    graph: ModelGraph, operator: Operator, strides: Sequence[Strides], needs: Sequence[bool], runtime: Runtime
) -> _Copies:
    match operator.kind:
        case "scaled_dot_product_attention":
            call = attention_call(graph, operator, strides, runtime)
            return _mathematical(call, operator, strides) if call.mathematical else _padded(call, operator)
        case "group_norm":  # at::group_norm makes its input contiguous, on a GPU also where channels come last
            given = graph.values[operator.inputs[0]].spec
            dense = is_contiguous(given.shape, strides[operator.inputs[0]])
            return _Copies() if dense else _Copies(frozenset(operator.inputs[:1]), given.nbytes)
        case "multiply" | "divide" if _is_in_place(graph, operator) and any(needs[i] for i in operator.inputs[1:]):
            return _Copies(frozenset(operator.inputs[:1]), graph.values[operator.inputs[0]].spec.nbytes)
        case _:
            return _copied_factors(graph, operator, strides, needs)


def _mathematical(call: AttentionCall, operator: Operator, strides: Sequence[Strides]) -> _Copies:
    """Attention in plain products (`_scaled_dot_product_attention_math`): it saves the scaled query and key, the
    softmax and the value, in float32 where half precision came in; neither its operands nor its output.
    """
    query, key, value = operator.inputs[:3]
    width = 4 if call.query.dtype in HALF else DTYPE_BYTES[call.query.dtype]
    rows = (*call.query.shape[:-1], call.key.shape[-2])
    copied = (
        call.query.dtype in HALF
        or call.grouped
        or matmul_copies(Operand(rows, contiguous(rows)), Operand(call.value.shape, strides[value])).second > 0
    )
    elements = call.query.numel + call.key.numel + call.scores + (call.value.numel if copied else 0)
    gone = {query, key, *operator.outputs, *operator.inputs[3:]} | ({value} if copied else set())
    return _Copies(frozenset(gone), width * elements)


def _padded(call: AttentionCall, operator: Operator) -> _Copies:
    """Flash attention pads heads whose width is no multiple of 8 (`pad_last_dim`): it saves the padded operands, and
    its output is a part of a padded one."""
    width = call.query.shape[-1]
    padded = -(-width // 8) * 8
    if call.query.dtype not in HALF or call.mask is not None or padded == width:
        return _Copies()
    operands = call.query.nbytes + call.key.nbytes + call.value.nbytes
    return _Copies(frozenset(operator.inputs), (operands * padded + call.query.nbytes * (padded - width)) // width)


def _copied_factors(
    graph: ModelGraph, operator: Operator, strides: Sequence[Strides], needs: Sequence[bool]
) -> _Copies:
    """The factors of which a contiguous copy is saved instead: a product multiplies the copies that `dippm.products`
    tells of, so it is they that its formula reads."""
    copies = product_copies(graph, operator, strides, needs)
    if copies is None or not copies.first + copies.second:
        return _Copies()
    first, second = operator.inputs[:2]
    width = DTYPE_BYTES[graph.values[operator.outputs[0]].spec.dtype]
    found = {
        factor: elements * width
        for factor, other, elements in ((first, second, copies.first), (second, first, copies.second))
        if elements and needs[other]
    }
    return _Copies(frozenset(found), sum(found.values()))


def require_gradients(graph: ModelGraph) -> list[bool]:
    """Per value whether it requires a gradient: weights do, buffers do not, what is computed in floating point from
    something that does, does."""
    needs = [v.kind is ValueKind.PARAMETER and v.spec.dtype in FLOAT_DTYPES for v in graph.values]
    for operator in graph.operators:
        if any(needs[i] for i in operator.inputs):
            for i in operator.outputs:
                needs[i] = graph.values[i].spec.dtype in FLOAT_DTYPES
    return needs


def _saved(graph: ModelGraph, operator: Operator, needs: list[bool]) -> Iterator[int]:
    kind = operator.kind
    if (kind in _NOTHING and not _is_exception(operator)) or _clones(graph, operator):
        return
    if kind in _CHOOSING and len(operator.outputs) > 1:
        yield operator.outputs[1]
    elif kind == "adaptive_avg_pool2d" and graph.values[operator.outputs[0]].spec.shape[-2:] == (1, 1):
        return  # a mean
    elif kind == "divide":
        yield from operator.inputs[1:] if any(needs[i] for i in operator.inputs) else ()
        yield from operator.inputs[:1] if any(needs[i] for i in operator.inputs[1:]) else ()
    elif operator.target.startswith(_SUM_OF_EXPONENTIALS):
        yield from (*operator.inputs, *operator.outputs)
    elif kind in _CONDITIONS or kind in _INDICES:
        yield from (i for i in operator.inputs if graph.values[i].spec.dtype not in FLOAT_DTYPES)
    elif kind in _EACH_OTHER and not operator.target.startswith(_HALVES):
        factors = operator.inputs[:2] if kind == "linear" else operator.inputs
        for position, factor in enumerate(factors):
            if any(needs[other] for place, other in enumerate(factors) if place != position):
                yield factor
    elif kind not in _RESULT:
        yield from operator.inputs
    if kind in _RESULT or kind in _BOTH:
        yield from operator.outputs


def _is_exception(operator: Operator) -> bool:
    """Whether an operator of a kind that saves nothing does: a padding that takes its border from what it pads
    (`reflection_pad2d_backward` reads the input, that of a constant does not), and `logsumexp`, which is no sum."""
    mirrored = operator.kind == "pad" and operator.attributes.get("mode", "constant") != "constant"
    return mirrored or operator.target.startswith(_SUM_OF_EXPONENTIALS)


def _extra(graph: ModelGraph, operator: Operator, copies: _Copies) -> int:
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
            return 0 if operator.outputs[0] in copies.of else 4 * math.prod(given.shape[:-1])
        case _:
            return given.nbytes if _clones(graph, operator) else 0


def _clones(graph: ModelGraph, operator: Operator) -> bool:
    """Whether the operator saves a copy of the input that it then overwrites."""
    return operator.kind in _CLONED_IN_PLACE and _is_in_place(graph, operator)


def _is_in_place(graph: ModelGraph, operator: Operator) -> bool:
    return graph.storage(operator.outputs[0]) == graph.storage(operator.inputs[0])
