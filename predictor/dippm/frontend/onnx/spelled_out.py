"""Operators that spell the batch out in numbers (target shapes, sizes, positions), written for another batch."""

from __future__ import annotations

from collections.abc import Callable

from dippm.frontend.onnx.batched_values import BatchedValues, FixedBatch, integer
from dippm.frontend.onnx.node import OnnxNode
from dippm.frontend.respell import cut_rescaled, place_after_reshape, resolved, scaled


class SpelledOut:
    """One rule an operator."""

    def __init__(self, values: BatchedValues) -> None:
        self._values = values
        self.shapes: dict[str, int] = {}
        """Results of operators that make a shape and read no batch, by the dimension that is to be the batch."""

    def rewritten(self, node: OnnxNode) -> OnnxNode:
        """The node as it is at the new batch. Raises FixedBatch where what it spells out does not tell."""
        rule = _RULES.get(node.kind)
        return node if rule is None else rule(self, node)

    def _reshape(self, node: OnnxNode) -> OnnxNode:
        values, name, result = self._values, node.inputs[0], node.outputs[0]
        numbers, place = values.numbers(node.inputs[1]), values.place(name)
        if numbers is None or place is None:
            return node
        if place.axis < 0 or place.outer < 0:
            raise FixedBatch(f"Reshape {node.name or result!r} reads the batch in more than one dimension")
        source, target = values.shape(name), values.shape(result)
        natural = resolved(numbers, values.folder.specs[name].shape, zero_is_zero=bool(integer(node, "allowzero", 0)))
        if natural is not None and not values.is_spelled(node.inputs[1]) and values.old == 1:
            axes = [a for a, (x, y) in enumerate(zip(target, natural, strict=True)) if x != y]
            if len(axes) == 1 and natural == values.scaled(target, axes[0]):
                return node  # computed from a shape that has the batch: it says better than one picture does
        open_axis = numbers.index(-1) if -1 in numbers else None
        found = place_after_reshape(source, place, target, values.old, open_axis)
        if found is None:
            raise FixedBatch(f"Reshape {node.name or result!r} to {target} does not show where the batch goes")
        values.outer[result] = found.outer
        asked = values.scaled(target, found.axis)
        return node if natural == asked else values.reading(node, 1, asked)

    def _expand(self, node: OnnxNode) -> OnnxNode:
        values, result = self._values, node.outputs[0]
        numbers, place = values.numbers(node.inputs[1]), values.place(node.inputs[0])
        if not numbers or not values.is_spelled(node.inputs[1]):
            return node
        source, target = values.shape(node.inputs[0]), values.shape(result)
        if place is not None:
            axis = place.axis + len(target) - len(source)
            if place.axis < 0 or source[place.axis] != target[axis]:
                raise FixedBatch(f"Expand {node.name or result!r} repeats the batch")
        elif result in self.shapes:
            axis = self.shapes[result]
        elif values.old == 1 and target[0] == 1 and source and (len(source) < len(target) or source[0] == 1):
            axis = 0
        else:
            return node
        return values.reading(node, 1, values.scaled(target, axis))

    def _made(self, node: OnnxNode) -> OnnxNode:
        """ConstantOfShape and Tile, where what they make meets the batch."""
        axis = self.shapes.get(node.outputs[0])
        position = 0 if node.kind == "ConstantOfShape" else 1
        numbers = self._values.numbers(node.inputs[position])
        if axis is None or numbers is None or not self._values.is_spelled(node.inputs[position]):
            return node
        return self._values.reading(node, position, self._values.scaled(numbers, axis))

    def _slice(self, node: OnnxNode) -> OnnxNode:
        values, place, shape = self._values, self._values.place(node.inputs[0]), self._values.shape(node.inputs[0])
        cuts = [numbers for name in node.inputs[1:4] if (numbers := values.numbers(name)) is not None]
        if place is None or place.axis < 0 or len(cuts) < min(len(node.inputs) - 1, 3):
            return node
        starts, ends, *rest = cuts
        axes = [a % len(shape) for a in (rest[0] if rest else range(len(starts)))]
        if place.axis not in axes or not all(map(values.is_spelled, node.inputs[1:3])):
            return node
        at, size = axes.index(place.axis), shape[place.axis]
        cut = cut_rescaled([starts[at], ends[at]], size, place, values.old, values.new)
        if cut is None:
            raise FixedBatch(f"Slice {node.name or node.outputs[0]!r} takes some of the batch")
        starts[at], ends[at] = cut
        self._part(node.outputs[0], size, place.axis, place.outer)
        return values.reading(values.reading(node, 1, starts), 2, ends)

    def _split(self, node: OnnxNode) -> OnnxNode:
        values, place, shape = self._values, self._values.place(node.inputs[0]), self._values.shape(node.inputs[0])
        if place is None or integer(node, "axis", 0) % len(shape) != place.axis:
            return node
        for name in node.outputs:
            self._part(name, shape[place.axis], place.axis, place.outer)
        numbers = values.numbers(node.inputs[1]) if len(node.inputs) > 1 else None
        if numbers is None:
            return node
        cut = cut_rescaled(numbers, shape[place.axis], place, values.old, values.new)
        if cut is None:
            raise FixedBatch(f"Split {node.name or node.outputs[0]!r} takes the batch apart")
        return values.reading(node, 1, cut)

    def _part(self, name: str, whole: int, axis: int, outer: int) -> None:
        """Of a dimension that counts the batch several times a part counts it less often."""
        if outer != 1:
            self._values.outer[name] = max(self._values.shape(name)[axis] * outer // whole, 1)

    def _sizes(self, node: OnnxNode) -> OnnxNode:
        """Resize, where it is told sizes of every dimension."""
        values, place = self._values, self._values.place(node.inputs[0])
        numbers = values.numbers(node.inputs[3]) if len(node.inputs) > 3 else None
        if place is None or place.axis < 0 or numbers is None or not values.is_spelled(node.inputs[3]):
            return node
        if len(numbers) != len(values.shape(node.inputs[0])):
            return node
        return values.reading(node, 3, scaled(tuple(numbers), place.axis, values.old, values.new))


_RULES: dict[str, Callable[[SpelledOut, OnnxNode], OnnxNode]] = {
    "Reshape": SpelledOut._reshape, "Expand": SpelledOut._expand, "Slice": SpelledOut._slice,
    "Split": SpelledOut._split, "Resize": SpelledOut._sizes, "ConstantOfShape": SpelledOut._made,
    "Tile": SpelledOut._made,
}  # fmt: skip
