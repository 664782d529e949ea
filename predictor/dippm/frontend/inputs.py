"""What a user says of a model's inputs: shapes without the batch."""

from __future__ import annotations

from dataclasses import dataclass

from dippm.errors import InputShapeError

MAX_DIM = 1 << 31
"""Largest dimension that is believed; larger ones are a broken or hostile file."""
MAX_NUMEL = 1 << 40
"""Largest number of elements of one tensor that is believed (4 TiB in FP32)."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of the model; `shape` leaves the batch out."""

    name: str | None
    shape: tuple[int, ...]
    dtype: str | None = None
    """As Relax spells it (`float32`, `int64`); None: as the model says, else float32."""


def parse_input(text: str) -> InputSpec:
    """Read `3,224,224`, `NAME=3,224,224` or either with `:int64` after it. An empty shape is a scalar per batch row.

    Raises InputShapeError.
    """
    rest, _, dtype = text.partition(":")
    name, equals, shape_text = rest.rpartition("=")
    try:
        shape = tuple(int(part) for part in shape_text.split(",") if part.strip())
    except ValueError:
        raise InputShapeError(f"input {text!r} is not a shape: write it without the batch, as in 3,224,224") from None
    if any(not 0 < d <= MAX_DIM for d in shape):
        raise InputShapeError(f"input {text!r} has a dimension that is not between 1 and {MAX_DIM}")
    return InputSpec(name=name if equals else None, shape=shape, dtype=dtype or None)
