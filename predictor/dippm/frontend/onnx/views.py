"""ONNX operators that move elements about, as ATen calls: views where PyTorch makes one, copies where it copies."""

from __future__ import annotations

import torch
from torch import fx

from dippm.frontend.onnx.calls import Converter, Emitted, Given

aten = torch.ops.aten
_LAST = (1 << 63) - 1


def _reshape(g: Given) -> Emitted:
    if g.out.shape == g.spec().shape:
        return g.x()
    return g.call(aten.reshape.default, g.x(), list(g.out.shape))


def _flatten(g: Given) -> Emitted:
    if g.rank > 2 and int(g.attribute("axis", 1)) == 1:
        return g.call(aten.flatten.using_ints, g.x(), 1)
    return _reshape(g)


def _squeeze(g: Given) -> Emitted:
    axes = g.numbers(1, "axes")
    if axes is None:
        axes = [i for i, d in enumerate(g.spec().shape) if d == 1]
    if len(axes) == 1:
        return g.call(aten.squeeze.dim, g.x(), axes[0])
    return g.call(aten.squeeze.dims, g.x(), axes) if axes else g.x()


def _unsqueeze(g: Given) -> Emitted:
    result, rank = g.x(), len(g.out.shape)
    for axis in sorted(a % rank for a in g.numbers(1, "axes") or []):
        result = g.call(aten.unsqueeze.default, result, axis)
    return result


def _transpose(g: Given) -> Emitted:
    return transposed(g, g.x(), list(g.attribute("perm") or reversed(range(g.rank))))


def transposed(g: Given, x: fx.Node, order: list[int]) -> fx.Node:
    """The dimensions in another order: nothing, a swap of two, or a permutation."""
    moved = [i for i, d in enumerate(order) if i != d]
    if not moved:
        return x
    if len(moved) == 2:
        return g.call(aten.transpose.int, x, *moved)
    return g.call(aten.permute.default, x, order)


def _expand(g: Given) -> Emitted:
    if g.out.shape == g.spec().shape:
        return g.x()
    return g.call(aten.expand.default, g.x(), list(g.out.shape))


def _slice(g: Given) -> Emitted:
    starts, ends = g.numbers(1, "starts"), g.numbers(2, "ends")
    if starts is None or ends is None:
        return None
    axes = g.numbers(3, "axes") or list(range(len(starts)))
    steps = g.numbers(4, "") or [1] * len(starts)
    result = g.x()
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        if step < 0:
            return None
        length = g.spec().shape[axis]
        begin = max(start + length, 0) if start < 0 else min(start, length)
        stop = max(end + length, 0) if end < 0 else min(end, length)
        result = g.call(aten.slice.Tensor, result, axis, begin, _LAST if stop == length else stop, step)
    return result


def _split(g: Given) -> Emitted:
    axis = int(g.attribute("axis", 0))
    sizes = [g.calls.static.specs[o].shape[axis] for o in g.step.outputs]
    if len(set(sizes)) == 1:
        many = g.call(aten.split.Tensor, g.x(), sizes[0], axis)
    else:
        many = g.call(aten.split_with_sizes.default, g.x(), sizes, axis)
    return [g.calls.part(many, i) for i in range(len(sizes))]


def _concat(g: Given) -> Emitted:
    parts = [g.x(i) for i in range(len(g.node.input))]
    return g.call(aten.cat.default, parts, int(g.attribute("axis"))) if len(parts) > 1 else parts[0]


def _pad(g: Given) -> Emitted:
    pads = g.numbers(1, "pads") or []
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}.get(str(g.attribute("mode", "constant")))
    if mode is None or g.has(3) or len(pads) != 2 * g.rank:
        return None
    flat = [p for pair in zip(reversed(pads[: g.rank]), reversed(pads[g.rank :]), strict=True) for p in pair]
    while len(flat) > 2 and flat[-2:] == [0, 0]:
        flat = flat[:-2]
    if mode != "constant":
        return g.call(aten.pad.default, g.x(), flat, mode)
    value = g.attribute("value", g.scalar(2))
    return g.call(aten.pad.default, g.x(), flat, mode, float(value or 0.0)) if any(flat) else g.x()


def _tile(g: Given) -> Emitted:
    repeats = g.numbers(1)
    return None if repeats is None else g.call(aten.repeat.default, g.x(), repeats)


def _depth_to_space(g: Given) -> Emitted:
    if g.attribute("mode", "DCR") != "CRD":
        return None
    return g.call(aten.pixel_shuffle.default, g.x(), int(g.attribute("blocksize")))


VIEWS: dict[str, Converter] = {
    "Identity": lambda g: g.x(), "Reshape": _reshape, "Flatten": _flatten, "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze, "Transpose": _transpose, "Expand": _expand, "Slice": _slice, "Split": _split,
    "Concat": _concat, "Pad": _pad, "Tile": _tile, "DepthToSpace": _depth_to_space,
}  # fmt: skip
