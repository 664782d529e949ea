"""The one module that imports TVM: operators expressed in Relax.

TVM 0.27 (Apache TVM, `tvm.relax.frontend`). Parameters enter as typed inputs, so no weight is read or copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tvm
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from dippm.errors import UnsupportedOperator
from dippm.frontend.aten import KIND_BY_NAME, NOT_RUN, base_name
from dippm.frontend.foreign import ForeignCall
from dippm.graph import TensorSpec


class RecordingBuilder(relax.BlockBuilder):  # type: ignore[misc]  # TVM ships no types
    """A block builder that remembers which operators were emitted since it was last asked."""

    def __init__(self) -> None:
        super().__init__()
        self._emitted: list[str] = []

    def emit(self, expr: Any, name_hint: str = "") -> relax.Var:
        collect_operator_names(expr, self._emitted)
        return super().emit(expr, name_hint)

    def normalize(self, expr: Any) -> Any:
        """Bind nested calls to variables; the outermost call is remembered when it is emitted itself."""
        if isinstance(expr, relax.Call):
            for argument in expr.args:
                collect_operator_names(argument, self._emitted)
        return super().normalize(expr)

    def take(self) -> tuple[str, ...]:
        """Names of the operators emitted since the last call, in order."""
        names, self._emitted = tuple(self._emitted), []
        return names


def collect_operator_names(expr: Any, into: list[str]) -> None:
    """Append the operator names in an expression, operands first."""
    if isinstance(expr, relax.Call):
        for argument in expr.args:
            collect_operator_names(argument, into)
        operator = expr.op
        if isinstance(operator, relax.ExternFunc):
            return
        if isinstance(operator, tvm.ir.Op):
            name = operator.name
            packed = expr.args[0] if name == "relax.call_pure_packed" and len(expr.args) else None
            into.append(f"packed.{packed.global_symbol}" if isinstance(packed, relax.ExternFunc) else name)
        else:
            into.append("relax.call")
    elif isinstance(expr, relax.Tuple):
        for item in expr.fields:
            collect_operator_names(item, into)
    elif isinstance(expr, relax.TupleGetItem):
        collect_operator_names(expr.tuple_value, into)


class _MetaImporter(ExportedProgramImporter):  # type: ignore[misc]  # TVM ships no types
    """TVM's importer over a graph that already ran on the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self._types: dict[fx.Node, Hashable] = {}
        self._known: dict[Hashable, tuple[Any, tuple[str, ...], Hashable]] = {}

    def translate(self, graph: fx.Graph) -> dict[fx.Node, tuple[str, ...]]:
        """Express the calls of `graph` in Relax, each distinct one once; the operators' names for each.

        A call that was expressed before, on operands of the same types, is given what was put out then; graph inputs
        of one type are one variable. Each node's `meta["val"]` says what it puts out.
        """
        builder = RecordingBuilder()
        self.block_builder = builder
        names: dict[fx.Node, tuple[str, ...]] = {}
        inputs: dict[Hashable, relax.Var] = {}
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                value = node.meta["val"]
                if isinstance(value, torch.Tensor):
                    kind = self._types[node] = (value.shape, value.dtype)
                    if kind not in inputs:
                        inputs[kind] = relax.Var(node.name, tensor_type(value))
                    self.env[node] = inputs[kind]
                else:
                    self._types[node] = (type(value), value)
                    self.env[node] = value
        result: Any = relax.Tuple([])
        with builder.function("main", params=list(inputs.values())):
            with builder.dataflow():
                for node in graph.nodes:
                    if node.op != "call_function":
                        continue
                    value = node.meta["val"]
                    if value is None or isinstance(value, (int, float, bool)):
                        self.env[node], self._types[node] = value, (type(value), value)
                        continue
                    self.env[node], names[node], self._types[node] = self._expressed(node)
                output = builder.emit_output(result)
            builder.emit_func_output(output)
        return names

    def _expressed(self, node: fx.Node) -> tuple[Any, tuple[str, ...], Hashable]:
        """What a call puts out in Relax, the names of the operators for it, and its type."""
        try:
            key = (node.target, self._signed(node.args), self._signed(node.kwargs), _signed_value(node.meta["val"]))
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be a key
            key, known = None, None
        if known is None:
            put_out = self._call(node)
            known = put_out, self.block_builder.take(), _type_of(put_out)
            if key is not None:
                self._known[key] = known
        return known

    def _signed(self, argument: Any) -> Hashable:
        """An argument as part of a key: nodes by what they put out."""
        if isinstance(argument, fx.Node):
            return ("node", self._types[argument])
        if isinstance(argument, (list, tuple)):
            return tuple([self._signed(a) for a in argument])
        if isinstance(argument, dict):
            return tuple([(name, self._signed(a)) for name, a in argument.items()])
        if isinstance(argument, slice):
            return (slice, self._signed((argument.start, argument.stop, argument.step)))
        return (type(argument), argument)  # 1, 1.0 and True are the same key

    def _call(self, node: fx.Node) -> Any:
        if isinstance(node.target, ForeignCall):
            return self._packed(node)
        name = getattr(node.target, "__name__", str(node.target))
        convert = self.convert_map.get(name)
        base = base_name(name)
        if base in NOT_RUN:
            return self.env[node.args[0]] if node.args else None
        known = base in KIND_BY_NAME
        if convert is None and not known:
            raise UnsupportedOperator(f"operator {node.target} is not supported")
        if convert is not None:
            try:
                expr = convert(node)
            except Exception as error:
                # TVM's converters raise whatever comes up (assertions, KeyError, its own errors) on argument
                # combinations that they do not cover; the call itself is still known and typed.
                if not known:
                    raise UnsupportedOperator(
                        f"operator {node.target} is not supported: {_first_line(error)}"
                    ) from error
            else:
                if not isinstance(node.target, torch._ops.OpOverload) or _agrees(expr, node.meta["val"]):
                    return expr
        self.block_builder.take()
        return self._packed(node)

    def _packed(self, node: fx.Node) -> Any:
        """The call as a packed function of the framework's name, typed by what it put out on the meta device."""
        arguments = [self.env[a] for a in node.all_input_nodes if isinstance(self.env.get(a), relax.Expr)]
        value = node.meta["val"]
        many = isinstance(value, (tuple, list))
        tensors = [v for v in value if isinstance(v, torch.Tensor)] if many else [value]
        types = [tensor_type(t) for t in tensors]
        call = relax.op.call_pure_packed(
            _packed_name(node), *arguments, ty_args=[relax.TupleType(types)] if many else types
        )
        result = self.block_builder.emit(call)
        if not many:
            return result
        return [self.block_builder.emit(relax.TupleGetItem(result, i)) for i in range(len(tensors))]


