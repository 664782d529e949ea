"""What PyTorch computes in every pass though it hangs on no input: tables of positions, masks that are made of them.

A file that PyTorch wrote says so in its nodes. Their elements are needed where they are shapes (`fold` computes
them); where another operator works on them they are operators as any other, in the place where they are first read.
The TorchScript-based exporter computes some of them itself, and leaves a constant inside of a module's scope (weights
and buffers are initializers). One that counts up by one is what `torch.arange` made; a table of whole numbers that is
too large to be read was written by one operator at least, and is taken to be filled by one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import onnx

from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.node import OnnxNode
from dippm.frontend.onnx.steps import is_setting

_MAKE_ALONE = frozenset({"ConstantOfShape", "Range"})
"""Operators all of whose operands only set them up."""

_SCOPED = re.compile(r"(/(?:.*/)?Constant(?:_\d+)?)_output_0")

_SHORTEST = 3
"""Fewest entries that tell a count from two numbers that happen to follow each other."""


def with_computed(static: StaticGraph) -> list[OnnxNode]:
    """The nodes of a file that PyTorch wrote with those that make what they work on.

    A number is an argument, which nobody makes.
    """
    nodes: list[OnnxNode] = []
    placed: set[str] = set()

    def makers(node: OnnxNode) -> Iterator[OnnxNode]:
        """What makes the operands of a node and is not placed yet."""
        for name in node.inputs:
            maker = static.computed.get(name) or _table_of(static, name)
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


def _table_of(static: StaticGraph, name: str) -> OnnxNode | None:
    """The node that makes a table of whole numbers which stands in a module's scope.

    It counts from wherever it does: `arange(past, past + length)` and `arange(length) + 2` are written as what they
    come to. Lists of indices have no scope there (`onnx::Gather_3`); two numbers may well be a shape (`2, 3`).
    """
    scoped = _SCOPED.fullmatch(name)
    if scoped is None or not static.specs[name].dtype.startswith(("int", "bool")):
        return None
    elements = static.constants.get(name)
    if elements is None:  # too large to be read
        return OnnxNode(onnx.helper.make_node("ConstantOfShape", [], [name], name=scoped[1]))
    if elements.size < _SHORTEST or elements.size != max(elements.shape) or elements.dtype.kind != "i":
        return None
    if (np.diff(elements.reshape(-1)) != 1).any():
        return None
    return OnnxNode(onnx.helper.make_node("Range", [], [name], name=scoped[1]))


def _is_setting(node: OnnxNode, name: str) -> bool:
    return node.kind in _MAKE_ALONE or is_setting(node, name)
