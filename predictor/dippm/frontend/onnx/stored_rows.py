"""Whether the rows of a weight are alike, looked up in its file: the one question about a weight's elements."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dippm.frontend.protobuf_wire import tag, varint

MAX_BYTES = 64 << 20
"""Most bytes that are compared."""
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9
"""Fields of ModelProto, GraphProto and TensorProto (onnx.proto3)."""


def rows_alike(path: Path, name: str, shape: Sequence[int], axis: int) -> bool | None:
    """Whether an initializer's elements are the same along a dimension; None where the data is not in the file.

    It is not where it lies in another file, in another field than `raw_data`, or was left out when the file was fetched
    (a hole). The file was read before: it is whole.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with memoryview(mapped) as view:
            found = _raw_data(view, name.encode())
        if found is None:
            return None
        start, end = found
        parts, rows = math.prod(shape[:axis]), shape[axis]
        length, rest = divmod(end - start, parts * rows)
        if not length or rest or end - start > MAX_BYTES or _has_hole(file.fileno(), start, end):
            return None
        return all(
            mapped[at : at + rows * length] == rows * mapped[at : at + length]
            for at in range(start, end, rows * length)
        )


def _raw_data(view: memoryview, name: bytes) -> tuple[int, int] | None:
    for graph in _fields(view, 0, len(view), _GRAPH):
        for tensor in _fields(view, *graph, _INITIALIZER):
            if any(bytes(view[start:end]) == name for start, end in _fields(view, *tensor, _NAME)):
                return next(_fields(view, *tensor, _RAW_DATA), None)
    return None


def _fields(view: memoryview, position: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where each field of a number starts and ends, of those with a length."""
    while position < end:
        number, wire, position = tag(view, position, "the file", "ONNX file")
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire in (0, 2):
            value, position = varint(view, position, "the file", "ONNX file")
            length = value if wire == 2 else 0
        if number == wanted and wire == 2:
            yield position, position + length
        position += length


def _has_hole(descriptor: int, start: int, end: int) -> bool:
    return os.lseek(descriptor, start, os.SEEK_HOLE) < end
