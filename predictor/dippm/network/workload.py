"""The work of one operator: arithmetic, bytes moved, and the sizes that pick its kernel.

Typed by what goes in and what comes out: a graph (cast to its precision) goes in, one `Workload` an operator comes
out. Everything is counted from shapes and canonical attributes, nothing from names.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from dippm.attention import KIND as ATTENTION
from dippm.features import RECURRENT, recurrent_weights
from dippm.graph import Attribute, ModelGraph, Operator, TensorSpec, ValueKind
from dippm.vocabulary import CONVOLUTIONS

PRODUCTS = frozenset({"linear", "matmul", "batch_matmul", "einsum"})
TENSOR_CORE_KINDS = CONVOLUTIONS | PRODUCTS | RECURRENT | {ATTENTION}


@dataclass(frozen=True, slots=True)
class Workload:
    """What one operator has to do. Bytes are of dense tensors, before the allocator's rounding."""

    kind: str
    dtype: str
    """Of the first output (of the first input where there is none)."""
    macs: float
    """Multiply-accumulates of matrix work; 0 elsewhere."""
    bytes_in: int
    """Activations read."""
    bytes_out: int
    """Results that own their storage."""
    bytes_written: int
    """Results, in-place ones included; 0 for a view."""
    bytes_weight: int
    """Weights, buffers and constants read."""
    elements_in: int
    elements_out: int
    m: int
    """Rows of the equivalent matrix product (for convolutions batch x output positions); 0 where it is none."""
    n: int
    """Columns (output channels or features of one group)."""
    k: int
    """Length of the contraction."""
    products: int
    """How many such products: groups of a convolution, batch of a batched product; 0 where it is none."""
    channels_in: int
    channels_out: int
    positions_in: int
    """Spatial positions (or tokens) of the input."""
    positions_out: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: int
    groups: int
    last: int
    """Size of the first input's last dimension: what normalisations and softmax reduce over."""
    rank: int
    is_view: bool
    """All outputs share an input's storage and the kind only changes the view: no kernel is expected."""
    in_place: bool
    """An output shares an input's storage though the kind computes (an in-place call)."""
    transposed: bool
    arguments: int
    """Tensors given (a bias, a mask or more operands of a concatenation count)."""
    target: str
    """The framework's own name: it says what the kind does not (nearest or bicubic interpolation)."""

    @property
    def bytes_moved(self) -> int:
        """Bytes that must cross the memory interface at least once."""
        return 0 if self.is_view else self.bytes_in + self.bytes_weight + self.bytes_written


def workloads(graph: ModelGraph) -> tuple[Workload, ...]:
    """One `Workload` for each operator of the graph, in order. Equal layers have equal ones, which are made once."""
    made: dict[Hashable, Workload] = {}
    values = graph.values
    found = []
    for operator in graph.operators:
        place = {value: i for i, value in enumerate(dict.fromkeys(operator.inputs))}
        key = (
            operator.kind,
            operator.target,
            tuple(operator.attributes.items()),
            tuple([(place[i], values[i].spec, values[i].kind) for i in operator.inputs]),
            tuple([(values[o].spec, values[o].alias_of is None) for o in operator.outputs]),
        )
        workload = made.get(key)
        if workload is None:
            workload = made[key] = _workload(graph, operator)
        found.append(workload)
    return tuple(found)


def _workload(graph: ModelGraph, operator: Operator) -> Workload:
    values = graph.values
    activations: list[TensorSpec] = []
    weights: list[TensorSpec] = []
    for value in dict.fromkeys(operator.inputs):
        fixed = values[value].kind.is_state or values[value].kind is ValueKind.CONSTANT
        (weights if fixed else activations).append(values[value].spec)
    outputs = [values[value].spec for value in operator.outputs]
    owned = [values[value].spec for value in operator.outputs if values[value].alias_of is None]
    aliased = bool(outputs) and not owned
    arguments = [values[value].spec for value in operator.inputs]
    if operator.target.startswith(_ADDEND_FIRST):
        arguments = [*arguments[1:], arguments[0]]
    first = arguments[0] if arguments else (outputs[0] if outputs else TensorSpec((), "float32"))
    result = outputs[0] if outputs else first
    attributes = operator.attributes
    m, n, k, products, macs = _product_sizes(operator, arguments, outputs)
    bytes_in = sum(s.nbytes for s in activations)
    if operator.kind == "embedding" and activations:
        # Only the rows that are looked up are read, not the table.
        weights = [TensorSpec(result.shape, result.dtype)]
    views = aliased and operator.kind in _VIEW_KINDS
    channel_in, position_in = _channels(operator.kind, first)
    channel_out, position_out = _channels(operator.kind, result)
    return Workload(
        kind=operator.kind,
        dtype=result.dtype,
        macs=macs,
        bytes_in=bytes_in,
        bytes_out=sum(s.nbytes for s in owned),
        bytes_written=0 if views else sum(s.nbytes for s in outputs),
        bytes_weight=sum(s.nbytes for s in weights),
        elements_in=sum(s.numel for s in activations),
        elements_out=sum(s.numel for s in outputs),
        m=m,
        n=n,
        k=k,
        products=products,
        channels_in=channel_in,
        channels_out=channel_out,
        positions_in=position_in,
        positions_out=position_out,
        kernel=_kernel(operator.kind, arguments, attributes),
        stride=_pair(attributes.get("stride"), 1),
        padding=_pair(attributes.get("padding"), 0),
        dilation=max(_pair(attributes.get("dilation"), 1)),
        groups=_integer(attributes.get("groups"), 1),
        last=first.shape[-1] if first.shape else 1,
        rank=len(first.shape),
        is_view=views,
        in_place=aliased and not views,
        transposed=operator.kind.endswith("_transpose"),
        arguments=len(operator.inputs),
        target=operator.target,
    )


