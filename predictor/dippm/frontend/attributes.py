"""Canonical attributes of ATen calls: the same names whatever door a model came through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import fx

from dippm.graph import Attribute, TensorSpec

_LEFT_OUT = frozenset({
    "device", "layout", "pin_memory", "memory_format", "non_blocking", "generator", "cudnn_enabled", "cudnn_enable",
    "train", "training", "momentum", "copy",
})  # fmt: skip
"""Arguments that say where or how a call is run, not what it does; graphs are of inference."""
_MODE = {
    "nearest": "nearest", "nearest_exact": "nearest", "linear": "linear", "bilinear": "linear", "trilinear": "linear",
    "bilinear2d_aa": "antialias", "bicubic": "cubic", "bicubic2d_aa": "antialias",
}  # fmt: skip


def attributes_of(node: fx.Node, kind: str, inputs: Sequence[TensorSpec]) -> dict[str, Attribute]:
    """Attributes of an ATen call: every argument that is no tensor and differs from the schema's default.

    Spatial attributes of convolutions and pools are always present, one integer per spatial dimension; a convolution's
    kernel size is read off its weight, `padding="same"` is spelled out, a pool's missing stride is its kernel size.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        return {}
    if kind in ("reshape", "expand"):
        return {}  # the output's shape says it all, and exporters spell it in several ways (-1, the number itself)
    given = _scalar_arguments(node)
    if "conv" in kind:
        return _convolution(given, kind, inputs)
    if "pool" in kind:
        return _pool(given, kind)
    if kind == "interpolate":
        return {**given, "mode": _MODE[str(node.target).partition("upsample_")[2].partition(".")[0].rstrip("123d")]}
    return given


def _scalar_arguments(node: fx.Node) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    args, kwargs = node.args, node.kwargs
    for position, (name, has_default, default) in enumerate(_parameters(node.target)):
        if position < len(args):
            value = args[position]
        elif name in kwargs:
            value = kwargs[name]
        else:
            continue
        if name in _LEFT_OUT or value is None or _holds_node(value):
            continue
        if has_default and value == default:
            continue
        converted = plain(value)
        if converted is not None:
            found[name] = converted
    return found


@lru_cache(maxsize=4096)
def _parameters(target: torch._ops.OpOverload) -> tuple[tuple[str, bool, Any], ...]:
    """Name of each argument, whether it has a default, and which."""
    return tuple((a.name, a.has_default_value(), a.default_value) for a in target._schema.arguments)


def _holds_node(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_node(v) for v in value)
    return isinstance(value, (fx.Node, torch.Tensor))


def plain(value: Any) -> Attribute:
    """A value that JSON can carry: numbers, words, tuples of integers, a dtype as Relax spells it; else None."""
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    if isinstance(value, (list, tuple)):
        if all(isinstance(v, int) for v in value):
            return tuple(int(v) for v in value)
        return ",".join(str(v) for v in value)
    return None


def _ints(value: Attribute, count: int, default: int) -> tuple[int, ...]:
    if value is None or value == ():
        return (default,) * count
    if isinstance(value, tuple):
        return value if len(value) == count else value * count
    return (int(value),) * count


def _convolution(given: Mapping[str, Attribute], kind: str, inputs: Sequence[TensorSpec]) -> dict[str, Attribute]:
    rank = int(kind[4])
    kernel = inputs[1].shape[2:] if len(inputs) > 1 else ()
    dilation = _ints(given.get("dilation"), rank, 1)
    padding = given.get("padding")
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=False))
    elif padding == "valid":
        padding = 0
    attributes: dict[str, Attribute] = {
        "kernel_size": kernel,
        "stride": _ints(given.get("stride"), rank, 1),
        "padding": _ints(padding, rank, 0),
        "dilation": dilation,
        "groups": given.get("groups", 1),
    }
    if kind.endswith("_transpose"):
        attributes["output_padding"] = _ints(given.get("output_padding"), rank, 0)
    return attributes


def _pool(given: Mapping[str, Attribute], kind: str) -> dict[str, Attribute]:
    rank = int(kind[-2])
    if kind.startswith("adaptive"):
        return {"output_size": _ints(given.get("output_size"), rank, 1)}
    kernel = _ints(given.get("kernel_size"), rank, 1)
    stride = given.get("stride")
    return {
        "kernel_size": kernel,
        "stride": kernel if stride in (None, ()) else _ints(stride, rank, 1),
        "padding": _ints(given.get("padding"), rank, 0),
        "dilation": _ints(given.get("dilation"), rank, 1),
        "ceil_mode": bool(given.get("ceil_mode", False)),
    }
