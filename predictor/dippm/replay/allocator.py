"""PyTorch's CUDA caching allocator, without the CUDA.

A simulator of `c10/cuda/CUDACachingAllocator.cpp` for one stream with the default configuration and with
`expandable_segments:True`. Function names follow that file, so that the two can be read side by side. What is left
out cannot happen here: several streams, CUDA graphs, `max_split_size_mb`, garbage collection by threshold.

`cudaMalloc` is a counter that hands out rising addresses, so of two free blocks of one size the older is taken, as
the allocator does when the driver's addresses rise.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from dippm.case import Allocator

MIB = 1 << 20
MIN_BLOCK = 512
"""Every request is rounded up to a multiple of this (`kMinBlockSize`)."""
SMALL_SIZE = MIB
"""Largest request served from the small pool (`kSmallSize`)."""
SMALL_BUFFER = 2 * MIB
"""Segment of the small pool (`kSmallBuffer`)."""
LARGE_BUFFER = 20 * MIB
"""Segment for requests between 1 and 10 MiB (`kLargeBuffer`)."""
MIN_LARGE_ALLOC = 10 * MIB
"""From here on a request gets a segment of its own size (`kMinLargeAlloc`) ..."""
ROUND_LARGE = 2 * MIB
"""... rounded up to this (`kRoundLarge`)."""

_ADDRESS_BITS = 64
_ADDRESS_SPACE = LARGE_BUFFER << 20
"""Virtual bytes of an expandable segment, a whole number of pages of either pool: more than any device has (PyTorch
reserves 1 1/8 of the device)."""


class CapReached(Exception):
    """The request does not fit under the cap even after every cached segment was given back (an out-of-memory)."""


def round_size(size: int) -> int:
    """Bytes that the allocator accounts for a request of `size` bytes: a multiple of 512, at least 512."""
    return MIN_BLOCK if size < MIN_BLOCK else (size + MIN_BLOCK - 1) & -MIN_BLOCK


def allocation_size(size: int) -> int:
    """Bytes asked of `cudaMalloc` when no cached block serves a (rounded) request (`get_allocation_size`)."""
    if size <= SMALL_SIZE:
        return SMALL_BUFFER
    if size < MIN_LARGE_ALLOC:
        return LARGE_BUFFER
    return (size + ROUND_LARGE - 1) & -ROUND_LARGE


class Block:
    """A stretch of a segment: in use, cached or (expandable segments only) not backed by memory."""

    __slots__ = ("address", "allocated", "following", "mapped", "pool", "previous", "size")

    def __init__(self, address: int, size: int, pool: Pool) -> None:
        self.address = address
        self.size = size
        self.pool = pool
        self.allocated = False
        self.mapped = True
        self.previous: Block | None = None
        self.following: Block | None = None


class Pool:
    """The free blocks of one pool, ordered by size, then address."""

    __slots__ = ("blocks", "is_small", "keys", "unmapped")

    def __init__(self, is_small: bool) -> None:
        self.is_small = is_small
        self.keys: list[int] = []
        """`size << 64 | address` of each free block, sorted: `lower_bound` of the C++ set is one bisection."""
        self.blocks: dict[int, Block] = {}
        """Free blocks by key."""
        self.unmapped: list[Block] = []
        """Unmapped blocks by rising address."""

    def insert(self, block: Block) -> None:
        key = block.size << _ADDRESS_BITS | block.address
        insort(self.keys, key)
        self.blocks[key] = block

    def remove(self, block: Block) -> None:
        key = block.size << _ADDRESS_BITS | block.address
        del self.keys[bisect_left(self.keys, key)]
        del self.blocks[key]


class CachingAllocator:
    """One device's allocator.

    `cap` (bytes, None for no cap) is the memory that the device has to give, as on a slice. (As under
    `set_per_process_memory_fraction`, but for expandable segments: PyTorch then counts the whole request, though only
    a part of it may need new pages.)
    Counters, in bytes: `allocated`, `peak_allocated`, `reserved`, `peak_reserved`; and `retries`, the number of times
    that cached memory had to be given back to serve a request (`num_alloc_retries`).
    """

    def __init__(self, allocator: Allocator = Allocator.DEFAULT, cap: int | None = None) -> None:
        self.expandable = allocator is Allocator.EXPANDABLE
        self.cap = cap
        self.small = Pool(is_small=True)
        self.large = Pool(is_small=False)
        self.allocated = 0
        self.peak_allocated = 0
        self.reserved = 0
        self.peak_reserved = 0
        self.retries = 0
        self._next_address = 0

    def malloc(self, size: int) -> Block:
        """A block for `size` bytes. Raises `CapReached` where PyTorch would raise `OutOfMemoryError`."""
        size = MIN_BLOCK if size < MIN_BLOCK else (size + MIN_BLOCK - 1) & -MIN_BLOCK
        pool = self.small if size <= SMALL_SIZE else self.large
        block = self._free_block(pool, size) or self._alloc_block(pool, size)
        if block is None:
            self.empty_cache()
            self.retries += 1
            block = self._alloc_block(pool, size)
            if block is None:
                raise CapReached(f"{size} bytes under a cap of {self.cap} bytes")
        left = block.size - size
        if left >= MIN_BLOCK if (pool.is_small or self.expandable) else left > SMALL_SIZE:
            rest = Block(block.address + size, left, pool)
            rest.previous = block
            rest.following = block.following
            if rest.following is not None:
                rest.following.previous = rest
            block.following = rest
            block.size = size
            pool.insert(rest)
        block.allocated = True
        self.allocated += block.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return block

    def free(self, block: Block) -> None:
        """Take a block back into the cache and merge it with its free neighbours (`free_block`)."""
        self.allocated -= block.size
        block.allocated = False
        previous, following = block.previous, block.following
        if previous is not None:
            self._merge(block, previous)
        if following is not None:
            self._merge(block, following)
        block.pool.insert(block)

    def empty_cache(self) -> None:
        """Give back every segment (or page of an expandable one) that is wholly free (`release_cached_blocks`)."""
        for pool in (self.large, self.small):
            for key in list(pool.keys):
                block = pool.blocks.get(key)
                if block is None:
                    continue
                if self.expandable:
                    self._unmap(block)
                elif block.previous is None and block.following is None:
                    pool.remove(block)
                    self.reserved -= block.size

    def reset_peak_allocated(self) -> None:
        """Start a new peak of allocated bytes from the present level."""
        self.peak_allocated = self.allocated

    def _free_block(self, pool: Pool, size: int) -> Block | None:
        """Best fit among the cached blocks (`get_free_block`)."""
        keys = pool.keys
        index = bisect_left(keys, size << _ADDRESS_BITS)
        if index == len(keys):
            return None
        if self.expandable:
            # the block before the unmapped rest counts with the size it can grow to, so that it is taken last
            while index + 1 < len(keys) and _room(pool.blocks[keys[index + 1]]) < _room(pool.blocks[keys[index]]):
                index += 1
        return pool.blocks.pop(keys.pop(index))

    def _alloc_block(self, pool: Pool, size: int) -> Block | None:
        """A new segment, or more pages of the expandable one; None where the cap forbids it (`alloc_block`)."""
        if self.expandable:
            return self._expand(pool, size)
        wanted = allocation_size(size)
        if not self._grow(wanted):
            return None
        block = Block(self._next_address, wanted, pool)
        self._next_address += wanted
        return block

    def _grow(self, size: int) -> bool:
        """Take `size` bytes more from the device; false, and nothing taken, where the cap forbids it."""
        if self.cap is not None and self.reserved + size > self.cap:
            return False
        self.reserved += size
        if self.reserved > self.peak_reserved:
            self.peak_reserved = self.reserved
        return True

    def _expand(self, pool: Pool, size: int) -> Block | None:
        """`try_allocate_expandable_block`: the lowest address with room, mapped as far as needed."""
        block = self._find_expandable(pool, size)
        if not block.mapped and not self._map(block, min(block.size, size)):
            return None
        while block.size < size:
            following = block.following
            assert following is not None, "an expandable block is followed by unmapped space"
            if not self._map(following, min(size - block.size, following.size)):
                return None
            block = following
        pool.remove(block)
        return block

    def _find_expandable(self, pool: Pool, size: int) -> Block:
        for unmapped in pool.unmapped:
            before = unmapped.previous
            candidate = before if before is not None and not before.allocated else unmapped
            room, walk = 0, candidate
            while walk is not None and not walk.allocated and room < size:
                room += walk.size
                walk = walk.following  # type: ignore[assignment]  # None ends the walk
            if room >= size:
                return candidate
        block = Block(self._next_address, _ADDRESS_SPACE, pool)
        self._next_address += _ADDRESS_SPACE
        block.mapped = False
        insort(pool.unmapped, block, key=_address)
        return block

    def _map(self, block: Block, size: int) -> bool:
        """Back the first `size` bytes of an unmapped block with memory, in whole pages (`map_block`)."""
        pool = block.pool
        page = SMALL_BUFFER if pool.is_small else LARGE_BUFFER
        size = -(-size // page) * page
        if not self._grow(size):
            return False
        pool.unmapped.remove(block)
        block.mapped = True
        if size < block.size:
            rest = Block(block.address + size, block.size - size, pool)
            rest.mapped = False
            _link(block, rest, block.following)
            block.size = size
            insort(pool.unmapped, rest, key=_address)
        for neighbour in (block.previous, block.following):
            if neighbour is not None:
                self._merge(block, neighbour)
        pool.insert(block)
        return True

    def _unmap(self, block: Block) -> None:
        """Give back the whole pages inside a free block (`unmap_block`)."""
        pool = block.pool
        page = SMALL_BUFFER if pool.is_small else LARGE_BUFFER
        begin = -(-block.address // page) * page
        end = (block.address + block.size) // page * page
        if begin >= end:
            return
        pool.remove(block)
        if begin > block.address:
            before = Block(block.address, begin - block.address, pool)
            _link(block.previous, before, block)
            pool.insert(before)
        tail = block.address + block.size - end
        if tail:
            after = Block(end, tail, pool)
            _link(block, after, block.following)
            pool.insert(after)
        block.address, block.size, block.mapped = begin, end - begin, False
        for neighbour in (block.previous, block.following):
            if neighbour is not None:
                self._merge(block, neighbour)
        insort(pool.unmapped, block, key=_address)
        self.reserved -= end - begin

    def _merge(self, block: Block, neighbour: Block) -> None:
        """Take a free neighbour of the same kind into `block` (`try_merge_blocks`)."""
        if neighbour.allocated or neighbour.mapped is not block.mapped:
            return
        pool = block.pool
        if neighbour.mapped:
            pool.remove(neighbour)
        else:
            pool.unmapped.remove(neighbour)
        if block.previous is neighbour:
            block.address = neighbour.address
            block.previous = neighbour.previous
            if block.previous is not None:
                block.previous.following = block
        else:
            block.following = neighbour.following
            if block.following is not None:
                block.following.previous = block
        block.size += neighbour.size


def _address(block: Block) -> int:
    return block.address


def _room(block: Block) -> int:
    following = block.following
    return block.size + (following.size if following is not None and not following.mapped else 0)


def _link(before: Block | None, block: Block, after: Block | None) -> None:
    """Put `block` between two neighbours (`splice`)."""
    block.previous, block.following = before, after
    if before is not None:
        before.following = block
    if after is not None:
        after.previous = block
