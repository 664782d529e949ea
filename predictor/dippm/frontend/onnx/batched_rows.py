"""Constants and weights that have rows for each picture of the file's batch: masks, class tokens, first states.

Such a one is known by what it meets: an operand with the batch in the same dimension, at the same size. What it meets
it behind other operators that read no input, so these are followed back to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dippm.frontend.onnx.batched_values import BatchedValues, FixedBatch, integer
from dippm.frontend.onnx.node import OnnxNode
from dippm.frontend.onnx.stored_rows import rows_alike
from dippm.frontend.onnx.types import Elements
from dippm.frontend.respell import Place, place_after_reshape
from dippm.graph import TensorSpec

_ELEMENTWISE = frozenset({
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Sum", "Mean", "Mod", "And", "Or", "Xor", "Equal", "Less",
    "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift", "PRelu",
    "Cast", "Not", "Neg", "Identity", "Expand", "Abs", "Sqrt", "Exp", "Log", "Sigmoid", "Tanh", "Relu", "Floor",
    "Sin", "Cos", "Clip", "Reciprocal", "Softmax",
})  # fmt: skip
"""Each dimension of the result, counted from the last, is that of every operand, or 1 there."""
_ALONG = frozenset({"Concat", "Slice", "Pad", "LayerNormalization", "GatherElements", "CumSum"})
"""Dimensions that the operator is not about stay what they are."""
_SHAPED = frozenset({"Expand", "Tile", "ConstantOfShape"})


class BatchedRows:
    """Which they are, as far as passes have found them out."""

    def __init__(self, values: BatchedValues, shapes: dict[str, int], path: Path | None) -> None:
        self._values = values
        self.places: dict[str, Place] = {}
        """Constants and weights, by where their rows lie."""
        self._shapes = shapes
        """`SpelledOut.shapes`: what is made to a shape is made to another."""
        self._path = path
        own = values.own
        self._makers: Mapping[str, OnnxNode] = own.computed | {o: n for n in own.nodes for o in n.outputs}
        self.unseen: list[str] = []
        """Those whose elements are not at hand."""

    @property
    def known(self) -> int:
        """How many were found."""
        return len(self.places) + len(self._shapes)

    def meet(self, node: OnnxNode) -> None:
        """Look for rows among the operands of a node that reads the batch. Raises FixedBatch where rows differ."""
        rule = _RULES.get(node.kind)
        if rule is None:
            return
        places = [self._values.place(name) for name in node.inputs]
        if node.kind == "Expand" and places[0] is None:
            self._expand(node)
        elif any(p is not None and p.axis >= 0 for p in places) and not all(places):
            rule(self, node, places)

    def _demand(self, name: str, place: Place) -> None:
        """A value that depends on no input must carry the batch all the same: so must what it is made of."""
        values, own = self._values, self._values.shape(name)
        if name in self.places or self._shapes.get(name) == place.axis or place.axis >= len(own):
            return
        maker = self._makers.get(name)
        if maker is None or not self._demand_of(maker, name, place):
            if maker is not None and name not in values.own.constants:
                raise FixedBatch(f"{maker.kind} {maker.name or name!r} puts out a row for each of the batch")
            self._check(name, place.axis)
            self.places[name] = place
        dtype = values.own.specs[name].dtype
        values.folder.specs[name] = TensorSpec(values.scaled(own, place.axis), dtype)  # the next pass finds it so

    def _demand_of(self, maker: OnnxNode, name: str, place: Place) -> bool:
        """Demand the batch of what a node reads; False where that does not tell what it puts out."""
        shape_of, axis, wanted = self._values.shape, place.axis, self._values.shape(name)
        first = maker.inputs[0] if maker.inputs and maker.kind != "ConstantOfShape" else ""
        source = shape_of(first)
        aligned = axis - len(wanted) + len(source)
        found: dict[str, int] = {}
        if maker.kind in _SHAPED and (aligned < 0 or source[aligned] == 1):
            self._shapes[name] = axis
            return True
        if maker.kind == "Gather":
            behind = axis - integer(maker, "axis", 0) % len(source)
            if 0 <= behind < len(shape_of(maker.inputs[1])):
                found[maker.inputs[1]] = behind
        elif maker.kind == "Transpose":
            permutation = next((list(a.ints) for a in maker.proto.attribute if a.name == "perm"), None)
            found[first] = permutation[axis] if permutation else len(wanted) - 1 - axis
        elif maker.kind in ("Unsqueeze", "Squeeze", "Reshape", "Flatten"):
            before = place_after_reshape(wanted, place, source, self._values.old, None)
            if before is not None and before.outer == place.outer:
                found[first] = before.axis
        elif maker.kind in _ELEMENTWISE:
            for read in filter(None, maker.inputs[: 1 if maker.kind in _SHAPED else None]):
                at = axis - len(wanted) + len(shape_of(read))
                if at >= 0 and shape_of(read)[at] == wanted[axis]:
                    found[read] = at
        elif maker.kind in _ALONG:
            found = {
                read: axis for read in maker.inputs
                if len(shape_of(read)) == len(wanted) and shape_of(read)[axis] == wanted[axis]
            }  # fmt: skip
        for read, at in found.items():
            self._demand(read, Place(at, place.outer))
        return bool(found)

    def _check(self, name: str, axis: int) -> None:
        """Rows that differ are no row expanded: a learned table, whose first dimension is no batch.

        Where the elements are not at hand (a file is fetched without them), what looks like such a table is refused:
        floating point, of two or three dimensions, none of them left to be broadcast. A mask, a position, a class token
        looks otherwise.
        """
        values, elements = self._values, self._values.own.constants.get(name)
        alike: bool | None
        spec = values.own.specs[name]
        if spec.shape[axis] == 1:
            return
        if elements is not None:
            alike = bool((elements == np.take(elements, [0], axis)).all()) or _counts_on(elements, axis)
        else:
            alike = None if self._path is None else rows_alike(self._path, name, spec.shape, axis)
        is_table = spec.dtype.startswith(("float", "bfloat")) and len(spec.shape) < 4
        if alike is None and not (is_table and spec.shape[axis + 1 : axis + 2] != (1,)):
            self.unseen.append(name)
        elif not alike:
            why = "they differ" if alike is not None else "its elements are not in the file to compare them"
            raise FixedBatch(f"{name!r} {spec.shape} has a row for each of the batch, and {why}")

    def _elementwise(self, node: OnnxNode, places: Sequence[Place | None]) -> None:
        shapes = [self._values.shape(name) for name in node.inputs]
        rank = max(map(len, shapes))
        leading = rank - 2 if node.kind == "MatMul" else rank
        for shape, place in zip(shapes, places, strict=True):
            if place is None or place.axis < 0 or (at := place.axis + rank - len(shape)) >= leading:
                continue
            for name, other, known in zip(node.inputs, shapes, places, strict=True):
                axis = at - rank + len(other)
                if known is None and axis >= 0 and other[axis] == shape[place.axis] > 1:
                    self._demand(name, Place(axis, place.outer))

    def _expand(self, node: OnnxNode, places: Sequence[Place | None] = ()) -> None:
        """To a shape that was computed from one with the batch: a dimension that was the batch's already."""
        values, source, target = self._values, self._values.shape(node.inputs[0]), self._values.shape(node.outputs[0])
        now = values.numbers(node.inputs[1]) or []
        for axis, size in enumerate(target if len(now) == len(target) else ()):
            at = axis - len(target) + len(source)
            if now[axis] * values.old == size * values.new and at >= 0 and source[at] == size > 1:
                self._demand(node.inputs[0], Place(at))

    def _concat(self, node: OnnxNode, places: Sequence[Place | None]) -> None:
        place = next(p for p in places if p is not None)
        if integer(node, "axis", 0) % len(self._values.shape(node.inputs[0])) != place.axis >= 0:
            for name, known in zip(node.inputs, places, strict=True):
                if known is None:
                    self._demand(name, place)

    def _gemm(self, node: OnnxNode, places: Sequence[Place | None]) -> None:
        """The summand, where it is no bias."""
        first, rows = places[0], self._values.shape(node.outputs[0])[0]
        if first is not None and len(places) > 2 and places[2] is None:
            shape = self._values.shape(node.inputs[2])
            if len(shape) == 2 and shape[0] == rows > 1:
                self._demand(node.inputs[2], Place(0, first.outer))

    def _recurrent(self, node: OnnxNode, places: Sequence[Place | None]) -> None:
        """The states to begin with: (directions, batch, width), or the batch first."""
        axis = 0 if integer(node, "layout", 0) else 1
        for name, place in zip(node.inputs[5:7], places[5:7], strict=True):
            if name and place is None and places[0] is not None and places[0].axis == axis:
                self._demand(name, Place(axis))

    def _attention(self, node: OnnxNode, places: Sequence[Place | None]) -> None:
        if len(places) > 3 and places[3] is None and places[0] is not None and places[0].axis == 0:
            mask = self._values.shape(node.inputs[3])
            if len(mask) == 4 and mask[0] == self._values.shape(node.inputs[0])[0] > 1:
                self._demand(node.inputs[3], Place(0))

    def _indexed(self, node: OnnxNode, places: Sequence[Place | None]) -> None:
        """Elements that are looked up, and where: both have the batch in front."""
        if any(p is not None and p.axis == 0 for p in places):
            for name, place in zip(node.inputs, places, strict=True):
                if place is None and self._values.shape(name)[:1] == (self._values.old,):
                    self._demand(name, Place(0))


_RULES: Mapping[str, Callable[[BatchedRows, OnnxNode, Sequence[Place | None]], None]] = {
    **dict.fromkeys((*_ELEMENTWISE, "MatMul"), BatchedRows._elementwise),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), BatchedRows._recurrent),
    **dict.fromkeys(("GatherElements", "GatherND", "ScatterElements", "ScatterND"), BatchedRows._indexed),
    "Expand": BatchedRows._expand, "Concat": BatchedRows._concat, "Gemm": BatchedRows._gemm,
    "Attention": BatchedRows._attention,
}  # fmt: skip


def _counts_on(elements: Elements, axis: int) -> bool:
    """Whether each row is the one before plus a number: where pictures begin in a flat table."""
    if elements.dtype.kind not in "iu":
        return False
    steps = np.diff(elements, axis=axis)
    return bool((steps == steps.reshape(-1)[0]).all())