def _packed_name(node: fx.Node) -> str:
    return node.target.name if isinstance(node.target, ForeignCall) else str(node.target)


def tensor_type(tensor: torch.Tensor) -> Any:
    """The Relax type of a meta tensor."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return relax.TensorType([int(d) for d in tensor.shape], _RELAX_DTYPE.get(dtype, dtype))


_RELAX_DTYPE = {"complex64": "int64", "complex128": "int64"}
"""Relax has no complex numbers: another dtype stands in, inside the Relax module only."""


def _agrees(expr: Any, value: Any) -> bool:
    """Whether a converter's result has the shape and dtype that the framework has; where not, it is not believed."""
    if isinstance(value, torch.Tensor):
        kind = getattr(expr, "ty", None)
        if not isinstance(kind, relax.TensorType) or kind.shape is None:
            return False
        return list(map(_static, kind.shape)) == list(value.shape) and _dtype(kind) == str(value.dtype)[6:]
    return True


def _static(dim: Any) -> int | None:
    value = getattr(dim, "value", dim)
    return value if isinstance(value, int) else None


def _dtype(kind: Any) -> str:
    dtype = kind.dtype
    return str(getattr(dtype, "dtype", dtype))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1][:200] if text else type(error).__name__


def _signed_value(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return (value.shape, value.dtype)
    return tuple([_signed_value(v) for v in value]) if isinstance(value, (list, tuple)) else (type(value), value)


def _type_of(put_out: Any) -> Hashable:
    """The type of what stands for a call's result; of what has none, which thing it is (it stays alive)."""
    if isinstance(put_out, (list, tuple)):
        return (type(put_out), *map(_type_of, put_out))
    kind = put_out.ty if isinstance(put_out, relax.Expr) else None
    if isinstance(put_out, relax.Var) and isinstance(kind, relax.TensorType) and kind.shape is not None:
        dims = [d for d in map(_static, kind.shape) if d is not None]
        if len(dims) == len(kind.shape):
            return (torch.Size(dims), _dtype(kind))
    return id(put_out)


def names_in_relax(graph: fx.Graph) -> dict[fx.Node, tuple[str, ...]]:
    """For each call of an fx graph (run on meta before, see `meta_run`), the Relax operators that express it, in order.

    Raises UnsupportedOperator, naming the operator.
    """
    return _MetaImporter().translate(graph)


@dataclass(frozen=True)
class RelaxCall:
    """One call of a Relax function: what it reads (values by name, numbers, tuples of them) and what it puts out."""

    operator: str
    inputs: tuple[Any, ...]
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]
    specs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class RelaxFunction:
    """A Relax function as plain values."""

    calls: tuple[RelaxCall, ...]
    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...]
    constants: Mapping[str, tuple[TensorSpec, Any]]
    """Spec and, for small ones, elements (else None)."""


