"""What ONNX Runtime's arena says of itself: its log at level INFO, read back as regions.

`bfc_arena.cc` writes a line for each extension (the request that could not be met, the bytes that the arena grew by)
and for each block reserved outside of the arena's regions (weights). Python cannot ask the arena otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MARK = "== dippm "
"""Begins a line that the harness writes between the phases of a run."""
_EXTENDING = re.compile(r"Extending BFCArena for (\S+?)\. .*rounded_bytes:\s*(\d+)")
_EXTENDED = re.compile(r"Extended allocation by (\d+) bytes")
_COPIES = re.compile(r"(\d+) Memcpy nodes? (?:are|is) added")
_RESERVING = re.compile(r"Reserving memory in BFCArena for (\S+) size: (\d+)")


@dataclass(frozen=True, slots=True)
class Region:
    """One block that the arena took from the device."""

    phase: str
    """`session`, `pass 1`, `pass 2`, ..."""
    requested_bytes: int
    """The request that made the arena grow; the block itself where it was reserved."""
    bytes: int
    reserved: bool
    """Reserved outside of the regions (weights): never cut, never reused, not held against the limit."""


def regions(lines: Iterable[str], name: str) -> list[Region]:
    """The regions of the arena called `name` (`Cuda`, `Cpu`), in the order in which they were made."""
    found: list[Region] = []
    phase, arena, requested = "session", "", 0
    for line in lines:
        if MARK in line:
            phase = line.partition(MARK)[2].strip()
        elif match := _EXTENDING.search(line):
            arena, requested = match[1], int(match[2])
        elif match := _EXTENDED.search(line):
            if arena == name:
                found.append(Region(phase, requested, int(match[1]), reserved=False))
        elif (match := _RESERVING.search(line)) and match[1] == name:
            found.append(Region(phase, int(match[2]), int(match[2]), reserved=True))
    return found


def copies(lines: Iterable[str]) -> int:
    """Copies between the processors that ONNX Runtime had to put into the graph: some node has no kernel on the GPU."""
    return sum(int(match[1]) for line in lines if (match := _COPIES.search(line)))


def total(found: Iterable[Region]) -> int:
    """Bytes that the arena holds, reserved blocks included."""
    return sum(region.bytes for region in found)


def reserved(found: Iterable[Region]) -> int:
    """Bytes of the blocks reserved outside of the regions."""
    return sum(region.bytes for region in found if region.reserved)
