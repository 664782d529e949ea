"""ONNX operators that are layers of a network, as ATen calls: products, convolutions, pooling, norms, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dippm.frontend.onnx.calls import Converter, Emitted, Given
from dippm.frontend.onnx.steps import same_padding

aten = torch.ops.aten


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


def global_average(g: Given) -> Emitted:
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


def _all(g: Given) -> range:
    return range(len(g.node.input))


LAYERS: dict[str, Converter] = {
    "linear": _linear, "layer_norm": _layer_norm, "group_norm": _group_norm, "rms_norm": _rms_norm,
    "attention": _attention, "Attention": _attention_operator, "MatMul": _matmul, "Gemm": _gemm, "Conv": _convolution,
    "ConvTranspose": _convolution_transpose,
    "Einsum": lambda g: g.call(aten.einsum.default, str(g.attribute("equation")), [g.x(i) for i in _all(g)]),
    "MaxPool": _max_pool, "AveragePool": _average_pool, "GlobalAveragePool": global_average,
    "GlobalMaxPool": _global_max, "BatchNormalization": _batch_norm, "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm, "GroupNormalization": _group_norm, "RMSNormalization": _rms_norm,
    "Softmax": _softmax(aten.softmax.int), "LogSoftmax": _softmax(aten.log_softmax.int),
    "Dropout": lambda g: g.call(aten.dropout.default, g.x(), 0.5, False) if len(g.step.outputs) == 1 else None,
    "Resize": _resize, "Upsample": _resize, "GridSample": _grid_sample,
}  # fmt: skip
"""By ONNX operator, or by the kind of what was put together of several (in lower case)."""
