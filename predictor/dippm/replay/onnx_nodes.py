"""A model graph as the nodes that ONNX Runtime is left with once it has optimised the file.

What differs from the framework's operators (the exporter of `torch.onnx`, ONNX Runtime 1.31 at its highest level):

- a permutation, a slice, a split is a copy; a reshape shares its input's buffer;
- a batch norm behind a convolution is taken in (`ConvBNFusion`);
- a linear layer over more than two dimensions is a `Gemm` between two reshapes (`MatMulAddFusion`): its output is a
  matrix; without a bias it is a `MatMul`, and so with one in a file of the dynamo exporter, an `Add` behind it;
- attention is `MatMul`, `Softmax`, `MatMul`; in half precision the keys are turned in a node of their own
  (`MatmulTransposeFusion` takes other types only);
- an adaptive pooling whose windows differ in size is gathered, masked and added up pixel by pixel;
- a group norm is `InstanceNormalization` over a reshape, `Mul`, `Add`; Mish is `Softplus`, `Tanh`, `Mul`;
- GELU is one node, but as the dynamo exporter spells it out (`Div`, `Erf`, `Add`, `Mul`, `Mul`) it is not recognised.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from dippm.graph import ModelGraph, Operator, TensorSpec

SHARES = frozenset({"reshape", "squeeze", "unsqueeze", "flatten", "identity", "dropout", "copy"})
"""Kinds whose output is their input's buffer (a contiguous copy is exported as Identity, and that is taken away)."""
IN_PLACE = frozenset({
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "hardsigmoid", "tanh", "softplus", "hardswish",
    "abs", "cos", "exp", "log", "neg", "rsqrt", "sin", "sqrt",
})  # fmt: skip
"""Kinds whose CUDA kernels may write into their input (`MayInplace`): activations and functions of one argument; sums
and products may not."""
FOLDED_INTO = frozenset({"conv1d", "conv2d", "conv3d", "linear"})
RECURRENT = frozenset({"lstm", "gru", "rnn"})
COMPUTED_SHAPES = frozenset({"reshape", "expand"})
"""Kinds whose target shape is an operand: where the batch is open, the exporter computes it of other shapes."""
COPIES = {"roll": 2, "addcmul": 1}
"""Tensors of the output's shape that a kind makes on the way, being several nodes."""

HALF = 2
"""Bytes of an element in half precision."""

Layout = tuple[tuple[int, ...], int]
"""Shape and bytes of an element: what two tensors must have in common for one to take over the other's buffer."""


def layout(spec: TensorSpec) -> Layout:
    """Layout of a tensor."""
    return spec.shape, spec.nbytes // max(1, spec.numel)


class Exporter(StrEnum):
    """Which of PyTorch's exporters wrote the file: they spell some operators differently."""

    TORCHSCRIPT = "torchscript"
    DYNAMO = "dynamo"


def exporter_of(graph: ModelGraph) -> Exporter:
    """The exporter that a graph's file is by: of ONNX files only dynamo's nodes say from which line they come. Other
    files would have to be exported first, for which dynamo is PyTorch's default."""
    traced = graph.format == "onnx" and not any(operator.source for operator in graph.operators)
    return Exporter.TORCHSCRIPT if traced else Exporter.DYNAMO


@dataclass(frozen=True, slots=True)
class Node:
    """One node. Tensors go by the graph's value, or by a number below 0 where they are none of it."""

    reads: tuple[int, ...]
    makes: tuple[tuple[int, Layout], ...]
    in_place: bool = False
    """Whether it may write its first output into an input of the same layout."""
    renames: bool = False
    """Whether its output is its first input."""
    scratch: int = 0
    """Bytes of the arena while it runs."""
    computed_shape: bool = False
    """Whether the shape that it puts out is only known once the batch is."""


