"""ONNX operators of one element each as ATen calls: activations, arithmetic, comparisons, casts.

A number on either side of an operator is an argument of the call, as PyTorch has it.
"""

from __future__ import annotations

from typing import Any

import torch

from dippm.frontend.onnx.calls import Converter, Emitted, Given

aten = torch.ops.aten


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


def _full(g: Given) -> Emitted:
    elements = g.constant_of(g.step.outputs[0])
    number = 0 if elements is None or not elements.size else elements.reshape(-1)[0].item()
    return g.call(aten.full.default, list(g.out.shape), number, dtype=getattr(torch, g.out.dtype), device="meta")


def _range(g: Given) -> Emitted:
    value = g.constant_of(g.step.outputs[0])
    if value is None or value.size < 2:
        return None
    first, second = (v.item() for v in value.reshape(-1)[:2])
    end, kind = first + (second - first) * value.size, getattr(torch, g.out.dtype)
    made = g.call(aten.arange.start_step, first, end, second - first, dtype=kind, device="meta")
    return made if value.ndim == 1 else g.call(aten.view.default, made, list(value.shape))


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


ELEMENTWISE: dict[str, Converter] = {
    "Relu": _activation(aten.relu.default, aten.relu_.default),
    "Sigmoid": _activation(aten.sigmoid.default, aten.sigmoid_.default),
    "Tanh": _activation(aten.tanh.default, aten.tanh_.default),
    "HardSigmoid": _activation(aten.hardsigmoid.default, aten.hardsigmoid_.default),
    "Mish": _activation(aten.mish.default, aten.mish_.default),
    "Selu": _activation(aten.selu.default, aten.selu_.default), "silu": _gated(aten.silu.default, aten.silu_.default),
    "hardswish": _gated(aten.hardswish.default, aten.hardswish_.default), "gelu": _gelu,
    "rsqrt": lambda g: g.call(aten.rsqrt.default, g.calls.read(g.step.inputs[0])), "Erf": _unary(aten.erf.default),
    "Exp": _unary(aten.exp.default), "Log": _unary(aten.log.default), "Sqrt": _unary(aten.sqrt.default),
    "Abs": _unary(aten.abs.default), "Neg": _unary(aten.neg.default), "Sin": _unary(aten.sin.default),
    "Cos": _unary(aten.cos.default), "Tan": _unary(aten.tan.default), "Asin": _unary(aten.asin.default),
    "Acos": _unary(aten.acos.default), "Atan": _unary(aten.atan.default), "Floor": _unary(aten.floor.default),
    "Ceil": _unary(aten.ceil.default), "Round": _unary(aten.round.default),
    "Reciprocal": _unary(aten.reciprocal.default), "Softplus": _unary(aten.softplus.default),
    "Sign": _unary(aten.sign.default), "IsNaN": _unary(aten.isnan.default), "Not": _unary(aten.logical_not.default),
    "BitwiseNot": _unary(aten.bitwise_not.default), "LeakyRelu": _with_number(aten.leaky_relu.default, "alpha", 0.01),
    "Elu": _with_number(aten.elu.default, "alpha", 1.0), "Celu": _with_number(aten.celu.default, "alpha", 1.0),
    "Add": _commutative(aten.add.Tensor, aten.add_.Tensor), "Mul": _commutative(aten.mul.Tensor), "Sub": _subtract,
    "Div": _divide, "Pow": _power, "Sum": _sum_of, "Equal": _compare("eq"), "Greater": _compare("gt"),
    "GreaterOrEqual": _compare("ge"), "Less": _compare("lt"), "LessOrEqual": _compare("le"),
    "And": lambda g: g.call(aten.logical_and.default, g.x(0), g.x(1)),
    "Or": lambda g: g.call(aten.logical_or.default, g.x(0), g.x(1)),
    "Xor": lambda g: g.call(aten.logical_xor.default, g.x(0), g.x(1)),
    "BitwiseAnd": lambda g: g.call(aten.bitwise_and.Tensor, g.x(0), g.x(1)),
    "BitwiseOr": lambda g: g.call(aten.bitwise_or.Tensor, g.x(0), g.x(1)),
    "Max": _extreme(aten.maximum.default, aten.clamp_min.default),
    "Min": _extreme(aten.minimum.default, aten.clamp_max.default),
    "Clip": _clip, "ConstantOfShape": _full, "Range": _range, "Where": _where, "Gelu": _gelu,
    "HardSwish": _gated(aten.hardswish.default, aten.hardswish_.default),
    "Swish": _gated(aten.silu.default, aten.silu_.default), "Cast": _cast, "CastLike": _cast,
}  # fmt: skip
"""By ONNX operator, or by the kind of what was put together of several (in lower case)."""
