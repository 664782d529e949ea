"""Where the values of a graph carry the batch: their shapes at the file's batch beside those at another."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from dippm.errors import InputShapeError
from dippm.frontend.onnx.fold import Folder, StaticGraph
from dippm.frontend.onnx.node import OnnxNode
from dippm.frontend.respell import Place, Shape, scaled


class FixedBatch(InputShapeError):
    """A file's batch cannot be replaced; what it says is a clause."""


class BatchedValues:
    """The values of one file, made static at its own batch, in passes over it at another."""

    def __init__(self, own: StaticGraph, old: int, new: int) -> None:
        self.own = own
        """The graph at the file's batch, `old`: what the file says."""
        self.old, self.new = old, new

    def begin(self, folder: Folder) -> None:
        """What a pass makes is looked up from now on."""
        self.folder = folder
        self.outer: dict[str, int] = {}
        """`Place.outer` by value, where it is not 1; -1 where it is not known."""

    def shape(self, name: str) -> Shape:
        """A value's shape at the file's batch; () for an operand that is left away."""
        return self.own.specs[name].shape if name else ()

    def place(self, name: str) -> Place | None:
        """Where a value carries the batch; None where it does not. Axis -1 where it does in several dimensions.

        Raises FixedBatch where its two shapes do not differ by the batch alone.
        """
        if not name:
            return None
        own, now = self.own.specs[name].shape, self.folder.specs[name].shape
        if own == now:
            return None
        axes = [axis for axis, (a, b) in enumerate(zip(own, now, strict=False)) if a != b]
        if len(own) != len(now) or any(now[a] * self.old != own[a] * self.new for a in axes):
            raise FixedBatch(f"{name!r} is {own} at {self.old} and would be {now} at {self.new}")
        return Place(axes[0], self.outer.get(name, 1)) if len(axes) == 1 else Place(-1)

    def scaled(self, shape: Sequence[int], axis: int) -> Shape:
        """A shape of the file at the new batch."""
        return scaled(tuple(int(n) for n in shape), axis, self.old, self.new)

    def numbers(self, name: str) -> list[int] | None:
        """A constant's elements; None where they are not known."""
        found = self.folder.constants.get(name) if name else None
        return None if found is None else [int(n) for n in found.reshape(-1)]

    def is_spelled(self, name: str) -> bool:
        """Whether a constant is that of the file; else it was computed from a shape, with the batch in it."""
        own, now = self.own.constants.get(name), self.folder.constants.get(name)
        return own is not None and now is not None and own.shape == now.shape and bool((own == now).all())

    def reading(self, node: OnnxNode, position: int, numbers: Sequence[int]) -> OnnxNode:
        """The node, which other passes read too, as a copy that reads these numbers."""
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        copy = OnnxNode(proto)
        name = f"{node.inputs[position]}@{','.join(map(str, numbers))}"
        self.folder.numbers(name, numbers)
        copy.read_instead(position, name)
        return copy


def integer(node: OnnxNode, name: str, default: int) -> int:
    """An attribute of a node."""
    return next((a.i for a in node.proto.attribute if a.name == name), default)