@dataclass
class Lowering:
    """The nodes of a graph, operator by operator."""

    graph: ModelGraph
    workspaces: Sequence[int]
    exporter: Exporter = Exporter.TORCHSCRIPT
    in_place: frozenset[str] = IN_PLACE
    gone: set[int] = field(default_factory=set)
    """Weights that folding takes away."""

    def __post_init__(self) -> None:
        self.uses: Counter[int] = Counter(i for o in self.graph.operators for i in o.inputs)
        self.uses.update(self.graph.outputs)
        self._made = 0

    def nodes(self, order: Sequence[int]) -> list[Node]:
        """All nodes, the operators in that order."""
        return [node for index in order for node in self._of(index)]

    def _of(self, index: int) -> Iterator[Node]:
        operator = self.graph.operators[index]
        if not operator.outputs:
            return
        output, inputs = operator.outputs[0], operator.inputs
        kind = operator.kind
        computed = self.graph.open_batch and kind in COMPUTED_SHAPES
        if (kind in SHARES and inputs) or self._is_folded(operator):
            yield Node(inputs[:1], ((output, self._layout(output)),), renames=True, computed_shape=computed)
        elif kind == "group_norm":
            yield from self._group_norm(operator)
        elif kind == "scaled_dot_product_attention" and len(inputs) > 2:
            yield from self._attention(operator)
        elif kind == "adaptive_avg_pool2d" and self._is_uneven(operator):
            yield from self._uneven_pool(operator)
        elif kind == "mish":
            (inner,) = self._new(self._layout(output))
            yield Node(inputs, (inner,))
            yield Node((inner[0], *inputs), self._outputs(operator))
        elif kind == "linear" and len(inputs) > 2 and len(self._layout(output)[0]) > 2:
            fused = self.exporter is Exporter.TORCHSCRIPT
            (product,) = self._new(_as_matrix(self._layout(output)) if fused else self._layout(output))
            yield Node(inputs, (product,))
            yield Node(product[:1], self._outputs(operator), renames=fused)
        elif kind == "gelu" and self.exporter is Exporter.DYNAMO:
            scaled, error, raised, halved = self._new(*[self._layout(output)] * 4)
            yield Node(inputs, (scaled,))
            yield Node(scaled[:1], (error,), in_place=True)
            yield Node(error[:1], (raised,))
            yield Node(raised[:1], (halved,))
            yield Node((*inputs, halved[0]), self._outputs(operator))
        else:
            steps = self._new(*[self._layout(output)] * COPIES.get(kind, 0))
            for step in steps:
                yield Node(inputs, (step,))
                inputs = step[:1]
            yield Node(
                inputs, self._outputs(operator), in_place=kind in self.in_place,
                scratch=self._scratch(index, operator), computed_shape=computed,
            )  # fmt: skip

    def _scratch(self, index: int, operator: Operator) -> int:
        """A convolution's workspace; a recurrent layer's, and its weights in cuDNN's order."""
        if operator.kind in RECURRENT:
            values = (self.graph.values[i] for i in operator.inputs)
            return self.workspaces[index] + sum(v.spec.nbytes for v in values if v.kind.is_state)
        return self.workspaces[index] if operator.kind.startswith("conv") else 0

    def _layout(self, value: int) -> Layout:
        return layout(self.graph.values[value].spec)

    def _outputs(self, operator: Operator) -> tuple[tuple[int, Layout], ...]:
        """Its outputs; one that nobody reads is not asked for (a pooling's indices)."""
        return tuple(
            (value, self._layout(value))
            for position, value in enumerate(operator.outputs)
            if self.uses[value] or not position
        )

    def _new(self, *layouts: Layout) -> list[tuple[int, Layout]]:
        self._made += len(layouts)
        return [(position - self._made, found) for position, found in enumerate(layouts)]

    def _is_folded(self, operator: Operator) -> bool:
        if operator.kind != "batch_norm" or not operator.inputs:
            return False
        source = operator.inputs[0]
        producer = self.graph.values[source].producer
        if producer is None or self.uses[source] != 1 or self.graph.operators[producer].kind not in FOLDED_INTO:
            return False
        self.gone.update(operator.inputs[1:])
        return True

    def _group_norm(self, operator: Operator) -> Iterator[Node]:
        shape, width = self._layout(operator.inputs[0])
        groups = operator.attributes.get("num_groups")
        groups = groups if isinstance(groups, int) and groups > 0 else 1
        flat = (shape[0], groups, math.prod(shape[1:]) // groups)
        normed, scaled = self._new((flat, width), (shape, width))
        yield Node(operator.inputs[:1], (normed,))
        yield Node(normed[:1], (scaled,))
        yield Node(scaled[:1], self._outputs(operator))

    def _is_uneven(self, operator: Operator) -> bool:
        """Whether its windows are not all of one size."""
        shape, made = (self._layout(value)[0] for value in (operator.inputs[0], operator.outputs[0]))
        return len(shape) == 4 and any(size % out for size, out in zip(shape[2:], made[2:], strict=True))

    def _uneven_pool(self, operator: Operator) -> Iterator[Node]:
        """Every window gathered and masked, then its pixels added up one by one (`_adaptive_avg_pool2d` decomposed)."""
        (batch, channels, *size), width = self._layout(operator.inputs[0])
        rows, columns = self._layout(operator.outputs[0])[0][2:]
        (high, masks_high), (wide, masks_wide) = (_window(s, o) for s, o in zip(size, (rows, columns), strict=True))
        whole = (batch, channels, rows, high, columns, wide)
        last, *steps = self._new(
            ((*size, batch, channels), width),
            ((rows, high, columns, wide, batch, channels), width),
            *[(whole, width)] * (1 + masks_high + masks_wide),
        )
        yield Node(operator.inputs, (last,))
        for step in steps:
            yield Node(last[:1], (step,))
            last = step
        lines = self._new(*[((batch, channels, rows, 1, columns, wide), width)] * high)
        yield Node(last[:1], tuple(lines))
        total: tuple[int, Layout] | None = None
        for line in lines:
            pixels = self._new(*[((batch, channels, rows, columns, 1), width)] * wide)
            yield Node(line[:1], tuple(pixels))
            for pixel in pixels:
                if total is None:
                    total = pixel
                    continue
                (summed,) = self._new(self._layout(operator.outputs[0]))
                yield Node((total[0], pixel[0]), (summed,))
                total = summed
        yield Node(total[:1] if total else (), self._outputs(operator))

    def _attention(self, operator: Operator) -> Iterator[Node]:
        query, key, value, *mask = operator.inputs
        (shape, width), (keys, _) = self._layout(query), self._layout(key)
        if width == HALF:
            (turned,) = self._new(((*keys[:-2], keys[-1], keys[-2]), width))
            yield Node((key,), (turned,))
            key = turned[0]
        last, *steps = self._new(*[((*shape[:-1], keys[-2]), width)] * (3 if mask else 2))
        yield Node((query, key), (last,))
        for step, more in zip(steps, (mask[:1], []) if mask else ([],), strict=True):
            yield Node((last[0], *more), (step,))
            last = step
        yield Node((last[0], value), self._outputs(operator))


def _window(size: int, out: int) -> tuple[int, bool]:
    """The most pixels that an adaptive pooling's window has along one side, and whether some have fewer."""
    over = size % out
    if not over:
        return size // out, False
    uneven = out % over != 0
    return size // out + 1 + uneven, uneven


def _as_matrix(of: Layout) -> Layout:
    shape, width = of
    return (math.prod(shape[:-1]), shape[-1]), width