_CONSTANT = type(relax.const(0))
KEPT_ELEMENTS = 4096
"""Constants of at most so many elements keep their data."""
_ATTRIBUTES = (
    "strides", "padding", "dilation", "groups", "data_layout", "kernel_layout", "output_padding", "pool_size", "layout",
    "ceil_mode", "count_include_pad", "axis", "keepdims", "axes", "pad_width", "pad_value", "pad_mode", "alpha",
    "method",
)  # fmt: skip


def express_tflite_in_relax(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> RelaxFunction:
    """A `tflite.Model` by TVM's own frontend, its large weights typed and not read; `shapes` of the inputs by name."""
    from tvm.relax.frontend.tflite import from_tflite
    from tvm.relax.frontend.tflite.tflite_frontend import OperatorConverter

    def constant(value: Any, shape: Any = None, dtype: str = "float32", source_name: Any = None) -> Any:
        if value.size <= KEPT_ELEMENTS:
            return relax.const(value, dtype)
        return relax.const(tvm.runtime.empty(tuple(value.shape), dtype))

    class Weightless(OperatorConverter):  # type: ignore[misc]  # TVM ships no types
        def __init__(self, model: Any, subgraph: Any, table: Any, *rest: Any) -> None:
            table.new_const = constant
            super().__init__(model, subgraph, table, *rest)

            self.convert_map["SHAPE"] = self.shape_as_constant

        def shape_as_constant(self, op: Any) -> Any:
            """Shapes are known, so that what is computed from them is."""
            value = self.bb.normalize(self.get_tensor_expr(self.get_input_tensors(op)[0]))
            return relax.const(np.array(_spec(value.ty).shape, dtype=np.int32))

        def convert_reshape(self, op: Any) -> Any:
            """To the shape that is computed, or the file's with a first dimension as large as the batch asks."""
            value, *target = (self.get_tensor_expr(t) for t in self.get_input_tensors(op))
            value = self.bb.normalize(value)
            computed = _computed(target[0], self.bb) if target else None
            if computed is None:
                computed = self.get_output_tensors(op)[0].tensor.ShapeAsNumpy()
            shape = [int(d) for d in np.reshape(computed, -1)]
            whole, part = _spec(value.ty).numel, math.prod(shape)
            if part > 0 and whole % part == 0:
                shape[0] *= whole // part
            return relax.op.reshape(value, shape)

    return _plain(from_tflite(model, shape_dict=dict(shapes), op_converter=Weightless)["main"])


_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply, "maximum": np.maximum, "minimum": np.minimum,
    "floor_divide": np.floor_divide, "divide": np.floor_divide,
}  # fmt: skip


