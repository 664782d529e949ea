"""The smallest cap on the allocator under which a model loads and runs: what a slice must really offer."""

from __future__ import annotations

from dippm.case import Allocator
from dippm.replay.allocator import MIB, CachingAllocator, CapReached
from dippm.replay.program import Program, Session

PASSES = 3
RESOLUTION = 0.005
"""Relative width at which the search stops, as for the measured label."""


def smallest_cap(
    program: Program, allocator: Allocator, *, allocated: int, enough: int, warm_passes: int = 1, floor: int = 0
) -> int:
    """Bytes: the smallest cap, set before the model is loaded, under which loading and three passes succeed and no
    pass after the first `warm_passes` makes the allocator give cached memory back.

    With `warm_passes` 1 loading and the first pass may: it costs a release of the cache, once. With 0 nothing may, and
    the answer is `enough`. Bisected to `RESOLUTION` between `allocated`, the peak that is needed whatever the cap, and
    `enough`, what is reserved without one. The answer is what was reserved under the smallest cap that passed. Where
    `enough` is no more than `floor` it is not looked for: whoever asks has that much anyway.
    """
    if not warm_passes or enough <= floor:
        return enough
    low, high = min(allocated - allocated // 200, enough), enough
    while high - low > max(RESOLUTION * high, 2 * MIB):
        middle = (low + high) // 2
        reserved = reserved_under(program, allocator, middle, warm_passes=warm_passes)
        if reserved is None:
            low = middle
        else:
            high = max(low, reserved)
    return high


def reserved_under(program: Program, allocator: Allocator, cap: int, *, warm_passes: int = 1) -> int | None:
    """Peak reserved of loading and three passes under `cap` bytes; None if they do not succeed, or if the allocator
    has to give memory back after the first `warm_passes`."""
    session = Session(program, CachingAllocator(allocator, cap))
    settled = 0
    try:
        session.load()
        for done in range(PASSES):
            if 0 < done == warm_passes:
                settled = session.allocator.retries
            session.run()
            if done >= warm_passes and session.allocator.retries != settled:
                return None
    except CapReached:
        return None
    return session.allocator.peak_reserved
