"""The signature of an operator: what its kernels, workspace and time depend on, as one line of text.

Measured workspaces and kernel times are looked up under it, so it is the same for the same work wherever it stands in
whatever model: kind, dtypes and shapes of inputs and outputs, whether an output shares an input's storage, and the
attributes that choose or shape a kernel. Names, scopes, the framework's own name of the operator, and floating-point
attributes (an epsilon, a scale) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from dippm.graph import Attribute, ModelGraph, Value
from dippm.vocabulary import VIEWS

_NO_EFFECT = frozenset({
    "other", "alpha", "value", "fill_value", "start", "end", "step", "training", "size", "keepdim", "dtype", "max_norm",
    "padding_idx", "shifts", "index", "normalized_shape",
})  # fmt: skip
"""Attributes that change values, or that the output's shape and dtype already say."""


def signature(graph: ModelGraph, operator_index: int) -> str:
    """Signature of one operator of a graph, e.g.

    `conv2d(float32[1,3,224,224],float32[64,3,7,7])->(float32[1,64,112,112]);dilation=1,1;groups=1;kernel_size=7,7;...`

    An output that shares storage with an input (a view, an in-place operator) is marked `~`. Cast the graph to the
    precision first (`ModelGraph.cast`).
    """
    operator = graph.operators[operator_index]
    inputs = ",".join(_spelled(graph.values[i]) for i in operator.inputs)
    outputs = ",".join(
        ("~" if graph.values[o].alias_of is not None else "") + _spelled(graph.values[o]) for o in operator.outputs
    )
    text = f"{operator.kind}({inputs})->({outputs})"
    if operator.kind in VIEWS:
        return text
    return ";".join([text, *_attributes(operator.attributes.items())])


def _spelled(value: Value) -> str:
    return f"{value.spec.dtype}[{','.join(map(str, value.spec.shape))}]"


def _attributes(items: Iterable[tuple[str, Attribute]]) -> Iterable[str]:
    for name, value in sorted(items):
        if name in _NO_EFFECT or isinstance(value, float):
            continue
        yield f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