_ADDEND_FIRST = ("aten.addmm", "aten.baddbmm")
"""Calls whose first argument is what is added to the product."""

_VIEW_KINDS = frozenset(
    {"reshape", "transpose", "permute", "expand", "slice", "select", "split", "squeeze", "unsqueeze", "flatten",
     "unfold", "identity", "dropout", "cast", "copy", "stack", "index"}
)  # fmt: skip
"""Kinds that compute nothing where the output shares the input's storage (dropout in evaluation hands its input on)."""

_SPATIAL_KINDS = frozenset(
    {"batch_norm", "group_norm", "instance_norm", "local_response_norm", "interpolate", "grid_sample", "pixel_shuffle"}
)


def _product_sizes(
    operator: Operator, arguments: list[TensorSpec], outputs: list[TensorSpec]
) -> tuple[int, int, int, int, float]:
    """(m, n, k, number of products, multiply-accumulates) of the equivalent matrix products; zeros where it is none."""
    kind, attributes = operator.kind, operator.attributes
    if len(arguments) < 2 or not outputs:
        return 0, 0, 0, 0, 0.0
    first, second, result = arguments[0], arguments[1], outputs[0]
    if kind in CONVOLUTIONS and len(second.shape) > 1 and second.shape[0]:
        groups = _integer(attributes.get("groups"), 1)
        taps = math.prod(second.shape[1:])
        if kind.endswith("_transpose"):
            positions = first.numel // max(1, second.shape[0])
            return positions, taps, second.shape[0] // groups, groups, float(first.numel * taps)
        positions = result.numel // second.shape[0]
        return positions, second.shape[0] // groups, taps, groups, float(result.numel * taps)
    if kind == "linear" and first.shape and result.shape:
        k = first.shape[-1]
        return result.numel // max(1, result.shape[-1]), result.shape[-1], k, 1, float(result.numel * k)
    if kind in ("matmul", "batch_matmul") and first.shape and result.shape:
        k, n = first.shape[-1], result.shape[-1]
        if len(second.shape) <= 2:
            return result.numel // max(1, n), n, k, 1, float(result.numel * k)
        m = result.shape[-2] if len(result.shape) > 1 else 1
        return m, n, k, result.numel // max(1, m * n), float(result.numel * k)
    if kind == "einsum":
        # m k * k n * m n is the square of m n k; batch dimensions count three times, so this is an upper estimate.
        macs = math.sqrt(float(first.numel) * float(second.numel) * float(result.numel))
        n = result.shape[-1] if result.shape else 1
        k = max(1, round(macs / max(1, result.numel)))
        return result.numel // max(1, n), n, k, 1, macs
    if kind == ATTENTION and len(arguments) >= 3 and len(first.shape) >= 2 and len(second.shape) >= 2:
        third = arguments[2]
        heads = math.prod(first.shape[:-2])
        length, width = first.shape[-2:]
        source = second.shape[-2]
        return length, source, width, heads, float(heads * length * source * (width + third.shape[-1]))
    if kind in RECURRENT:
        weights = recurrent_weights(operator.target, arguments)
        steps = first.numel // max(1, first.shape[-1])
        n = max((s.shape[-2] for s in weights), default=1)
        return steps, n, first.shape[-1], 1, float(steps * sum(s.numel for s in weights))
    return 0, 0, 0, 0, 0.0


def _kernel(kind: str, arguments: list[TensorSpec], attributes: Mapping[str, Attribute]) -> tuple[int, int]:
    if (given := attributes.get("kernel_size")) is not None:
        return _pair(given, 1)
    if kind in CONVOLUTIONS and len(arguments) > 1 and len(arguments[1].shape) > 2:
        return _pair(arguments[1].shape[2:], 1)
    return 1, 1


def _channels(kind: str, spec: TensorSpec) -> tuple[int, int]:
    """(channels, positions): NCHW for convolutions, pooling and spatial norms, channels last for the rest."""
    if not spec.shape:
        return 1, 1
    if kind in CONVOLUTIONS or "pool" in kind or kind in _SPATIAL_KINDS:
        return (spec.shape[1] if len(spec.shape) > 1 else 1), math.prod(spec.shape[2:])
    return spec.shape[-1], math.prod(spec.shape[1:-1])


def _pair(value: Attribute | tuple[int, ...], default: int) -> tuple[int, int]:
    """Last two entries of a spatial attribute, whatever its rank."""
    if isinstance(value, tuple):
        if not value:
            return default, default
        return (int(value[-2]), int(value[-1])) if len(value) > 1 else (1, int(value[0]))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value), int(value)
    return default, default


def _integer(value: Attribute, default: int) -> int:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) and value else default
