"""Static shapes for an ONNX graph: inputs bound, shape arithmetic computed, every value typed.

Node by node in order: what depends on constants alone is computed (ONNX's own reference evaluator), what depends on
weights alone becomes a weight (unless PyTorch wrote the file: then it is an operator as any other), and the rest is
typed by ONNX's shape inference, which is given the constants. So no symbol is left, whatever exporter wrote the graph.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator

from dippm.errors import InputShapeError, ModelFormatError, UnsupportedOperator
from dippm.frontend.inputs import MAX_DIM, MAX_NUMEL
from dippm.frontend.onnx_file import OnnxFile
from dippm.graph import TensorSpec

MAX_CONSTANT = 1 << 16
"""Most elements of a constant that is computed; larger ones stay operators."""
_RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
)


_SMALL = frozenset(
    {"Add", "And", "Cast", "Concat", "Div", "Equal", "Floor", "Gather", "Identity", "Mod", "Mul", "Neg", "Not", "Slice"}
    | {"Squeeze", "Sub", "Transpose", "Unsqueeze", "Where"}
)
_SMALL_ELEMENTS = 256
"""Shape arithmetic: these put out at most the product of what they read, so that no type is needed to compute them."""


@dataclass
class StaticGraph:
    """What is left of an ONNX graph when shapes are known."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    """Operators that depend on a model input, in order."""
    specs: dict[str, TensorSpec] = field(default_factory=dict)
    constants: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    weights: dict[str, TensorSpec] = field(default_factory=dict)
    """Weights of the file and what is computed from them alone (a transposed weight), once each."""


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
        self._types: dict[str, onnx.TypeProto] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._opsets = {"": file.opset}
        self._as_run = file.model.producer_name == "pytorch"
        """Whether operators on weights alone are run in every pass: PyTorch's exporters fold what is not."""
        for name, kind in file.weights.items():
            self._types[name] = kind
            self._static.weights[name] = spec_of(kind)
        for name, tensor in file.data.items():
            self._constant(name, _array(tensor))
        for name, spec in inputs.items():
            dtype = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype)) if spec.dtype != "bfloat16" else 16
            self._types[name] = onnx.helper.make_tensor_type_proto(dtype, list(spec.shape))

    def run(self) -> StaticGraph:
        self._graph(self._file.model.graph)
        self._static.specs = {name: spec_of(kind) for name, kind in self._types.items()}
        return self._static

    def _graph(self, graph: onnx.GraphProto) -> None:
        for node in graph.node:
            if node.op_type == "If" and (taken := self._branch(node)) is not None:
                self._inline(node, taken)
            else:
                self._node(node)

    def _branch(self, node: onnx.NodeProto) -> onnx.GraphProto | None:
        """The branch of an If whose condition is a constant (exporters write them around a squeeze)."""
        condition = self._static.constants.get(node.input[0])
        if condition is None:
            raise UnsupportedOperator(
                "operator onnx.If is not supported where its condition depends on the input's data"
            )
        wanted = "then_branch" if bool(condition) else "else_branch"
        branch: onnx.GraphProto = next(a.g for a in node.attribute if a.name == wanted)
        return branch

    def _inline(self, node: onnx.NodeProto, branch: onnx.GraphProto) -> None:
        for tensor in branch.initializer:
            self._constant(tensor.name, _array(tensor))
        self._graph(branch)
        for inner, outer in zip(branch.output, node.output, strict=True):
            self._node(onnx.helper.make_node("Identity", [inner.name], [outer]))

    def _node(self, node: onnx.NodeProto) -> None:
        if node.op_type == "Constant":
            self._constant_node(node)
            return
        read = [i for i in node.input if i]
        if node.op_type in ("Shape", "Size"):
            self._shape(node)
            return
        known = all(i in self._static.constants for i in read)
        if known and node.op_type in _SMALL and sum(self._static.constants[i].size for i in read) <= _SMALL_ELEMENTS:
            node = self._rebatched(node)
            if self._computed(node, {}):
                return
        types = self._infer(self._rebatched(node))
        if known and node.op_type not in _RANDOM and self._computed(node, types):
            return
        self._types.update(types)
        fixed = read and all(i in self._static.constants or i in self._static.weights for i in read)
        if fixed and (node.op_type in _OF_WEIGHTS or not self._as_run):
            for name, kind in types.items():
                self._static.weights[name] = spec_of(kind)
            return
        self._static.nodes.append(node)

    def _constant_node(self, node: onnx.NodeProto) -> None:
        attribute = node.attribute[0]
        name = node.output[0]
        if attribute.name not in ("value", "value_float", "value_int", "value_floats", "value_ints"):
            raise UnsupportedOperator(f"operator onnx.Constant with {attribute.name} is not supported")
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            self._constant(name, _array(value))
        else:
            self._constant(name, np.array(value, dtype=np.float32 if "float" in attribute.name else np.int64))

    def _constant(self, name: str, array: np.ndarray[Any, Any]) -> None:
        tensor = numpy_helper.from_array(array, name)
        self._static.constants[name] = array
        self._tensors[name] = tensor
        self._types[name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))

    def _shape(self, node: onnx.NodeProto) -> None:
        shape = spec_of(self._types[node.input[0]]).shape
        if node.op_type == "Size":
            self._constant(node.output[0], np.array(int(np.prod(shape)), dtype=np.int64))
            return
        bounds = {a.name: a.i for a in node.attribute}
        self._constant(node.output[0], np.array(shape[bounds.get("start", 0) : bounds.get("end")], dtype=np.int64))

    def _computed(self, node: onnx.NodeProto, types: dict[str, onnx.TypeProto]) -> bool:
        """Compute a node whose inputs are constants; False where its output would be too large."""
        if any(spec_of(kind).numel > MAX_CONSTANT for kind in types.values()):
            return False
        try:
            evaluator = ReferenceEvaluator(node, opsets=self._opsets)
            with np.errstate(all="ignore"):
                results = evaluator.run(None, {i: self._static.constants[i] for i in node.input if i})
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, AttributeError):
            return False  # the reference evaluator does not know it: it stays an operator on constants
        for name, array in zip(node.output, results, strict=False):
            if name:
                self._constant(name, np.asarray(array))
        return True

    def _rebatched(self, node: onnx.NodeProto) -> onnx.NodeProto:
        """A node that spells out the file's batch, in its target shape or in a weight, is given the batch asked for."""
        if self._file_batch is None or len(node.input) < 2:
            return node
        if node.op_type in ("Reshape", "Expand"):
            self._reshape_rebatched(node, self._file_batch)
        elif node.op_type == "Concat" and self._file_batch == 1:
            self._concat_rebatched(node)
        return node

    def _reshape_rebatched(self, node: onnx.NodeProto, file_batch: int) -> None:
        target = self._static.constants.get(node.input[1])
        source = spec_of(self._types[node.input[0]]).shape
        leading = (self._batch,) if node.op_type == "Reshape" else (1, self._batch)
        if target is not None and len(target) and target[0] == file_batch and source and source[0] in leading:
            name = f"{node.input[1]}@{self._batch}"
            self._constant(name, np.array([self._batch, *target[1:]], dtype=np.int64))
            node.input[1] = name

    def _concat_rebatched(self, node: onnx.NodeProto) -> None:
        """A weight of one row beside batches (a class token, whose expansion the exporter folded) is expanded again."""
        shapes = {name: spec_of(self._types[name]).shape for name in node.input}
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        ranks = {len(shape) for shape in shapes.values()}
        if len(ranks) != 1 or axis % max(*ranks, 1) == 0 or not any(s[0] == self._batch for s in shapes.values()):
            return
        for position, name in enumerate(node.input):
            if shapes[name][0] == 1 and (name in self._static.weights or name in self._static.constants):
                rows, expanded = f"{name}@rows", f"{name}@{self._batch}"
                if expanded not in self._types:
                    self._constant(rows, np.array([self._batch, *[1] * (len(shapes[name]) - 1)], dtype=np.int64))
                    self._node(onnx.helper.make_node("Expand", [name, rows], [expanded], name=f"{node.name}_expand"))
                node.input[position] = expanded

    def _infer(self, node: onnx.NodeProto) -> dict[str, onnx.TypeProto]:
        schema = onnx.defs.get_schema(node.op_type, self._file.opset)
        read = {i: self._types[i] for i in node.input if i}
        shown = f"{node.op_type} {node.name or node.output[0]!r}"
        try:
            types: dict[str, onnx.TypeProto] = shape_inference.infer_node_outputs(
                schema, node, read, self._tensors, None, self._file.model.opset_import, self._file.model.ir_version
            )
        except shape_inference.InferenceError as error:
            why = " ".join(str(error).replace("[ShapeInferenceError]", " ").split())
            raise InputShapeError(
                f"these input shapes do not go through the model: {shown} says: {why[:200]}"
            ) from None
        outputs = [o for o in node.output if o]
        if not all(_is_static(types.get(o)) for o in outputs):
            types = self._infer_function(node, read)
        for kind in map(types.get, outputs):
            if kind is None or not _is_static(kind):
                raise UnsupportedOperator(
                    f"operator onnx.{shown} is not supported: its shape depends on the input's data"
                )
            spec = spec_of(kind)
            if any(not 0 <= d <= MAX_DIM for d in spec.shape) or spec.numel > MAX_NUMEL:
                raise InputShapeError(f"the model makes a tensor too large to be meant: {shown} puts out {spec.shape}")
        return {o: types[o] for o in outputs}

    def _infer_function(self, node: onnx.NodeProto, read: dict[str, onnx.TypeProto]) -> dict[str, onnx.TypeProto]:
        """Types of an operator that its schema defines as a function of others: inferred as a model of one node."""
        graph = onnx.helper.make_graph(
            [node],
            "one",
            [onnx.helper.make_value_info(n, k) for n, k in read.items() if n not in self._tensors],
            [onnx.ValueInfoProto(name=o) for o in node.output if o],
            [self._tensors[n] for n in read if n in self._tensors],
        )
        model = onnx.helper.make_model(graph, opset_imports=self._file.model.opset_import)
        inferred = shape_inference.infer_shapes(model, data_prop=True).graph
        return {v.name: v.type for v in (*inferred.output, *inferred.value_info)}


