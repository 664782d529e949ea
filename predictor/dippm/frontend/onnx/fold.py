"""Static shapes for an ONNX graph: inputs bound, shape arithmetic computed, every value typed.

Node by node in order: what depends on constants alone is computed (ONNX's own reference evaluator), what depends on
weights alone becomes a weight (unless PyTorch wrote the file: then it is an operator as any other), and the rest is
typed by ONNX's shape inference, which is given the constants. So no symbol is left, whatever exporter wrote the graph.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from dippm.errors import UnsupportedOperator
from dippm.frontend.onnx.file import OnnxFile
from dippm.frontend.onnx.inference import Inference, Literal
from dippm.frontend.onnx.node import OnnxNode
from dippm.frontend.onnx.types import Elements
from dippm.graph import TensorSpec

MAX_CONSTANT = 1 << 16
"""Most elements of a constant that is computed; larger ones stay operators."""
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


_LOOPS = frozenset({"Loop", "Scan"})
_SMALL = frozenset(
    {"Add", "And", "Cast", "Concat", "Div", "Equal", "Floor", "Gather", "Identity", "Mod", "Mul", "Neg", "Not", "Slice"}
    | {"Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"}
)
_SMALL_ELEMENTS = 256
"""Shape arithmetic: these put out at most the product of what they read, so that no type is needed to compute them."""


@dataclass
class StaticGraph:
    """What is left of an ONNX graph when shapes are known."""

    nodes: list[OnnxNode] = field(default_factory=list)
    """Operators that depend on a model input, in order."""
    specs: dict[str, TensorSpec] = field(default_factory=dict)
    constants: dict[str, Elements] = field(default_factory=dict)
    weights: dict[str, TensorSpec] = field(default_factory=dict)
    """Weights of the file and what is computed from them alone (a transposed weight), once each."""
    computed: dict[str, OnnxNode] = field(default_factory=dict)
    """Constants of a file that PyTorch wrote by the node that they are computed by."""


def fold(file: OnnxFile, inputs: dict[str, TensorSpec], *, file_batch: int | None, batch: int) -> StaticGraph:
    """Bind `inputs` (shapes with the batch) and make every shape static.

    `file_batch` is the batch that the file was exported with where that was a fixed one and differs from `batch`.

    Raises InputShapeError or UnsupportedOperator.
    """
    return _Folder(file, inputs, file_batch, batch).run()


_OF_WEIGHTS = frozenset({"Transpose", "Identity", "DequantizeLinear"})
"""What an exporter itself makes of a weight, where the framework has but the result."""


class _Folder:
    def __init__(self, file: OnnxFile, inputs: dict[str, TensorSpec], file_batch: int | None, batch: int) -> None:
        self._file = file
        self._file_batch = file_batch
        self._batch = batch
        self._static = StaticGraph()
        self._specs = self._static.specs
        self._constants = self._static.constants
        self._literals: dict[str, Literal] = {}
        """The constants again, those of equal elements as one."""
        self._constant_nodes: dict[Hashable, Literal] = {}
        self._shapes: dict[Hashable, Literal] = {}
        self._inference = Inference(file.model, file.opset)
        self._as_run = file.by_pytorch
        """Whether operators on weights alone are run in every pass: PyTorch's exporters fold what is not."""
        for name, spec in file.weights.items():
            self._specs[name] = self._static.weights[name] = spec
        for name, tensor in file.data.items():
            self._constant(name, self._inference.tensor(tensor))
        self._specs.update(inputs)

    def run(self) -> StaticGraph:
        self._graph(self._file.nodes)
        return self._static

    def _graph(self, nodes: Iterable[OnnxNode]) -> None:
        for node in nodes:
            if node.kind == "If" and (taken := self._branch(node)) is not None:
                self._inline(node, taken)
            else:
                self._node(node)

    def _branch(self, node: OnnxNode) -> onnx.GraphProto | None:
        """The branch of an If whose condition is a constant (exporters write them around a squeeze)."""
        condition = self._constants.get(node.inputs[0])
        if condition is None:
            raise UnsupportedOperator(
                "operator onnx.If is not supported where its condition depends on the input's data"
            )
        wanted = "then_branch" if bool(condition) else "else_branch"
        branch: onnx.GraphProto = next(a.g for a in node.proto.attribute if a.name == wanted)
        return branch

    def _inline(self, node: OnnxNode, branch: onnx.GraphProto) -> None:
        for tensor in branch.initializer:
            self._constant(tensor.name, self._inference.tensor(tensor))
        self._graph(map(OnnxNode, branch.node))
        for inner, outer in zip(branch.output, node.outputs, strict=True):
            self._node(OnnxNode(onnx.helper.make_node("Identity", [inner.name], [outer])))

    def _node(self, node: OnnxNode) -> None:
        kind = node.kind
        if kind == "Constant":
            self._constant_node(node)
            return
        if kind in ("Shape", "Size"):
            self._shape(node)
            return
        if self._file_batch is not None and len(node.inputs) > 1:
            self._rebatch(node, self._file_batch)
        literals = self._literals
        operands = [literals.get(name) for name in node.inputs]
        known = None not in operands or all(name in literals for name in node.inputs if name)
        if (
            known
            and kind in _SMALL
            and sum([o.size for o in operands if o is not None]) <= _SMALL_ELEMENTS
            and self._computed(node, operands)
        ):
            return
        if kind in _LOOPS and not known:
            raise UnsupportedOperator(
                f"operator onnx.{kind} {node.name!r} is not supported: what a loop runs is not priced; export the "
                "network with its recurrent layers as ONNX's LSTM, GRU or RNN, or unrolled (Keras: unroll=True)"
            )
        types = self._inference.types(node, self._specs, operands)
        small = all(spec is None or spec.numel <= MAX_CONSTANT for spec in types)
        if known and small and kind not in _RANDOM and self._computed(node, operands):
            return
        specs = {name: spec for name, spec in zip(node.outputs, types, strict=True) if spec is not None}
        self._specs.update(specs)
        if (kind in _OF_WEIGHTS or not self._as_run) and self._fixed(node):
            self._static.weights.update(specs)
            return
        self._static.nodes.append(node)

    def _fixed(self, node: OnnxNode) -> bool:
        """Whether a node reads weights and constants, and nothing else."""
        read = [name for name in node.inputs if name]
        return bool(read) and all(name in self._literals or name in self._static.weights for name in read)

    def _constant_node(self, node: OnnxNode) -> None:
        """Equal ones have one signature, and are read once."""
        literal = self._constant_nodes.get(node.signature)
        if literal is None:
            literal = self._constant_nodes[node.signature] = self._literal_of(node.proto.attribute[0])
        self._constant(node.outputs[0], literal)

    def _literal_of(self, attribute: onnx.AttributeProto) -> Literal:
        if attribute.name not in ("value", "value_float", "value_int", "value_floats", "value_ints"):
            raise UnsupportedOperator(f"operator onnx.Constant with {attribute.name} is not supported")
        if attribute.name == "value":
            return self._inference.tensor(attribute.t)
        value = onnx.helper.get_attribute_value(attribute)
        return self._inference.literal(np.array(value, dtype=np.float32 if "float" in attribute.name else np.int64))

    def _constant(self, name: str, literal: Literal) -> None:
        self._literals[name] = literal
        self._constants[name] = literal.array
        self._specs[name] = literal.spec

    def _numbers(self, name: str, numbers: Sequence[int] | int) -> None:
        self._constant(name, self._inference.literal(np.array(numbers, dtype=np.int64)))

    def _shape(self, node: OnnxNode) -> None:
        shape = self._specs[node.inputs[0]].shape
        if node.kind == "Size":
            self._numbers(node.outputs[0], int(np.prod(shape)))
            return
        key = (node.signature, shape)
        literal = self._shapes.get(key)
        if literal is None:
            bounds = {a.name: a.i for a in node.proto.attribute}
            part = shape[bounds.get("start", 0) : bounds.get("end")]
            literal = self._shapes[key] = self._inference.literal(np.array(part, dtype=np.int64))
        self._constant(node.outputs[0], literal)

    def _computed(self, node: OnnxNode, operands: Sequence[Literal | None]) -> bool:
        """Compute a node whose inputs are constants; False where that cannot be done."""
        results = self._inference.elements(node, operands)
        if results is None:
            return False
        for name, literal in zip(node.outputs, results, strict=False):
            if literal is not None:
                self._constant(name, literal)
        if self._as_run and node.kind not in _OF_WEIGHTS:
            self._static.computed.update(dict.fromkeys(node.outputs, node))
        return True

    def _rebatch(self, node: OnnxNode, file_batch: int) -> None:
        """A node that spells out the file's batch, in its target shape or in a weight, is given the batch asked for."""
        if node.kind in ("Reshape", "Expand"):
            self._reshape_rebatched(node, file_batch)
        elif node.kind == "Concat":
            self._concat_rebatched(node, file_batch)

    def _reshape_rebatched(self, node: OnnxNode, file_batch: int) -> None:
        target = self._constants.get(node.inputs[1])
        source = self._specs[node.inputs[0]].shape
        leading = (self._batch,) if node.kind == "Reshape" else (1, self._batch)
        if target is None or not len(target) or not source:
            return
        if target[0] == file_batch and source[0] in leading:
            first = self._batch
        elif node.kind == "Reshape" and self._counts_batches(target.tolist(), source, file_batch):
            first = int(target[0]) // file_batch * self._batch
        else:
            return
        name = f"{node.inputs[1]}@{self._batch}"
        self._numbers(name, [first, *target[1:]])
        node.read_instead(1, name)

    def _counts_batches(self, target: Sequence[int], source: Sequence[int], file_batch: int) -> bool:
        """Whether a target counts something of every picture (heads, windows) in its first dimension: it holds as much
        as the source did at the file's batch, and both begin with a multiple of theirs. A batch of 1 would always."""
        held, wanted = math.prod(d for d in target if d != -1), math.prod(source) * file_batch
        return (
            file_batch > 1
            and held > 0
            and (wanted % (held * self._batch) == 0 if -1 in target else wanted == held * self._batch)
            and target[0] % file_batch == 0
            and source[0] % self._batch == 0
        )

    def _concat_rebatched(self, node: OnnxNode, file_batch: int) -> None:
        """A weight of a row for each of the file's batch beside batches (a class token, whose expansion the exporter
        folded) is expanded again, from one row."""
        shapes = {name: self._specs[name].shape for name in node.inputs}
        axis = next((a.i for a in node.proto.attribute if a.name == "axis"), 0)
        ranks = {len(shape) for shape in shapes.values()}
        if len(ranks) != 1 or axis % max(*ranks, 1) == 0 or not any(s[0] == self._batch for s in shapes.values()):
            return
        for position, name in enumerate(node.inputs):
            if shapes[name][0] == file_batch and (name in self._static.weights or name in self._constants):
                rows, expanded = f"{name}@rows", f"{name}@{self._batch}"
                if expanded not in self._specs:
                    self._numbers(rows, [self._batch, *[1] * (len(shapes[name]) - 1)])
                    row = name if file_batch == 1 else self._first_row(name)
                    proto = onnx.helper.make_node("Expand", [row, rows], [expanded], name=f"{node.name}_expand")
                    self._node(OnnxNode(proto))
                node.read_instead(position, expanded)

    def _first_row(self, name: str) -> str:
        row, start, end = f"{name}@row", f"{name}@0", f"{name}@1"
        self._numbers(start, [0])
        self._numbers(end, [1])
        self._node(OnnxNode(onnx.helper.make_node("Slice", [name, start, end], [row], name=f"{name}_row")))
        return row
