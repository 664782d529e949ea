"""The simulator of PyTorch's caching allocator: its rules one by one, and what holds for any sequence of requests."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dippm.case import Allocator
from dippm.replay.allocator import MIB, CachingAllocator, CapReached, allocation_size, round_size

LIGHT = settings(deadline=None, max_examples=50)
SIZES = st.one_of(st.integers(1, 4 * MIB), st.integers(1, 64 * MIB))
SEQUENCES = st.lists(st.one_of(SIZES, st.integers(-40, -1)), max_size=80)
"""Requests above 0; below 0 the free of one of the blocks in use."""


def test_sizes_are_rounded_as_pytorch_rounds_them() -> None:
    assert [round_size(n) for n in (1, 512, 513, MIB)] == [512, 512, 1024, MIB]
    assert allocation_size(MIB) == 2 * MIB
    assert allocation_size(MIB + 512) == 20 * MIB
    assert allocation_size(10 * MIB) == 10 * MIB
    assert allocation_size(11 * MIB) == 12 * MIB


def test_small_requests_share_a_segment_of_2_mib() -> None:
    allocator = CachingAllocator()
    for _ in range(4):
        allocator.malloc(512 * 1024)
    assert (allocator.allocated, allocator.reserved) == (2 * MIB, 2 * MIB)
    allocator.malloc(1)
    assert (allocator.allocated, allocator.reserved) == (2 * MIB + 512, 4 * MIB)


def test_requests_between_1_and_10_mib_share_a_segment_of_20_mib() -> None:
    allocator = CachingAllocator()
    allocator.malloc(9 * MIB)
    allocator.malloc(9 * MIB)
    assert allocator.reserved == 20 * MIB
    allocator.malloc(3 * MIB)  # 2 MiB are left: too few
    assert allocator.reserved == 40 * MIB


def test_a_remainder_of_up_to_1_mib_of_a_large_block_is_not_split_off_and_counts_as_allocated() -> None:
    allocator = CachingAllocator()
    allocator.malloc(11 * MIB)
    assert (allocator.allocated, allocator.reserved) == (12 * MIB, 12 * MIB)
    expandable = CachingAllocator(Allocator.EXPANDABLE)
    expandable.malloc(11 * MIB)
    assert (expandable.allocated, expandable.reserved) == (11 * MIB, 20 * MIB)


def test_the_smallest_cached_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.malloc(n * MIB) for n in (40, 20, 30)]
    for block in blocks:
        allocator.free(block)
    assert allocator.malloc(18 * MIB).size == 18 * MIB
    assert allocator.malloc(25 * MIB).size == 25 * MIB
    assert allocator.malloc(35 * MIB).size == 35 * MIB
    assert allocator.reserved == 90 * MIB


def test_freed_neighbours_merge_into_one_block() -> None:
    allocator = CachingAllocator()
    parts = [allocator.malloc(5 * MIB) for _ in range(4)]
    for part in (parts[1], parts[3], parts[2], parts[0]):
        allocator.free(part)
    allocator.malloc(9 * MIB)
    assert allocator.reserved == 20 * MIB


def test_a_cap_makes_cached_segments_go_back_and_counts_the_retry() -> None:
    allocator = CachingAllocator(cap=64 * MIB)
    allocator.free(allocator.malloc(40 * MIB))
    allocator.malloc(50 * MIB)
    assert (allocator.retries, allocator.reserved) == (1, 50 * MIB)
    with pytest.raises(CapReached):
        allocator.malloc(20 * MIB)


def test_a_segment_partly_in_use_does_not_go_back() -> None:
    allocator = CachingAllocator()
    small = allocator.malloc(4 * MIB)
    allocator.free(allocator.malloc(8 * MIB))
    allocator.empty_cache()
    assert allocator.reserved == 20 * MIB
    allocator.free(small)
    allocator.empty_cache()
    assert allocator.reserved == 0


def test_an_expandable_segment_grows_by_pages_and_gives_whole_pages_back() -> None:
    allocator = CachingAllocator(Allocator.EXPANDABLE)
    first = allocator.malloc(15 * MIB)
    second = allocator.malloc(15 * MIB)  # 5 MiB are left of the first page: one more page is mapped
    assert allocator.reserved == 40 * MIB
    allocator.free(second)
    allocator.empty_cache()
    assert allocator.reserved == 20 * MIB
    allocator.free(first)
    third = allocator.malloc(45 * MIB)
    assert allocator.reserved == 60 * MIB
    allocator.free(third)
    allocator.empty_cache()
    assert allocator.reserved == 0


def _play(allocator: CachingAllocator, sequence: list[int]) -> None:
    """Runs a sequence, checking what must hold after each step, and frees all at the end."""
    live = []
    wanted = 0
    for step in sequence:
        if step > 0:
            live.append((allocator.malloc(step), round_size(step)))
            wanted += round_size(step)
        elif live:
            block, size = live.pop(step % len(live))
            allocator.free(block)
            wanted -= size
        assert wanted <= allocator.allocated <= allocator.reserved
        spans = sorted((block.address, block.address + block.size) for block, _ in live)
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for block, _ in live:
        allocator.free(block)


@LIGHT
@given(SEQUENCES, st.sampled_from(Allocator))
def test_whatever_is_asked_blocks_never_overlap_and_all_of_it_comes_back(sequence: list[int], kind: Allocator) -> None:
    allocator = CachingAllocator(kind)
    _play(allocator, sequence)
    assert allocator.allocated == 0
    assert allocator.peak_reserved >= allocator.peak_allocated
    allocator.empty_cache()
    assert allocator.reserved == 0


@LIGHT
@given(SEQUENCES)
def test_expandable_segments_reserve_a_page_a_pool_more_than_the_level_at_most_when_nothing_is_freed(
    sequence: list[int],
) -> None:
    requests = [size for size in sequence if size > 0]
    expandable = CachingAllocator(Allocator.EXPANDABLE)
    for size in requests:
        expandable.malloc(size)
    assert expandable.reserved < expandable.allocated + 22 * MIB


@LIGHT
@given(SEQUENCES, st.sampled_from(Allocator))
def test_under_a_cap_that_never_binds_nothing_changes(sequence: list[int], kind: Allocator) -> None:
    free = CachingAllocator(kind)
    _play(free, sequence)
    capped = CachingAllocator(kind, cap=free.peak_reserved)
    _play(capped, sequence)
    assert (capped.retries, capped.peak_reserved) == (0, free.peak_reserved)
    assert capped.peak_allocated == free.peak_allocated