def _is_static(kind: onnx.TypeProto | None) -> bool:
    if kind is None or not kind.HasField("tensor_type"):
        return kind is not None
    tensor = kind.tensor_type
    return tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim)


def _array(tensor: onnx.TensorProto) -> np.ndarray[Any, Any]:
    """Elements of a tensor. Raises ModelFormatError where they are not what its dimensions and type say."""
    try:
        array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFormatError(f"the ONNX tensor {tensor.name!r} is damaged: {error}") from None
    return array


def spec_of(kind: onnx.TypeProto) -> TensorSpec:
    """Shape and dtype of a typed tensor with static dimensions.

    Raises UnsupportedOperator for sequences, strings and the like.
    """
    if not kind.HasField("tensor_type"):
        raise UnsupportedOperator("ONNX sequences, maps and optionals are not supported: export with tensors only")
    dtype = _DTYPES.get(kind.tensor_type.elem_type)
    if dtype is None:
        number = kind.tensor_type.elem_type
        known = number in onnx.TensorProto.DataType.values()
        name = onnx.TensorProto.DataType.Name(number) if known else f"number {number}"
        raise UnsupportedOperator(f"ONNX tensors of type {name} are not supported")
    return TensorSpec(tuple(d.dim_value for d in kind.tensor_type.shape.dim), dtype)


_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64", onnx.TensorProto.INT64: "int64", onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT16: "int16", onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.UINT16: "uint16", onnx.TensorProto.UINT32: "uint32", onnx.TensorProto.UINT64: "uint64",
    onnx.TensorProto.BOOL: "bool",
}  # fmt: skip
