"""What one ONNX operator puts out: types by ONNX's shape inference, elements by its reference evaluator.

Deep networks repeat their layers, and exporters spell the same shape arithmetic out in each: every distinct operator
(its attributes, what its operands are) is asked about once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from dippm.errors import InputShapeError, ModelFormatError, UnsupportedOperator
from dippm.frontend.inputs import MAX_DIM, MAX_NUMEL
from dippm.frontend.onnx.node import OnnxNode
from dippm.frontend.onnx.types import Elements, spec_of, spec_of_array, type_of
from dippm.graph import TensorSpec

_KEY_BYTES = 1024
"""Constants of more bytes are told apart by who they are, not by what they hold."""


class Literal:
    """A constant. Of those that hold the same few elements there is one, so that who it is says what it holds."""

    __slots__ = ("array", "size", "spec")

    def __init__(self, array: Elements) -> None:
        self.array = array
        """Shared: it is not written to."""
        self.size = array.size
        self.spec = spec_of_array(array)


Operands = Sequence[Literal | None]
"""An operator's constants by position; None for what is not constant or left away."""


class Inference:
    """Answers about the operators of one model."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self._model = model
        self._opset = opset
        self._opsets = {"": opset}
        self._types: dict[Hashable, tuple[TensorSpec | None, ...]] = {}
        self._protos: dict[TensorSpec, onnx.TypeProto] = {}
        self._elements: dict[Hashable, tuple[Literal | None, ...] | None] = {}
        self._tensors: dict[bytes, Literal] = {}
        self._literals: dict[Hashable, Literal] = {}

    def types(
        self, node: OnnxNode, specs: Mapping[str, TensorSpec], constants: Operands
    ) -> tuple[TensorSpec | None, ...]:
        """Shape and dtype of every output, None where it has no name.

        Raises InputShapeError or UnsupportedOperator, naming the operator.
        """
        key: Hashable | None = None
        if node.signature is not None:
            read = [specs[i] if i else None for i in node.inputs]
            key = (node.signature, *read, *constants, *[bool(o) for o in node.outputs])
            if (known := self._types.get(key)) is not None:
                return known
        found = self._inferred(node, specs, constants)
        if key is not None:
            self._types[key] = found
        return found

    def elements(self, node: OnnxNode, constants: Operands) -> tuple[Literal | None, ...] | None:
        """The elements of every output of an operator on constants; None where they cannot be computed."""
        key: Hashable | None = None
        if node.signature is not None:
            key = (node.signature, *constants)
            if key in self._elements:
                return self._elements[key]
        found = self._computed(node, constants)
        if key is not None:
            self._elements[key] = found
        return found

    def tensor(self, tensor: onnx.TensorProto) -> Literal:
        """Elements of a tensor. Raises ModelFormatError where they are not what its dimensions and type say."""
        key = tensor.SerializeToString()
        literal = self._tensors.get(key)
        if literal is None:
            literal = self._tensors[key] = self.literal(_array(tensor))
        return literal

    def literal(self, array: Elements) -> Literal:
        """A constant of these elements."""
        if array.nbytes > _KEY_BYTES:
            return Literal(array)
        key = (array.dtype, array.shape, array.tobytes())
        literal = self._literals.get(key)
        if literal is None:
            literal = self._literals[key] = Literal(array)
        return literal

    def _computed(self, node: OnnxNode, constants: Operands) -> tuple[Literal | None, ...] | None:
        operands = zip(node.inputs, constants, strict=True)
        given = {name: literal.array for name, literal in operands if literal is not None}
        try:
            evaluator = ReferenceEvaluator(node.proto, opsets=self._opsets)
            with np.errstate(all="ignore"):
                results = evaluator.run(None, given)
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, AttributeError):
            return None  # the reference evaluator does not know it: it stays an operator on constants
        return tuple(
            self.literal(np.asarray(array)) if name else None
            for name, array in zip(node.outputs, results, strict=False)
        )

    def _inferred(
        self, node: OnnxNode, specs: Mapping[str, TensorSpec], constants: Operands
    ) -> tuple[TensorSpec | None, ...]:
        read = {name: self._proto(specs[name]) for name in node.inputs if name}
        tensors = {
            name: numpy_helper.from_array(literal.array, name)
            for name, literal in zip(node.inputs, constants, strict=True)
            if literal is not None
        }
        shown = f"{node.kind} {node.name or node.outputs[0]!r}"
        schema = onnx.defs.get_schema(node.kind, self._opset)
        opsets, version = self._model.opset_import, self._model.ir_version
        try:
            types: dict[str, onnx.TypeProto] = shape_inference.infer_node_outputs(
                schema, node.proto, read, tensors, None, opsets, version
            )
        except shape_inference.InferenceError as error:
            why = " ".join(str(error).replace("[ShapeInferenceError]", " ").split())
            raise InputShapeError(
                f"these input shapes do not go through the model: {shown} says: {why[:200]}"
            ) from None
        if not all(_is_static(types.get(o)) for o in node.outputs if o):
            types = self._inferred_as_function(node.proto, read, tensors)
        return tuple(_believed(types.get(o), shown) if o else None for o in node.outputs)

    def _proto(self, spec: TensorSpec) -> onnx.TypeProto:
        if spec not in self._protos:
            self._protos[spec] = type_of(spec)
        return self._protos[spec]

    def _inferred_as_function(
        self, node: onnx.NodeProto, read: dict[str, onnx.TypeProto], tensors: dict[str, onnx.TensorProto]
    ) -> dict[str, onnx.TypeProto]:
        """Types of an operator that its schema defines as a function of others: inferred as a model of one node."""
        graph = onnx.helper.make_graph(
            [node],
            "one",
            [onnx.helper.make_value_info(n, k) for n, k in read.items() if n not in tensors],
            [onnx.ValueInfoProto(name=o) for o in node.output if o],
            [tensors[n] for n in read if n in tensors],
        )
        model = onnx.helper.make_model(graph, opset_imports=self._model.opset_import)
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        return {v.name: v.type for v in (*inferred.output, *inferred.value_info)}


def _believed(kind: onnx.TypeProto | None, shown: str) -> TensorSpec:
    if kind is None or not _is_static(kind):
        raise UnsupportedOperator(f"operator onnx.{shown} is not supported: its shape depends on the input's data")
    spec = spec_of(kind)
    if any(not 0 <= d <= MAX_DIM for d in spec.shape) or spec.numel > MAX_NUMEL:
        raise InputShapeError(f"the model makes a tensor too large to be meant: {shown} puts out {spec.shape}")
    return spec


def _is_static(kind: onnx.TypeProto | None) -> bool:
    if kind is None or not kind.HasField("tensor_type"):
        return kind is not None
    tensor = kind.tensor_type
    return tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)


def _array(tensor: onnx.TensorProto) -> Elements:
    try:
        array: Elements = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFormatError(f"the ONNX tensor {tensor.name!r} is damaged: {error}") from None
    return array
