"""Relax calls of a TFLite file as an ONNX graph, channels first.

TFLite holds images as (batch, height, width, channels). A value that a convolution or a pooling made is written as
(batch, channels, height, width), and so is what is computed from it element by element; a transpose is written only
where an operator needs the file's own order. A bias that is added to a convolution goes into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dippm.errors import UnsupportedOperator
from dippm.frontend.relax.tflite import RelaxCall, RelaxFunction
from dippm.graph import TensorSpec

OPSET = 20
_FIRST, _LAST = (0, 3, 1, 2), (0, 2, 3, 1)
"""Permutations to channels first and to channels last."""
_UNARY = {
    "nn.relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "sqrt": "Sqrt", "erf": "Erf", "log": "Log",
    "negative": "Neg", "abs": "Abs", "floor": "Floor", "ceil": "Ceil", "round": "Round", "sin": "Sin", "cos": "Cos",
    "sign": "Sign", "logical_not": "Not", "nn.gelu": "Gelu", "nn.silu": "Swish", "tan": "Tan",
}  # fmt: skip
_BINARY = {
    "add": "Add", "subtract": "Sub", "multiply": "Mul", "divide": "Div", "maximum": "Max", "minimum": "Min",
    "power": "Pow", "mod": "Mod", "floor_mod": "Mod", "less": "Less", "less_equal": "LessOrEqual", "greater": "Greater",
    "greater_equal": "GreaterOrEqual", "equal": "Equal", "logical_and": "And", "logical_or": "Or", "logical_xor": "Xor",
}  # fmt: skip
_REDUCTIONS = {"mean": "ReduceMean", "sum": "ReduceSum", "max": "ReduceMax", "min": "ReduceMin", "prod": "ReduceProd"}


def onnx_of(function: RelaxFunction) -> onnx.ModelProto:
    """The ONNX model; weights that have no data are initializers without any. Raises UnsupportedOperator."""
    return _Writer(function).model()


class _Writer:
    def __init__(self, function: RelaxFunction) -> None:
        self._function = function
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._specs: dict[str, TensorSpec] = {**function.inputs, **{n: s for n, (s, _) in function.constants.items()}}
        self._names: dict[str, str] = {name: name for name in self._specs}
        self._first: set[str] = set()
        self._orders: dict[tuple[str, bool], str] = {}
        read = [r for c in function.calls for i in c.inputs for r in (i if isinstance(i, tuple) else (i,))]
        self._uses = Counter([*(r for r in read if isinstance(r, str)), *function.outputs])
        self._convolutions: dict[str, onnx.NodeProto] = {}

    def model(self) -> onnx.ModelProto:
        for name, (spec, data) in self._function.constants.items():
            if data is not None and (len(spec.shape) < 2 or not spec.dtype.startswith("float")):
                self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(data), name))
            else:
                tensor = TensorProto(name=name, data_type=_dtype(spec.dtype))
                tensor.dims.extend(spec.shape)
                self._initializers.append(tensor)
        for call in self._function.calls:
            self._specs.update(zip(call.outputs, call.specs, strict=True))
            self._write(call)
        ends = [self._last(o) for o in self._function.outputs]
        graph = helper.make_graph(
            self._nodes,
            "tflite",
            [helper.make_tensor_value_info(n, _dtype(s.dtype), s.shape) for n, s in self._function.inputs.items()],
            [
                helper.make_tensor_value_info(e, _dtype(self._specs[o].dtype), self._specs[o].shape)
                for e, o in zip(ends, self._function.outputs, strict=True)
            ],
            self._initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)

    def _emit(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
        node = helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes)
        self._nodes.append(node)
        return node

    def _ints(self, values: Sequence[int], near: str) -> str:
        return self._array(np.array(values, dtype=np.int64), near)

    def _array(self, array: np.ndarray[Any, Any], near: str) -> str:
        name = f"{near}_setting{len(self._initializers)}"
        self._initializers.append(numpy_helper.from_array(array, name))
        return name

    def _first_of(self, value: str) -> str:
        """The value, channels first."""
        return self._names[value] if value in self._first else self._ordered(value, _FIRST, True)

    def _last(self, value: str) -> str:
        """The value in the file's own order."""
        return self._ordered(value, _LAST, False) if value in self._first else self._names[value]

    def _ordered(self, value: str, order: tuple[int, ...], first: bool) -> str:
        key = (value, first)
        if key not in self._orders:
            name = f"{self._names[value]}_{'first' if first else 'last'}"
            shape = self._specs[value].shape
            if shape[1:3] == (1, 1):  # the same elements in the same order
                self._emit("Reshape", [self._names[value], self._ints([shape[i] for i in order], name) if first
                                       else self._ints(shape, name)], [name])  # fmt: skip
            else:
                self._emit("Transpose", [self._names[value]], [name], perm=order)
            self._orders[key] = name
        return self._orders[key]

    def _weight(self, value: str, layout: str, wanted: str) -> str:
        """A kernel in the order of dimensions that ONNX has."""
        name = f"{value}_{wanted}"
        self._emit("Transpose", [self._names[value]], [name], perm=[layout.index(letter) for letter in wanted])
        return name

    def _write(self, call: RelaxCall) -> None:
        operator = call.operator
        self._names.update({o: o for o in call.outputs})
        if operator in _UNARY:
            self._elementwise(_UNARY[operator], call, call.inputs[:1])
        elif operator in _BINARY:
            self._binary(call)
        elif operator in _REDUCTIONS:
            self._reduce(call)
        elif (rule := _RULES.get(operator)) is not None:
            rule(self, call)
        else:
            raise UnsupportedOperator(f"operator relax.{operator} of a TFLite file is not supported")

    def _elementwise(self, kind: str, call: RelaxCall, values: Sequence[Any], *more: str, **attributes: Any) -> None:
        """An operator that treats every element alike: in the order in which its first operand is held."""
        held = values[0]
        if held in self._first:
            self._first.add(call.outputs[0])
        self._emit(kind, [self._names[held], *more], call.outputs[:1], **attributes)

    def _binary(self, call: RelaxCall) -> None:
        left, right = call.inputs[:2]
        output = call.outputs[0]
        convolution = self._convolutions.get(left)
        if (
            call.operator == "add"
            and convolution is not None
            and self._uses[left] == 1
            and self._is_vector(right, left)
        ):
            convolution.input.append(self._names[right])
            self._names[output] = self._names[left]
            self._first.add(output)
            return
        operands = [left, right]
        if any(o in self._first for o in operands):
            self._first.add(output)
            names = [self._broadcast(o, len(call.specs[0].shape)) for o in operands]
        else:
            names = [self._names[o] for o in operands]
        self._emit(_BINARY[call.operator], names, [output])

    def _is_vector(self, value: Any, beside: str) -> bool:
        spec = self._specs.get(value)
        return value in self._function.constants and spec is not None and spec.shape == self._specs[beside].shape[-1:]

    def _broadcast(self, value: str, rank: int) -> str:
        """An operand beside one that is channels first."""
        shape = self._specs[value].shape
        if value in self._first or not shape or int(np.prod(shape)) == 1:
            return self._names[value]
        if len(shape) == rank:
            return self._first_of(value)
        name = f"{self._names[value]}_wide"
        padded = (1,) * (rank - len(shape)) + shape
        self._emit("Reshape", [self._names[value], self._ints([padded[i] for i in _FIRST], name)], [name])
        if padded[1:3] != (1, 1):
            raise UnsupportedOperator("a TFLite operator broadcasts over an image in a way that is not supported")
        return name

    def _reduce(self, call: RelaxCall) -> None:
        value, output = call.inputs[0], call.outputs[0]
        rank = len(self._specs[value].shape)
        axes = call.attributes.get("axis")
        axes = (
            tuple(range(rank))
            if axes is None
            else tuple(a % rank for a in (axes if isinstance(axes, tuple) else (axes,)))
        )
        keep = bool(call.attributes.get("keepdims"))
        if value in self._first and axes == (1, 2) and call.operator == "mean":
            pooled = output if keep else f"{output}_pooled"
            self._emit("GlobalAveragePool", [self._names[value]], [pooled])
            if keep:
                self._first.add(output)
            else:
                self._emit("Flatten", [pooled], [output], axis=1)
            return
        name = self._names[value]
        if value in self._first:
            if keep or axes == (1, 2):
                axes = tuple(sorted(_FIRST.index(a) for a in axes))
                if keep:
                    self._first.add(output)
            else:
                name = self._last(value)
        kind = _REDUCTIONS[call.operator]
        self._emit(kind, [name, self._ints(axes, output)], [output], keepdims=int(keep))

    def _conv(self, call: RelaxCall) -> None:
        value, kernel = call.inputs[:2]
        a = call.attributes
        transposed = call.operator.endswith("transpose")
        weight = self._weight(kernel, a["kernel_layout"], "IOHW" if transposed else "OIHW")
        given = {"strides": a["strides"], "pads": _pads(a["padding"]), "dilations": a["dilation"], "group": a["groups"]}
        if transposed:
            given["output_padding"] = a["output_padding"]
        node = self._emit(
            "ConvTranspose" if transposed else "Conv", [self._first_of(value), weight], call.outputs, **given
        )
        self._convolutions[call.outputs[0]] = node
        self._first.add(call.outputs[0])

    def _pool(self, call: RelaxCall) -> None:
        a = call.attributes
        average = "avg" in call.operator
        given: dict[str, Any] = {"count_include_pad": int(bool(a.get("count_include_pad")))} if average else {}
        self._emit(
            "AveragePool" if average else "MaxPool",
            [self._first_of(call.inputs[0])],
            call.outputs,
            kernel_shape=a["pool_size"],
            strides=a["strides"],
            pads=_pads(a["padding"]),
            ceil_mode=int(bool(a.get("ceil_mode"))),
            **given,
        )
        self._first.add(call.outputs[0])

    def _pad(self, call: RelaxCall) -> None:
        value, output = call.inputs[0], call.outputs[0]
        widths = call.attributes["pad_width"]
        pairs = [(widths[2 * i], widths[2 * i + 1]) for i in range(len(widths) // 2)]
        if value in self._first:
            pairs = [pairs[i] for i in _FIRST]
            self._first.add(output)
        mode = {"constant": "constant", "reflect": "reflect"}.get(str(call.attributes.get("pad_mode")), "constant")
        self._emit("Pad", [self._names[value], self._ints([p[0] for p in pairs] + [p[1] for p in pairs], output)],
                   [output], mode=mode)  # fmt: skip

    def _softmax(self, call: RelaxCall) -> None:
        value = call.inputs[0]
        kind = "LogSoftmax" if "log" in call.operator else "Softmax"
        self._emit(kind, [self._last(value)], call.outputs, axis=call.attributes.get("axis", -1))

    def _clip(self, call: RelaxCall) -> None:
        dtype = np.dtype(call.specs[0].dtype)
        bounds = [self._array(np.array(b, dtype=dtype), call.outputs[0]) for b in call.inputs[1:3]]
        self._elementwise("Clip", call, call.inputs[:1], *bounds)

    def _rsqrt(self, call: RelaxCall) -> None:
        value, output = call.inputs[0], call.outputs[0]
        self._emit("Sqrt", [self._names[value]], [f"{output}_root"])
        self._emit("Reciprocal", [f"{output}_root"], [output])
        if value in self._first:
            self._first.add(output)

    def _square(self, call: RelaxCall) -> None:
        name = self._names[call.inputs[0]]
        if call.inputs[0] in self._first:
            self._first.add(call.outputs[0])
        self._emit("Mul", [name, name], call.outputs)

    def _leaky(self, call: RelaxCall) -> None:
        self._elementwise("LeakyRelu", call, call.inputs[:1], alpha=float(call.attributes.get("alpha") or 0.01))

    def _cast(self, call: RelaxCall) -> None:
        self._elementwise("Cast", call, call.inputs[:1], to=_dtype(call.specs[0].dtype))

    def _concat(self, call: RelaxCall) -> None:
        values, axis = call.inputs[0], call.attributes.get("axis") or 0
        rank = len(call.specs[0].shape)
        if rank == 4 and any(v in self._first for v in values):
            self._first.add(call.outputs[0])
            self._emit("Concat", [self._first_of(v) for v in values], call.outputs, axis=_FIRST.index(axis % rank))
        else:
            self._emit("Concat", [self._last(v) for v in values], call.outputs, axis=axis)

    def _split(self, call: RelaxCall) -> None:
        axis = int(call.attributes.get("axis") or 0)
        sizes = self._ints([s.shape[axis] for s in call.specs], call.outputs[0])
        self._emit("Split", [self._last(call.inputs[0]), sizes], call.outputs, axis=axis)

    def _reshape(self, call: RelaxCall) -> None:
        target = self._ints(call.specs[0].shape, call.outputs[0])
        self._emit("Reshape", [self._last(call.inputs[0]), target], call.outputs)

    def _expand(self, call: RelaxCall) -> None:
        target = self._ints(call.specs[0].shape, call.outputs[0])
        self._emit("Expand", [self._last(call.inputs[0]), target], call.outputs)

    def _permute(self, call: RelaxCall) -> None:
        axes = call.attributes.get("axes") or tuple(reversed(range(len(call.specs[0].shape))))
        self._emit("Transpose", [self._last(call.inputs[0])], call.outputs, perm=axes)

    def _matmul(self, call: RelaxCall) -> None:
        self._emit("MatMul", [self._last(v) for v in call.inputs[:2]], call.outputs)

    def _take(self, call: RelaxCall) -> None:
        axis = int(call.attributes.get("axis") or 0)
        self._emit("Gather", [self._last(v) for v in call.inputs[:2]], call.outputs, axis=axis)

    def _slice(self, call: RelaxCall) -> None:
        value, axes, begin, end, *strides = call.inputs
        settings = [begin, end, axes, *strides[:1]]
        if any(not isinstance(s, tuple) or any(not isinstance(i, int) for i in s) for s in settings if s is not None):
            raise UnsupportedOperator("a slice of a TFLite file depends on the input's data, which is not supported")
        names = [self._ints(s, call.outputs[0]) for s in settings if s is not None]
        self._emit("Slice", [self._last(value), *names], call.outputs)

    def _where(self, call: RelaxCall) -> None:
        self._emit("Where", [self._last(v) for v in call.inputs[:3]], call.outputs)

    def _resize(self, call: RelaxCall) -> None:
        batch, height, width, channels = call.specs[0].shape
        sizes = self._ints([batch, channels, height, width], call.outputs[0])
        mode = "nearest" if "nearest" in str(call.attributes.get("method")) else "linear"
        self._emit("Resize", [self._first_of(call.inputs[0]), "", "", sizes], call.outputs, mode=mode)
        self._first.add(call.outputs[0])


def _pads(padding: tuple[int, ...]) -> tuple[int, ...]:
    """Top, left, bottom, right; Relax may give one number a side or a pair."""
    return padding if len(padding) == 4 else tuple(padding) * (4 // len(padding))


def _dtype(name: str) -> int:
    return int(TensorProto.BFLOAT16 if name == "bfloat16" else helper.np_dtype_to_tensor_dtype(np.dtype(name)))


_RULES: Mapping[str, Callable[[_Writer, RelaxCall], None]] = {
    "nn.conv2d": _Writer._conv, "nn.conv2d_transpose": _Writer._conv, "nn.max_pool2d": _Writer._pool,
    "nn.avg_pool2d": _Writer._pool, "nn.pad": _Writer._pad, "nn.softmax": _Writer._softmax,
    "nn.log_softmax": _Writer._softmax, "clip": _Writer._clip, "rsqrt": _Writer._rsqrt, "square": _Writer._square,
    "nn.leakyrelu": _Writer._leaky, "astype": _Writer._cast, "concat": _Writer._concat, "split": _Writer._split,
    "reshape": _Writer._reshape, "expand_dims": _Writer._reshape, "squeeze": _Writer._reshape,
    "flatten": _Writer._reshape, "broadcast_to": _Writer._expand, "permute_dims": _Writer._permute,
    "matmul": _Writer._matmul, "take": _Writer._take, "strided_slice": _Writer._slice, "where": _Writer._where,
    "image.resize2d": _Writer._resize,
}  # fmt: skip
