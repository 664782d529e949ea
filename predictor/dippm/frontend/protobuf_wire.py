"""Protobuf's wire format (https://protobuf.dev/programming-guides/encoding), as far as files are walked by hand.

Only `dippm.errors` is imported: the converter's process, which has neither PyTorch nor TVM, uses it too.
"""

from __future__ import annotations

from dippm.errors import ModelFormatError


def varint(view: memoryview, position: int, shown: str, kind: str) -> tuple[int, int]:
    """A number of at most ten bytes, and the position after it. Raises ModelFormatError that calls the file `kind`."""
    if position < len(view) and (byte := view[position]) < 0x80:
        return byte, position + 1  # as nearly all are
    value = shift = 0
    while position < len(view) and shift < 70:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ModelFormatError(f"{shown} is a truncated or damaged {kind}: is the download complete?")


def tag(view: memoryview, position: int, shown: str, kind: str) -> tuple[int, int, int]:
    """A field's number, its wire type, and the position after them. Raises ModelFormatError.

    A tag has 32 bits: parsers refuse a longer one or read its lower bits, and a walk must see no other field than they.
    """
    value, position = varint(view, position, shown, kind)
    if not 8 <= value < 1 << 32:
        raise ModelFormatError(f"{shown} is a damaged {kind}: {value >> 3} is no field number")
    return value >> 3, value & 7, position
