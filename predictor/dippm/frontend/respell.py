"""Numbers that an exporter spelled out at its batch, written for another: what a shape holds of every picture.

Elements keep their order through a reshape, so what stands before a picture's part stands before it afterwards: that
says which dimension of the target counts pictures, and beside what (heads, windows). Pure functions of shapes at the
batch of the file; nothing is guessed where two dimensions would do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value carries the batch: dimension `axis` is (outer, batch, rest) flattened."""

    axis: int
    outer: int = 1
    """How often the batch is counted through in that dimension: 1 where pictures come one after the other, 2 where
    two batches were joined, the number of heads where heads are counted before pictures."""


def scaled(shape: Shape, axis: int, old: int, new: int) -> Shape:
    """A shape with the batch `new` for `old` in one dimension."""
    return (*shape[:axis], shape[axis] // old * new, *shape[axis + 1 :])


def place_after_reshape(source: Shape, place: Place, target: Shape, batch: int, open_axis: int | None) -> Place | None:
    """Where a reshape from one shape to another (both at `batch`) leaves the batch; None where that is not certain.

    It is certain at more than one picture. At one it is taken to stand in a dimension of its own, best in the place
    that it had; else in the one that was left open (`open_axis`: -1); else in the first of a shape that begins with it,
    or has less dimensions (tokens of all pictures in a row), or where it was, behind the same dimensions (heads: a
    multi-head attention makes (tokens, batch x heads, width) of (tokens, batch, features)).
    """
    before = math.prod(source[: place.axis]) * place.outer
    able = []
    passed = 1
    for axis, size in enumerate(target):
        if passed and before % passed == 0 and (passed * size) % (before * batch) == 0:
            able.append(Place(axis, before // passed))
        passed *= size
    if batch > 1 or len(able) < 2:
        return able[0] if len(able) == 1 else None
    alone = [p for p in able if target[p.axis] == 1]
    chosen = [p for p in alone if p.axis == place.axis] or alone or [p for p in able if p.axis == open_axis]
    if not chosen and (before == 1 or len(target) < len(source)):
        chosen = able
    if not chosen and len(target) == len(source) and target[: place.axis] == source[: place.axis]:
        chosen = [p for p in able if p.axis == place.axis]
    return chosen[0] if chosen else None


def resolved(target: Sequence[int], source: Shape, *, zero_is_zero: bool) -> Shape | None:
    """The shape that ONNX's Reshape makes of its target; None where it does not fit the source."""
    if not zero_is_zero and any(d == 0 and axis >= len(source) for axis, d in enumerate(target)):
        return None
    shape = [source[axis] if d == 0 and not zero_is_zero else d for axis, d in enumerate(target)]
    known = math.prod(d for d in shape if d != -1)
    if -1 in shape:
        if not known or math.prod(source) % known:
            return None
        shape[shape.index(-1)] = math.prod(source) // known
    return tuple(shape) if math.prod(shape) == math.prod(source) else None


def cut_rescaled(cuts: Sequence[int], size: int, place: Place, old: int, new: int) -> list[int] | None:
    """Positions along the batch's own dimension (`size` long at `old`) at which whole batches begin or end.

    None where one lies inside of a batch: that is this or that picture.
    """
    unit = size // place.outer
    if any(abs(c) < size and c % unit for c in cuts):
        return None
    return [c if abs(c) > size else c // old * new for c in cuts]
