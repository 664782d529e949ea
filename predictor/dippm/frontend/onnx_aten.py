"""ONNX operators as the ATen calls that PyTorch makes for the same work.

Spec: https://onnx.ai/onnx/operators. So a network is the same graph whatever its door: from here on an ONNX file takes
the path of an exported program (`exported_program`), with its strides, its views and its attributes. What is not in
the table, or comes out in another shape than ONNX's own inference says, stays a foreign call under ONNX's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import fx

from dippm.frontend.onnx_steps import Step, same_padding
from dippm.graph import TensorSpec

if TYPE_CHECKING:
    from dippm.frontend.onnx_fold import StaticGraph

aten = torch.ops.aten
Emitted = fx.Node | Sequence[fx.Node] | None


class Calls(Protocol):
    """Where calls are written down (`onnx_program`)."""

    static: StaticGraph

    def read(self, name: str) -> fx.Node:
        """The node of a value; weights and constants become graph inputs when first read."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write one call down and run it on the meta device."""

    def part(self, node: fx.Node, index: int) -> fx.Node:
        """One output of a call with several."""

    def value(self, node: fx.Node) -> Any:
        """What a node puts out on the meta device."""


class Given:
    """One operator's operands and attributes, as its converter reads them."""

    def __init__(self, calls: Calls, step: Step) -> None:
        self.calls = calls
        self.step = step
        self.node = step.nodes[-1]
        self.call = calls.call

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the ONNX node as it stands there."""
        return self.step.given.get(name, default)

    def has(self, position: int) -> bool:
        """Whether an optional operand is given."""
        return position < len(self.node.input) and bool(self.node.input[position])

    def x(self, position: int = 0) -> fx.Node:
        """An operand."""
        return self.calls.read(self.node.input[position])

    def optional(self, position: int) -> fx.Node | None:
        """An operand, or None."""
        return self.x(position) if self.has(position) else None

    def spec(self, position: int = 0) -> TensorSpec:
        """Shape and dtype of an operand."""
        return self.calls.static.specs[self.node.input[position]]

    @property
    def out(self) -> TensorSpec:
        """Shape and dtype of the first output."""
        return self.calls.static.specs[self.step.outputs[0]]

    @property
    def rank(self) -> int:
        """Dimensions of the first operand."""
        return len(self.spec().shape)

    def constant(self, position: int) -> np.ndarray[Any, Any] | None:
        """The elements of a constant operand."""
        return self.calls.static.constants.get(self.node.input[position]) if self.has(position) else None

    def numbers(self, position: int, attribute: str = "") -> list[int] | None:
        """Integers of a constant operand, or of the attribute that older opsets have in its place."""
        array = self.constant(position)
        if array is not None:
            return [int(i) for i in array.reshape(-1)]
        given = self.attribute(attribute)
        return None if given is None else [given] if isinstance(given, int) else list(given)

    def scalar(self, position: int) -> Any:
        """The number that a constant operand of one element stands for; None where it is a tensor."""
        array = self.constant(position)
        if array is None or array.size != 1 or array.ndim > 1 or array.dtype.kind not in "fiub":
            return None
        return array.reshape(-1)[0].item()


Converter = Callable[[Given], Emitted]


def _unary(target: Any) -> Converter:
    return lambda g: g.call(target, g.x())


def _activation(target: Any, in_place: Any) -> Converter:
    return lambda g: g.call(in_place if g.step.in_place else target, g.x())


def _with_number(target: Any, name: str, default: float) -> Converter:
    return lambda g: g.call(target, g.x(), float(g.attribute(name, default)))


def _commutative(target: Any, in_place: Any = None) -> Converter:
    """A number on either side is an argument; a tensor of the result's shape comes first."""

    def convert(g: Given) -> Emitted:
        left, right = g.scalar(0), g.scalar(1)
        if right is not None:
            return g.call(target, g.x(0), right)
        if left is not None:
            return g.call(target, g.x(1), left)
        return g.call(in_place if in_place and g.step.in_place else target, g.x(0), g.x(1))

    return convert


def _subtract(g: Given) -> Emitted:
    if (left := g.scalar(0)) is not None:
        return g.call(aten.rsub.Scalar, g.x(1), left)
    right = g.scalar(1)
    return g.call(aten.sub.Tensor, g.x(0), g.x(1) if right is None else right)


