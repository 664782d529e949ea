"""Static shapes for an ONNX graph: inputs bound, shape arithmetic computed, every value typed.

Node by node in order: what depends on constants alone is computed (ONNX's own reference evaluator), what depends on
weights alone becomes a weight (unless PyTorch wrote the file: then it is an operator as any other), and the rest is
typed by ONNX's shape inference, which is given the constants. So no symbol is left, whatever exporter wrote the graph.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import onnx

from dippm.errors import UnsupportedOperator
from dippm.frontend.onnx.file import OnnxFile
from dippm.frontend.onnx.inference import Inference, Literal
from dippm.frontend.onnx.node import OnnxNode
from dippm.frontend.onnx.strided import as_identity
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
    notes: list[str] = field(default_factory=list)
    """What was taken for granted, a sentence each."""


class Amendments(Protocol):
    """What is put in the place of what the file says (`rebatch`)."""

    def row(self, name: str, elements: Elements | None) -> Elements | TensorSpec | None:
        """What a constant (or, without elements, a weight) is kept as instead, under the name `NAME@row`; or None."""

    def before(self, node: OnnxNode) -> Iterable[OnnxNode]:
        """The nodes that are run for one whose operands are known."""

    def after(self, node: OnnxNode) -> None:
        """A node has its results. Raises InputShapeError where they cannot be right."""


def fold(file: OnnxFile, inputs: dict[str, TensorSpec]) -> StaticGraph:
    """Bind `inputs` (shapes with the batch) and make every shape static.

    Raises InputShapeError or UnsupportedOperator.
    """
    return Folder(file, inputs).run()


_OF_WEIGHTS = frozenset({"Transpose", "Identity", "DequantizeLinear"})
"""What an exporter itself makes of a weight, where the framework has but the result."""


class Folder:
    """One pass over a file's nodes."""

    def __init__(self, file: OnnxFile, inputs: dict[str, TensorSpec], amendments: Amendments | None = None) -> None:
        self._file = file
        self._amendments = amendments
        self._static = StaticGraph()
        self.specs = self._static.specs
        """Shape and dtype of what is known so far, by name."""
        self.constants = self._static.constants
        """Elements of what is constant, likewise."""
        self._literals: dict[str, Literal] = {}
        """The constants again, those of equal elements as one."""
        self._constant_nodes: dict[Hashable, Literal] = {}
        self._shapes: dict[Hashable, Literal] = {}
        self._reshapes: dict[str, OnnxNode] = {}
        """Those so far, by what they put out."""
        self._inference = Inference(file.model, file.opset)
        self._as_run = file.by_pytorch
        """Whether operators on weights alone are run in every pass: PyTorch's exporters fold what is not."""
        self.specs.update(inputs)

    def run(self) -> StaticGraph:
        """The graph. Raises InputShapeError or UnsupportedOperator."""
        for name, spec in self._file.weights.items():
            row = None if self._amendments is None else self._amendments.row(name, None)
            kept, spec = (f"{name}@row", row) if isinstance(row, TensorSpec) else (name, spec)
            self.specs[kept] = self._static.weights[kept] = spec
        for name, tensor in self._file.data.items():
            self._constant(name, self._inference.tensor(tensor))
        self._graph(self._file.nodes)
        return self._static

    def _graph(self, nodes: Iterable[OnnxNode]) -> None:
        for node in nodes:
            if node.kind == "If" and (taken := self._branch(node)) is not None:
                self._inline(node, taken)
            elif self._amendments is None or node.kind in ("Constant", "Shape", "Size"):
                self._node(self._unstrided(node))
            else:
                node = self._unstrided(node)
                for instead in self._amendments.before(node):
                    self._node(instead)
                    self._amendments.after(instead)

    def _unstrided(self, node: OnnxNode) -> OnnxNode:
        if node.kind != "Gather":
            return node
        return as_identity(node, self._reshapes.get(node.inputs[0]), self.specs) or node

    def _branch(self, node: OnnxNode) -> onnx.GraphProto | None:
        """The branch of an If whose condition is a constant (exporters write them around a squeeze)."""
        condition = self.constants.get(node.inputs[0])
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
        if kind == "Reshape":
            self._reshapes[node.outputs[0]] = node
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
        types = self._inference.types(node, self.specs, operands)
        small = all(spec is None or spec.numel <= MAX_CONSTANT for spec in types)
        if known and small and kind not in _RANDOM and self._computed(node, operands):
            return
        specs = {name: spec for name, spec in zip(node.outputs, types, strict=True) if spec is not None}
        self.specs.update(specs)
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
        row = None if self._amendments is None else self._amendments.row(name, literal.array)
        if isinstance(row, np.ndarray):
            name, literal = f"{name}@row", self._inference.literal(row)
        self._literals[name] = literal
        self.constants[name] = literal.array
        self.specs[name] = literal.spec

    def numbers(self, name: str, numbers: Sequence[int] | int) -> None:
        """Add a constant of whole numbers."""
        self._constant(name, self._inference.literal(np.array(numbers, dtype=np.int64)))

    def _shape(self, node: OnnxNode) -> None:
        shape = self.specs[node.inputs[0]].shape
        if node.kind == "Size":
            self.numbers(node.outputs[0], int(np.prod(shape)))
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
