"""The block in which ONNX Runtime lays out the activations of all passes after the first.

`MemPatternPlanner` (`onnxruntime/core/framework/mem_pattern_planner.h`) follows the first pass: each tensor goes to the
offset of the gap that it fills best, else behind the last. The peak is the block's size.
"""

from __future__ import annotations


class MemoryPattern:
    """Offsets of the tensors alive, and the highest end so far (`size`, bytes)."""

    def __init__(self) -> None:
        self.size = 0
        self._alive: list[tuple[int, int, int]] = []
        """(offset, bytes, name), by rising offset."""

    def allocate(self, name: int, size: int) -> None:
        """Places a tensor (`TraceAllocation`)."""
        if not size:
            return
        best, waste, position = None, 0, len(self._alive)
        current = 0
        for index, (offset, taken, _) in enumerate(self._alive):
            gap = offset - current
            if gap >= size and (best is None or gap - size < waste):
                best, waste, position = current, gap - size, index
            current = offset + taken
        offset = current if best is None else best
        self.size = max(self.size, offset + size)
        self._alive.insert(position, (offset, size, name))

    def free(self, name: int) -> None:
        """Its place can be taken again (`TraceFree`)."""
        self._alive = [block for block in self._alive if block[2] != name]