def _divide(g: Given) -> Emitted:
    left, right = g.scalar(0), g.scalar(1)
    if g.out.dtype.startswith(("int", "uint")):
        divisor = g.x(1) if right is None else right
        return g.call(aten.div.Tensor_mode, g.x(0), divisor, rounding_mode="trunc")
    if left is not None:
        inverse = g.call(aten.reciprocal.default, g.x(1))
        return inverse if left == 1 else g.call(aten.mul.Tensor, inverse, left)
    return g.call(aten.div.Tensor, g.x(0), g.x(1) if right is None else right)


def _power(g: Given) -> Emitted:
    exponent, base = g.scalar(1), g.scalar(0)
    if exponent is not None:
        whole = int(exponent) if float(exponent).is_integer() else exponent
        return g.call(aten.pow.Tensor_Scalar, g.x(0), whole)
    return g.call(aten.pow.Tensor_Tensor, g.x(0), g.x(1)) if base is None else g.call(aten.pow.Scalar, base, g.x(1))


def _compare(name: str) -> Converter:
    packet = getattr(aten, name)
    mirrored = getattr(aten, {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}.get(name, name))

    def convert(g: Given) -> Emitted:
        left, right = g.scalar(0), g.scalar(1)
        if right is not None:
            return g.call(packet.Scalar, g.x(0), right)
        return g.call(packet.Tensor, g.x(0), g.x(1)) if left is None else g.call(mirrored.Scalar, g.x(1), left)

    return convert


def _extreme(target: Any, clamp: Any) -> Converter:
    def convert(g: Given) -> Emitted:
        if len(g.node.input) == 1:
            return g.x()
        for number, tensor in ((g.scalar(1), 0), (g.scalar(0), 1)):
            if number is not None and len(g.node.input) == 2:
                return g.call(clamp, g.x(tensor), number)
        result = g.x(0)
        for position in range(1, len(g.node.input)):
            result = g.call(target, result, g.x(position))
        return result

    return convert


def _sum_of(g: Given) -> Emitted:
    result = g.x(0)
    for position in range(1, len(g.node.input)):
        result = g.call(aten.add.Tensor, result, g.x(position))
    return result


def _clip(g: Given) -> Emitted:
    low, high = (g.attribute(n, g.scalar(p)) for n, p in (("min", 1), ("max", 2)))
    if (low, high) == (0, 6):
        target = aten.hardtanh_.default if g.step.in_place else aten.hardtanh.default
        return g.call(target, g.x(), 0.0, 6.0)
    if low is None and high is None:
        return None
    return g.call(aten.clamp.default, g.x(), low, high)


def _where(g: Given) -> Emitted:
    first, second = g.scalar(1), g.scalar(2)
    if first is not None and second is not None:
        return None
    if second is not None:
        return g.call(aten.where.ScalarOther, g.x(0), g.x(1), second)
    if first is not None:
        return g.call(aten.masked_fill.Scalar, g.x(2), g.x(0), first)
    return g.call(aten.where.self, g.x(0), g.x(1), g.x(2))


def _matmul(g: Given) -> Emitted:
    return g.call(aten.matmul.default, g.x(0), g.x(1))


def _linear(g: Given) -> Emitted:
    x, weight, *bias = g.step.inputs
    read = g.calls.read
    return g.call(aten.linear.default, read(x), read(weight), *map(read, bias))


def _gemm(g: Given) -> Emitted:
    if g.attribute("alpha", 1.0) != 1 or g.attribute("beta", 1.0) != 1 or g.attribute("transA", 0):
        return None
    if g.attribute("transB", 0):
        return _linear(g)
    product, added = g.call, g.optional(2)
    if added is None:
        return product(aten.mm.default, g.x(0), g.x(1))
    return product(aten.addmm.default, added, g.x(0), g.x(1))


