"""ONNX Runtime's arena, without the device.

A simulator of `onnxruntime/core/framework/bfc_arena.cc` (1.31) with one stream. Names follow that file. The arena asks
the device for regions and never gives one back; a region is cut into chunks, the smallest that is large enough is
taken, and free neighbours are merged.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from enum import StrEnum

from dippm.replay.allocator import CapReached

MIB = 1 << 20
MIN_ALLOCATION = 256
"""Every request is rounded up to a multiple of this (`kMinAllocationSize`)."""
INITIAL_CHUNK = MIB
"""What the first region is at least (`DEFAULT_INITIAL_CHUNK_SIZE_BYTES`), where regions grow by powers of two."""
MAX_DEAD_BYTES = 128 * MIB
"""A chunk is cut if at least this much, or as much again as asked for, is left (`max_dead_bytes_per_chunk`)."""
_ADDRESS_BITS = 64


class ExtendStrategy(StrEnum):
    """How much a new region holds (`arena_extend_strategy`)."""

    NEXT_POWER_OF_TWO = "kNextPowerOfTwo"
    """At least twice the region before (the default)."""
    SAME_AS_REQUESTED = "kSameAsRequested"


class Chunk:
    """A stretch of a region, in use or free."""

    __slots__ = ("address", "following", "free", "previous", "size")

    def __init__(self, address: int, size: int) -> None:
        self.address = address
        self.size = size
        self.free = True
        self.previous: Chunk | None = None
        self.following: Chunk | None = None

    @property
    def key(self) -> int:
        """Free chunks are ordered by size, then address."""
        return self.size << _ADDRESS_BITS | self.address


class BfcArena:
    """One arena. `limit` (bytes, None for none) is the provider's `gpu_mem_limit`.

    Counters, bytes: `total`, what it took from the device, `in_use`, and `peak_in_use`.
    """

    def __init__(self, strategy: ExtendStrategy = ExtendStrategy.NEXT_POWER_OF_TWO, limit: int | None = None) -> None:
        self.strategy = strategy
        self.limit = limit
        self.total = 0
        self.in_use = 0
        self.peak_in_use = 0
        self.regions: list[tuple[int, int]] = []
        """(request, size) of each region, in order."""
        self._next_region = rounded(INITIAL_CHUNK if limit is None else min(limit, INITIAL_CHUNK))
        self._next_address = 0
        self._keys: list[int] = []
        self._free: dict[int, Chunk] = {}

    def alloc(self, size: int) -> Chunk:
        """A chunk for `size` bytes. Raises CapReached where ONNX Runtime would fail."""
        size = rounded(size)
        chunk = self._find(size)
        if chunk is None:
            self._extend(size)
            chunk = self._find(size)
            assert chunk is not None
        self.in_use += chunk.size
        if self.in_use > self.peak_in_use:
            self.peak_in_use = self.in_use
        return chunk

    def release(self, chunk: Chunk) -> None:
        """Gives a chunk back and merges it with free neighbours (`FreeAndMaybeCoalesce`)."""
        self.in_use -= chunk.size
        chunk.free = True
        after, before = chunk.following, chunk.previous
        if after is not None and after.free:
            self._take_out(after)
            _merge(chunk, after)
        if before is not None and before.free:
            self._take_out(before)
            _merge(before, chunk)
            chunk = before
        self._put_in(chunk)

    def _find(self, size: int) -> Chunk | None:
        at = bisect_left(self._keys, size << _ADDRESS_BITS)
        if at == len(self._keys):
            return None
        chunk = self._free.pop(self._keys.pop(at))
        left = chunk.size - size
        if left >= size or left >= MAX_DEAD_BYTES:
            rest = Chunk(chunk.address + size, left)
            rest.previous, rest.following = chunk, chunk.following
            if rest.following is not None:
                rest.following.previous = rest
            chunk.following, chunk.size = rest, size
            self._put_in(rest)
        chunk.free = False
        return chunk

    def _extend(self, size: int) -> None:
        available = None if self.limit is None else (self.limit - self.total) // MIN_ALLOCATION * MIN_ALLOCATION
        if available is not None and size > available:
            raise CapReached(f"available memory of {available} is smaller than requested bytes of {size}")
        grown = size
        if self.strategy is ExtendStrategy.NEXT_POWER_OF_TWO:
            increased = False
            while size > self._next_region:
                self._next_region *= 2
                increased = True
            grown = self._next_region if available is None else min(self._next_region, available)
            if not increased:
                self._next_region *= 2
        self.total += grown
        self.regions.append((size, grown))
        self._put_in(Chunk(self._next_address, grown))
        self._next_address += grown + MIB

    def _put_in(self, chunk: Chunk) -> None:
        key = chunk.key
        insort(self._keys, key)
        self._free[key] = chunk

    def _take_out(self, chunk: Chunk) -> None:
        key = chunk.key
        del self._keys[bisect_left(self._keys, key)]
        del self._free[key]


def rounded(size: int) -> int:
    """`size` rounded up to a multiple of 256 (`RoundedBytes`)."""
    return -(-size // MIN_ALLOCATION) * MIN_ALLOCATION


def _merge(first: Chunk, second: Chunk) -> None:
    first.size += second.size
    first.following = second.following
    if first.following is not None:
        first.following.previous = first
