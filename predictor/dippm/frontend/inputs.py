"""What a user says of a model's inputs: shapes without the batch."""

from __future__ import annotations

from dataclasses import dataclass

from dippm.errors import InputShapeError
from dippm.graph import DTYPE_BYTES

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

    A name may have colons in it, as TensorFlow's have. Raises InputShapeError.
    """
    name, equals, rest = text.rpartition("=")
    shape_text, _, dtype = rest.partition(":")
    try:
        shape = tuple(int(part) for part in shape_text.split(",") if part.strip())
    except ValueError:
        raise InputShapeError(f"input {text!r} is not a shape: write it without the batch, as in 3,224,224") from None
    if any(not 0 < d <= MAX_DIM for d in shape):
        raise InputShapeError(f"input {text!r} has a dimension that is not between 1 and {MAX_DIM}")
    if dtype and dtype not in DTYPE_BYTES:
        raise InputShapeError(f"input {text!r} has an unknown dtype {dtype!r}: it may be {', '.join(DTYPE_BYTES)}")
    return InputSpec(name=name if equals else None, shape=shape, dtype=dtype or None)


def asked_by_name(names: list[str], inputs: tuple[InputSpec, ...] | None, shown: str) -> dict[str, InputSpec]:
    """The inputs that the user described, by name; those without a name in the model's order.

    Raises InputShapeError for one that the model does not have, or that is described twice.
    """
    asked: dict[str, InputSpec] = {}
    for position, spec in enumerate(inputs or ()):
        name = spec.name if spec.name is not None else (names[position] if position < len(names) else None)
        if name is None:
            raise InputShapeError(f"{shown} has no input {position + 1}: it has {', '.join(names)}")
        if name not in names:
            raise InputShapeError(f"{shown} has no input {name!r}: it has {', '.join(names)}")
        if name in asked:
            raise InputShapeError(f"input {name!r} of {shown} is described twice: say each input once")
        asked[name] = spec
    return asked


def check_dtype(spec: InputSpec | None, own: str, name: str, shown: str) -> None:
    """Raises InputShapeError for another dtype than the file fixes for this input."""
    if spec is not None and spec.dtype not in (None, own):
        raise InputShapeError(f"input {name!r} of {shown} is {own} in the file, not {spec.dtype}: leave the dtype out")


def fixed_batch(shown: str, file_batch: int, batch: int) -> InputShapeError:
    """The model was exported at one batch and cannot be given another."""
    return InputShapeError(
        f"{shown} was exported at a fixed batch of {file_batch} and cannot be given a batch of {batch}: export it with "
        "torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},)), or ask for "
        f"batch {file_batch}"
    )
