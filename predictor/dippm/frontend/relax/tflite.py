"""A TFLite model expressed in Relax by TVM's own frontend, and as plain values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from dippm.errors import UnsupportedOperator
from dippm.frontend.relax.types import dtype_of, static_dim
from dippm.graph import TensorSpec


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
            return tuple(static_dim(v) for v in value.values)
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
    shape = tuple(map(static_dim, kind.shape))
    if any(d is None for d in shape):
        raise UnsupportedOperator("a value whose shape depends on the input's data is not supported")
    return TensorSpec(tuple(d for d in shape if d is not None), dtype_of(kind))


def _number(value: Any) -> Any:
    """An attribute as plain Python has it."""
    if value is None or isinstance(value, (int, float, str, bool)):
        return value
    if hasattr(value, "value"):
        return value.value
    if hasattr(value, "__len__"):
        return tuple(_number(v) for v in value)
    return str(value)