def _spatial(g: Given, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and padding before and after, one number a spatial dimension."""
    count = len(kernel)
    stride = list(g.attribute("strides") or [1] * count)
    dilation = list(g.attribute("dilations") or [1] * count)
    pads = list(g.attribute("pads") or [0] * (2 * count))
    mode = str(g.attribute("auto_pad", "NOTSET"))
    if mode.startswith("SAME"):
        pads = same_padding(g.spec().shape[2:], kernel, stride, dilation, at_end=mode == "SAME_UPPER")
    return stride, dilation, pads[:count], pads[count:]


def _padded(g: Given, before: list[int], after: list[int], value: float | None) -> tuple[fx.Node, list[int]]:
    """The input, padded by a call of its own where both ends differ, and what padding is left."""
    if before == after:
        return g.x(), before
    flat = [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]
    return g.call(aten.pad.default, g.x(), flat, "constant", value), [0] * len(before)


def _convolution(g: Given) -> Emitted:
    kernel = g.spec(1).shape[2:]
    stride, dilation, before, after = _spatial(g, kernel)
    x, padding = _padded(g, before, after, None)
    target = getattr(aten, f"conv{len(kernel)}d").default
    bias = None if g.step.without_bias else g.optional(2)
    return g.call(target, x, g.x(1), bias, stride, padding, dilation, int(g.attribute("group", 1)))


def _convolution_transpose(g: Given) -> Emitted:
    kernel = g.spec(1).shape[2:]
    stride, dilation, before, after = _spatial(g, kernel)
    if before != after or g.attribute("output_shape"):
        return None
    packet = getattr(aten, f"conv_transpose{len(kernel)}d")
    target = packet.input if len(kernel) > 1 else packet.default
    extra = list(g.attribute("output_padding") or [0] * len(kernel))
    group = int(g.attribute("group", 1))
    return g.call(target, g.x(), g.x(1), g.optional(2), stride, before, extra, group, dilation)


def _max_pool(g: Given) -> Emitted:
    kernel = list(g.attribute("kernel_shape"))
    stride, dilation, before, after = _spatial(g, kernel)
    x, padding = _padded(g, before, after, float("-inf"))
    ceil, count = bool(g.attribute("ceil_mode", 0)), len(kernel)
    if len(g.step.outputs) > 1:
        both = g.call(
            getattr(aten, f"max_pool{count}d_with_indices").default, x, kernel, stride, padding, dilation, ceil
        )
        return [g.calls.part(both, 0), g.calls.part(both, 1)]
    return g.call(getattr(aten, f"max_pool{count}d").default, x, kernel, stride, padding, dilation, ceil)


def _average_pool(g: Given) -> Emitted:
    kernel = list(g.attribute("kernel_shape"))
    stride, _, before, after = _spatial(g, kernel)
    counted = bool(g.attribute("count_include_pad", 0))
    if before != after and not counted:
        return None
    x, padding = _padded(g, before, after, None)
    ceil = bool(g.attribute("ceil_mode", 0))
    return g.call(getattr(aten, f"avg_pool{len(kernel)}d").default, x, kernel, stride, padding, ceil, counted)


def _global_average(g: Given) -> Emitted:
    count = g.rank - 2
    return g.call(getattr(aten, f"adaptive_avg_pool{count}d").default, g.x(), [1] * count)


def _global_max(g: Given) -> Emitted:
    return g.calls.part(g.call(aten.adaptive_max_pool2d.default, g.x(), [1, 1]), 0) if g.rank == 4 else None


def _epsilon(g: Given) -> float:
    """As the framework says it: ONNX holds it in single precision."""
    return float(f"{g.attribute('epsilon', 1e-5):.6g}")


def _batch_norm(g: Given) -> Emitted:
    x, weight, bias, mean, variance = map(g.calls.read, g.step.inputs)
    return g.call(aten.batch_norm.default, x, weight, bias, mean, variance, False, 0.1, _epsilon(g), True)


def _instance_norm(g: Given) -> Emitted:
    return g.call(aten.instance_norm.default, g.x(), g.x(1), g.x(2), None, None, True, 0.1, _epsilon(g), True)


def _layer_norm(g: Given) -> Emitted:
    x, *affine = g.step.inputs
    shape = g.calls.static.specs[x].shape
    axis = int(g.attribute("axis", -1)) % len(shape) if g.step.converter == "LayerNormalization" else len(shape) - 1
    read = g.calls.read
    epsilon = _epsilon(g)
    operands = [*map(read, affine), None, None][:2]
    more = () if epsilon == 1e-5 else (epsilon,)
    return g.call(aten.layer_norm.default, read(x), list(shape[axis:]), *operands, *more)


def _group_norm(g: Given) -> Emitted:
    groups = int(g.step.attributes.get("num_groups") or g.attribute("num_groups"))  # type: ignore[arg-type]
    read = g.calls.read
    return g.call(aten.group_norm.default, read(g.step.inputs[0]), groups, *map(read, g.step.inputs[1:]))


def _rms_norm(g: Given) -> Emitted:
    x, *weight = g.step.inputs
    shape = g.calls.static.specs[x].shape
    axis = int(g.attribute("axis", -1)) % len(shape)
    read = g.calls.read
    return g.call(aten.rms_norm.default, read(x), list(shape[axis:]), *map(read, weight))


def _softmax(target: Any) -> Converter:
    def convert(g: Given) -> Emitted:
        axis = int(g.attribute("axis", -1))
        return g.call(target, g.x(), -1 if axis == g.rank - 1 else axis)

    return convert


def _gelu(g: Given) -> Emitted:
    form = str(g.step.attributes.get("approximate") or g.attribute("approximate", "none"))
    x = g.calls.read(g.step.inputs[0])
    return g.call(aten.gelu.default, x, approximate=form) if form != "none" else g.call(aten.gelu.default, x)


def _gated(target: Any, in_place: Any) -> Converter:
    return lambda g: g.call(in_place if g.step.in_place else target, g.calls.read(g.step.inputs[0]))


def _cast(g: Given) -> Emitted:
    if g.out.dtype == g.spec().dtype:
        return g.x()
    return g.call(aten.to.dtype, g.x(), getattr(torch, g.out.dtype))


def _gather(g: Given) -> Emitted:
    axis = int(g.attribute("axis", 0)) % max(1, g.rank)
    index, weights = g.constant(1), g.calls.static.weights
    if index is not None and index.ndim == 0:
        return g.call(aten.select.int, g.x(), axis, int(index))
    if axis == 0 and g.rank == 2 and g.node.input[0] in weights:
        return g.call(aten.embedding.default, g.x(), g.x(1))
    if len(g.spec(1).shape) == 1 and axis:
        return g.call(aten.index_select.default, g.x(), axis, g.x(1))
    return g.call(aten.index.Tensor, g.x(), [None] * axis + [g.x(1)])


def _reduce(target: Any, *before: Any) -> Converter:
    def convert(g: Given) -> Emitted:
        axes = g.numbers(1, "axes")
        if not axes:
            if g.attribute("noop_with_empty_axes", 0):
                return g.x()
            axes = list(range(g.rank))
        return g.call(target, g.x(), *before, axes, bool(g.attribute("keepdims", 1)))

    return convert


def _mean(g: Given) -> Emitted:
    if g.step.kind.startswith("adaptive_avg_pool"):
        return _global_average(g)
    return _reduce(aten.mean.dim)(g)


def _extreme_index(target: Any) -> Converter:
    return lambda g: g.call(target, g.x(), int(g.attribute("axis", 0)), bool(g.attribute("keepdims", 1)))


def _top(g: Given) -> Emitted:
    count = g.numbers(1, "k")
    if not count:
        return None
    flags = bool(g.attribute("largest", 1)), bool(g.attribute("sorted", 1))
    both = g.call(aten.topk.default, g.x(), count[0], int(g.attribute("axis", -1)), *flags)
    return [g.calls.part(both, 0), g.calls.part(both, 1)][: len(g.step.outputs)]


def _cumulated(g: Given) -> Emitted:
    axis = g.numbers(1)
    if axis is None or g.attribute("exclusive", 0) or g.attribute("reverse", 0):
        return None
    return g.call(aten.cumsum.default, g.x(), axis[0])


def _triangle(g: Given) -> Emitted:
    offset = g.numbers(1) or [0]
    return g.call(aten.triu.default if g.attribute("upper", 1) else aten.tril.default, g.x(), offset[0])


def _resize(g: Given) -> Emitted:
    shape, out = g.spec().shape, g.out.shape
    count = len(shape) - 2
    mode = str(g.attribute("mode", "nearest"))
    if shape[:2] != out[:2] or count not in (1, 2, 3):
        return None
    size = list(out[2:])
    if mode == "nearest":
        return g.call(getattr(aten, f"upsample_nearest{count}d").vec, g.x(), size, None)
    align = g.attribute("coordinate_transformation_mode", "half_pixel") == "align_corners"
    name = {"linear": {1: "linear1d", 2: "bilinear2d", 3: "trilinear3d"}.get(count), "cubic": "bicubic2d"}[mode]
    return g.call(getattr(aten, f"upsample_{name}").vec, g.x(), size, align, None)


def _grid_sample(g: Given) -> Emitted:
    mode = {"linear": 0, "bilinear": 0, "nearest": 1, "cubic": 2, "bicubic": 2}[str(g.attribute("mode", "linear"))]
    padding = {"zeros": 0, "border": 1, "reflection": 2}[str(g.attribute("padding_mode", "zeros"))]
    return g.call(aten.grid_sampler.default, g.x(), g.x(1), mode, padding, bool(g.attribute("align_corners", 0)))


def _attention(g: Given) -> Emitted:
    """Attention put together of its parts: query, key, value and a mask, by the names of the step."""
    kwargs = {k: g.step.attributes[k] for k in ("is_causal", "scale", "enable_gqa") if k in g.step.attributes}
    operands = [g.calls.read(name) for name in g.step.inputs]
    if g.step.attributes.get("key_transposed"):
        operands[1] = g.call(aten.transpose.int, operands[1], -2, -1)
    return g.call(aten.scaled_dot_product_attention.default, *operands, **kwargs)


def _attention_operator(g: Given) -> Emitted:
    """ONNX's own Attention (opset 23) over four dimensions, without a cache."""
    if g.rank != 4 or len(g.step.outputs) > 1 or g.has(4) or g.has(5) or g.attribute("softcap", 0.0):
        return None
    kwargs: dict[str, Any] = {}
    if g.attribute("is_causal", 0):
        kwargs["is_causal"] = True
    if g.attribute("scale") is not None:
        kwargs["scale"] = float(g.attribute("scale"))
    if g.spec(0).shape[1] != g.spec(1).shape[1]:
        kwargs["enable_gqa"] = True
    mask = [g.x(3)] if g.has(3) else []
    return g.call(aten.scaled_dot_product_attention.default, g.x(0), g.x(1), g.x(2), *mask, **kwargs)


def _roll(g: Given) -> Emitted:
    named = g.step.attributes
    return g.call(aten.roll.default, g.calls.read(g.step.inputs[0]), list(named["shifts"]), list(named["dims"]))  # type: ignore[arg-type]


def _clone(g: Given) -> Emitted:
    """A call that was left away: a copy of what does not lie densely, a dropout of what does."""
    x = g.calls.read(g.step.inputs[0])
    if g.calls.value(x).is_contiguous():
        return g.call(aten.dropout.default, x, 0.0, False)
    return g.call(aten.clone.default, x, memory_format=torch.contiguous_format)


def _unbind(g: Given) -> Emitted:
    dim = int(g.step.attributes["dim"])  # type: ignore[arg-type]
    x = g.calls.read(g.step.inputs[0])
    many = g.call(aten.unbind.int, x, dim) if dim else g.call(aten.unbind.int, x)
    return [g.calls.part(many, i) for i in range(len(g.step.outputs))]


CONVERTERS: dict[str, Converter] = {
    "Relu": _activation(aten.relu.default, aten.relu_.default),
    "Sigmoid": _activation(aten.sigmoid.default, aten.sigmoid_.default),
    "Tanh": _activation(aten.tanh.default, aten.tanh_.default),
    "HardSigmoid": _activation(aten.hardsigmoid.default, aten.hardsigmoid_.default),
    "Mish": _activation(aten.mish.default, aten.mish_.default),
    "Selu": _activation(aten.selu.default, aten.selu_.default),
    "silu": _gated(aten.silu.default, aten.silu_.default),
    "hardswish": _gated(aten.hardswish.default, aten.hardswish_.default),
    "gelu": _gelu, "rsqrt": lambda g: g.call(aten.rsqrt.default, g.calls.read(g.step.inputs[0])),
    "linear": _linear, "layer_norm": _layer_norm, "group_norm": _group_norm, "rms_norm": _rms_norm,
    "roll": _roll, "clone": _clone, "unbind": _unbind, "attention": _attention, "Attention": _attention_operator,
    "Erf": _unary(aten.erf.default), "Exp": _unary(aten.exp.default), "Log": _unary(aten.log.default),
    "Sqrt": _unary(aten.sqrt.default), "Abs": _unary(aten.abs.default), "Neg": _unary(aten.neg.default),
    "Sin": _unary(aten.sin.default), "Cos": _unary(aten.cos.default), "Tan": _unary(aten.tan.default),
    "Asin": _unary(aten.asin.default), "Acos": _unary(aten.acos.default), "Atan": _unary(aten.atan.default),
    "Floor": _unary(aten.floor.default), "Ceil": _unary(aten.ceil.default), "Round": _unary(aten.round.default),
    "Reciprocal": _unary(aten.reciprocal.default), "Softplus": _unary(aten.softplus.default),
    "Sign": _unary(aten.sign.default), "IsNaN": _unary(aten.isnan.default), "Not": _unary(aten.logical_not.default),
    "BitwiseNot": _unary(aten.bitwise_not.default), "LeakyRelu": _with_number(aten.leaky_relu.default, "alpha", 0.01),
    "Elu": _with_number(aten.elu.default, "alpha", 1.0), "Celu": _with_number(aten.celu.default, "alpha", 1.0),
    "Add": _commutative(aten.add.Tensor, aten.add_.Tensor), "Mul": _commutative(aten.mul.Tensor), "Sub": _subtract,
    "Div": _divide, "Pow": _power, "Sum": _sum_of,
    "Equal": _compare("eq"), "Greater": _compare("gt"), "GreaterOrEqual": _compare("ge"), "Less": _compare("lt"),
    "LessOrEqual": _compare("le"),
    "And": lambda g: g.call(aten.logical_and.default, g.x(0), g.x(1)),
    "Or": lambda g: g.call(aten.logical_or.default, g.x(0), g.x(1)),
    "Xor": lambda g: g.call(aten.logical_xor.default, g.x(0), g.x(1)),
    "BitwiseAnd": lambda g: g.call(aten.bitwise_and.Tensor, g.x(0), g.x(1)),
    "BitwiseOr": lambda g: g.call(aten.bitwise_or.Tensor, g.x(0), g.x(1)),
    "Max": _extreme(aten.maximum.default, aten.clamp_min.default),
    "Min": _extreme(aten.minimum.default, aten.clamp_max.default), "Clip": _clip, "Where": _where,
    "MatMul": _matmul, "Gemm": _gemm, "Conv": _convolution, "ConvTranspose": _convolution_transpose,
    "Einsum": lambda g: g.call(aten.einsum.default, str(g.attribute("equation")), [g.x(i) for i in _all(g)]),
    "MaxPool": _max_pool, "AveragePool": _average_pool, "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max, "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm, "GroupNormalization": _group_norm, "RMSNormalization": _rms_norm,
    "Softmax": _softmax(aten.softmax.int), "LogSoftmax": _softmax(aten.log_softmax.int), "Gelu": _gelu,
    "HardSwish": _gated(aten.hardswish.default, aten.hardswish_.default),
    "Swish": _gated(aten.silu.default, aten.silu_.default),
    "Dropout": lambda g: g.call(aten.dropout.default, g.x(), 0.5, False) if len(g.step.outputs) == 1 else None,
    "Cast": _cast, "CastLike": _cast, "Gather": _gather,
    "GatherElements": lambda g: g.call(aten.gather.default, g.x(), int(g.attribute("axis", 0)), g.x(1)),
    "ReduceMean": _mean, "ReduceSum": _reduce(aten.sum.dim_IntList), "ReduceMax": _reduce(aten.amax.default),
    "ReduceMin": _reduce(aten.amin.default), "ReduceL2": _reduce(aten.linalg_vector_norm.default, 2),
    "ReduceL1": _reduce(aten.linalg_vector_norm.default, 1), "ReduceLogSumExp": _reduce(aten.logsumexp.default),
    "ArgMax": _extreme_index(aten.argmax.default), "ArgMin": _extreme_index(aten.argmin.default), "TopK": _top,
    "CumSum": _cumulated, "Trilu": _triangle, "Resize": _resize, "Upsample": _resize, "GridSample": _grid_sample,
}  # fmt: skip
"""By ONNX operator, or by the kind of what was put together of several (in lower case)."""


def _all(g: Given) -> range:
    return range(len(g.node.input))