def _computed(expr: Any, builder: Any) -> np.ndarray[Any, Any] | None:
    """The whole numbers that an expression of constants gives (shape arithmetic); None for any other."""
    if isinstance(expr, relax.Var):
        expr = builder.lookup_binding(expr)
    if isinstance(expr, _CONSTANT):
        elements: np.ndarray[Any, Any] = expr.value.numpy()
        return elements if elements.dtype.kind in "iu" else None
    if not isinstance(expr, relax.Call):
        return None
    name, attributes = str(getattr(expr.op, "name", "")).removeprefix("relax."), expr.attrs
    fields = list(expr.args[0].fields) if expr.args and isinstance(expr.args[0], relax.Tuple) else [expr.args[0]]
    parts = [_computed(f, builder) for f in fields]
    if any(p is None for p in parts):
        return None
    first = parts[0]
    if name == "concat":
        return np.concatenate(parts, int(attributes.axis or 0))  # type: ignore[arg-type]  # none is None
    if name in _ARITHMETIC:
        second = _computed(expr.args[1], builder)
        return None if second is None else np.asarray(_ARITHMETIC[name](first, second))
    if name == "take":
        second = _computed(expr.args[1], builder)
        return None if second is None else np.take(first, second, int(attributes.axis or 0))  # type: ignore[arg-type]
    if name in ("prod", "sum", "max", "min"):
        return np.asarray(getattr(np, name)(first))
    if name in ("astype", "reshape", "expand_dims", "squeeze"):
        shape = _spec(expr.ty).shape if isinstance(expr.ty, relax.TensorType) else (-1,)
        return np.reshape(first, shape)  # type: ignore[arg-type]
    if name == "strided_slice":
        begin, end = ([int(_number(v)) for v in a.fields] for a in expr.args[2:4])
        if len(begin) == 1:
            return first[begin[0] : end[0]]  # type: ignore[index]
    return None


def _plain(function: Any) -> RelaxFunction:
    constants: dict[str, tuple[TensorSpec, Any]] = {}
    calls: list[RelaxCall] = []
    names: dict[Any, tuple[str, ...]] = {v: (str(v.name),) for v in function.params}

    def operand(value: Any) -> Any:
        if isinstance(value, relax.Var):
            return names[value][0]
        if isinstance(value, _CONSTANT):
            if value not in names:
                name = f"weight_{len(constants)}"
                spec = _spec(value.ty)
                constants[name] = (spec, value.value.numpy() if spec.numel <= KEPT_ELEMENTS else None)
                names[value] = (name,)
            return names[value][0]
        if isinstance(value, relax.Tuple):
            return tuple(operand(v) for v in value.fields)
        if isinstance(value, relax.ShapeExpr):
            return tuple(_static(v) for v in value.values)
        return _number(value)

    def bound(value: Any) -> tuple[str, ...]:
        if isinstance(value, relax.TupleGetItem):
            return (names[value.tuple_value][value.index],)
        if isinstance(value, relax.Var):
            return names[value]
        if not isinstance(value, relax.Call):
            named = operand(value)
            return named if isinstance(named, tuple) else (named,)
        kinds = list(value.ty.fields) if isinstance(value.ty, relax.TupleType) else [value.ty]
        outputs = tuple(f"value_{len(calls)}_{i}" for i in range(len(kinds)))
        calls.append(
            RelaxCall(
                operator=str(getattr(value.op, "name", value.op)).removeprefix("relax."),
                inputs=tuple(operand(a) for a in value.args),
                attributes={n: _number(getattr(value.attrs, n)) for n in _ATTRIBUTES if hasattr(value.attrs, n)},
                outputs=outputs,
                specs=tuple(_spec(kind) for kind in kinds),
            )
        )
        return outputs

    for block in function.body.blocks:
        for binding in block.bindings:
            names[binding.var] = bound(binding.value)
    inputs = {names[v][0]: _spec(v.ty) for v in function.params}
    outputs = bound(function.body.body)
    return RelaxFunction(_needed(calls, outputs), inputs, outputs, constants)


def _needed(calls: list[RelaxCall], outputs: tuple[str, ...]) -> tuple[RelaxCall, ...]:
    """The calls that lead to the outputs: shape arithmetic whose result the reader knew does not."""
    read = set(outputs)
    kept = []
    for call in reversed(calls):
        if read.intersection(call.outputs):
            kept.append(call)
            for value in call.inputs:
                read.update(v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, str))
    return tuple(reversed(kept))


def _spec(kind: Any) -> TensorSpec:
    if not isinstance(kind, relax.TensorType) or kind.shape is None:
        raise UnsupportedOperator("a value whose shape depends on the input's data is not supported")
    shape = tuple(map(_static, kind.shape))
    if any(d is None for d in shape):
        raise UnsupportedOperator("a value whose shape depends on the input's data is not supported")
    return TensorSpec(tuple(d for d in shape if d is not None), _dtype(kind))


def _number(value: Any) -> Any:
    """An attribute as plain Python has it."""
    if value is None or isinstance(value, (int, float, str, bool)):
        return value
    if hasattr(value, "value"):
        return value.value
    if hasattr(value, "__len__"):
        return tuple(_number(v) for v in value)
    return str(value)
