"""What PyTorch computes in every pass though it hangs on no input: tables of positions, masks that are made of them.

A file that PyTorch wrote says so in its nodes. Their elements are needed where they are shapes (`onnx_fold` computes
them); where another operator works on them they are operators as any other, in the place where they are first read.
The TorchScript-based exporter computes some of them itself, and leaves a constant inside of a module's scope (weights
and buffers are initializers). One that counts up by one is what `torch.arange` made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx

from dippm.frontend.onnx_fold import StaticGraph
from dippm.frontend.onnx_node import OnnxNode
from dippm.frontend.onnx_steps import is_setting

_MAKE_ALONE = frozenset({"ConstantOfShape", "Range"})
"""Operators all of whose operands only set them up."""

_SCOPED = re.compile(r"(/.*/Constant(?:_\d+)?)_output_0")


def with_computed(static: StaticGraph) -> list[OnnxNode]:
    """The nodes of a graph with those that make what they work on; a number is an argument, which nobody makes."""
    nodes: list[OnnxNode] = []
    placed: set[str] = set()

    def makers(node: OnnxNode) -> Iterator[OnnxNode]:
        """What makes the operands of a node and is not placed yet."""
        for name in node.inputs:
            maker = static.computed.get(name) or _range_of(static, name)
            if maker is None or name in placed or static.specs[name].numel < 2 or _is_setting(node, name):
                continue
            placed.update(maker.outputs)
            yield maker

    for node in static.nodes:
        waiting = [(node, makers(node))]  # each behind what it works on; a chain may be as long as a file
        while waiting:
            reader, missing = waiting[-1]
            maker = next(missing, None)
            if maker is None:
                nodes.append(reader)
                waiting.pop()
            else:
                waiting.append((maker, makers(maker)))
    return nodes


def _range_of(static: StaticGraph, name: str) -> OnnxNode | None:
    """The node that makes a constant which counts up, if it stands in a module's scope."""
    scoped, elements = _SCOPED.fullmatch(name), static.constants.get(name)
    if scoped is None or elements is None or elements.size < 2 or elements.dtype.kind != "i":
        return None
    if elements.size != max(elements.shape) or (np.diff(elements.reshape(-1)) != 1).any():
        return None
    return OnnxNode(onnx.helper.make_node("Range", [], [name], name=scoped[1]))


def _is_setting(node: OnnxNode, name: str) -> bool:
    return node.kind in _MAKE_ALONE or is_setting(node, name)
