"""What one ONNX operator puts out: types by ONNX's shape inference, elements by its reference evaluator.

Deep networks repeat their layers, and exporters spell the same shape arithmetic out in each: every distinct operator
(its attributes, what its operands are) is asked about once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from dippm.errors import InputShapeError, ModelFormatError, UnsupportedOperator
from dippm.frontend.inputs import MAX_DIM, MAX_NUMEL
from dippm.frontend.onnx_types import Elements, spec_of, type_of
from dippm.graph import TensorSpec

_KEY_BYTES = 1024
"""Constants of more bytes are told apart by who they are, not by what they hold."""
_WITH_GRAPHS = frozenset({"If", "Loop", "Scan", "SequenceMap"})


class Inference:
    """Answers about the operators of one model. Arrays that it hands out are shared: they are not written to."""

    def __init__(self, model: onnx.ModelProto, opset: int) -> None:
        self._model = model
        self._opset = opset
        self._opsets = {"": opset}
        self._types: dict[Hashable, tuple[TensorSpec | None, ...]] = {}
        self._elements: dict[Hashable, tuple[Elements | None, ...] | None] = {}
        self._literals: dict[bytes, Elements] = {}
        self._keys: dict[int, tuple[Elements, Hashable]] = {}

    def types(
        self, node: onnx.NodeProto, specs: Mapping[str, TensorSpec], constants: Mapping[str, Elements]
    ) -> tuple[TensorSpec | None, ...]:
        """Shape and dtype of every output, None where it has no name.

        Raises InputShapeError or UnsupportedOperator, naming the operator.
        """
        key = self._asked(node)
        if key is not None:
            operands = tuple((specs[i], self._told(constants.get(i))) if i else None for i in node.input)
            key = (key, operands, tuple(map(bool, node.output)))
            if (known := self._types.get(key)) is not None:
                return known
        found = self._inferred(node, specs, constants)
        if key is not None:
            self._types[key] = found
        return found

    def elements(self, node: onnx.NodeProto, constants: Mapping[str, Elements]) -> tuple[Elements | None, ...] | None:
        """The elements of every output of an operator on constants; None where they cannot be computed."""
        key = self._asked(node)
        if key is not None:
            key = (key, tuple(self._told(constants[i]) if i else None for i in node.input))
            if key in self._elements:
                return self._elements[key]
        found = self._computed(node, constants)
        if key is not None:
            self._elements[key] = found
        return found

    def literal(self, tensor: onnx.TensorProto) -> Elements:
        """Elements of a tensor. Raises ModelFormatError where they are not what its dimensions and type say."""
        key = tensor.SerializeToString()
        array = self._literals.get(key)
        if array is None:
            array = self._literals[key] = _array(tensor)
        return array

    def _asked(self, node: onnx.NodeProto) -> Hashable | None:
        """Operator and attributes; None where an attribute is a graph, which may read what is around it."""
        if node.op_type in _WITH_GRAPHS:
            return None
        return (node.op_type, *[a.SerializeToString() for a in node.attribute])

    def _told(self, array: Elements | None) -> Hashable:
        """A constant as part of a key: by its elements, where they are few."""
        if array is None:
            return None
        known = self._keys.get(id(array))
        if known is None:
            few = array.nbytes <= _KEY_BYTES
            key: Hashable = (array.dtype, array.shape, array.tobytes()) if few else id(array)
            known = self._keys[id(array)] = (array, key)  # the array is held, so that no other one gets its id
        return known[1]

    def _computed(self, node: onnx.NodeProto, constants: Mapping[str, Elements]) -> tuple[Elements | None, ...] | None:
        try:
            evaluator = ReferenceEvaluator(node, opsets=self._opsets)
            with np.errstate(all="ignore"):
                results = evaluator.run(None, {i: constants[i] for i in node.input if i})
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, AttributeError):
            return None  # the reference evaluator does not know it: it stays an operator on constants
        return tuple(np.asarray(array) if name else None for name, array in zip(node.output, results, strict=False))

    def _inferred(
        self, node: onnx.NodeProto, specs: Mapping[str, TensorSpec], constants: Mapping[str, Elements]
    ) -> tuple[TensorSpec | None, ...]:
        read = {i: type_of(specs[i]) for i in node.input if i}
        tensors = {i: numpy_helper.from_array(constants[i], i) for i in read if i in constants}
        shown = f"{node.op_type} {node.name or node.output[0]!r}"
        schema = onnx.defs.get_schema(node.op_type, self._opset)
        opsets, version = self._model.opset_import, self._model.ir_version
        try:
            types: dict[str, onnx.TypeProto] = shape_inference.infer_node_outputs(
                schema, node, read, tensors, None, opsets, version
            )
        except shape_inference.InferenceError as error:
            why = " ".join(str(error).replace("[ShapeInferenceError]", " ").split())
            raise InputShapeError(
                f"these input shapes do not go through the model: {shown} says: {why[:200]}"
            ) from None
        if not all(_is_static(types.get(o)) for o in node.output if o):
            types = self._inferred_as_function(node, read, tensors)
        return tuple(_believed(types.get(o), shown) if o else None for o in node.output)

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
