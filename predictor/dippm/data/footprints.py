"""Footprints on a log scale: which doubling a case lies in, and as many cases of each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from dippm.data.splits import draw

LEAST_MIB, MOST_MIB = 750.0, 120_000.0
"""Between these the cases of a data set are to be spread evenly on a log scale."""


def doubling(mib: float) -> int:
    """Which doubling of `LEAST_MIB` a footprint lies in, from 0; negative below it."""
    return math.floor(math.log2(max(mib, 1.0) / LEAST_MIB))


def limits(number: int) -> tuple[float, float]:
    """Where a doubling begins and ends, MiB; the last one ends early, at `MOST_MIB`."""
    least = LEAST_MIB * 2**number
    return least, min(2 * least, MOST_MIB)


def share(number: int, each: int) -> int:
    """Cases of a doubling where a whole one has `each`."""
    least, most = limits(number)
    return round(each * math.log2(most / least))


def evenly_spread(footprints: Iterable[tuple[str, float]], each: int) -> set[str]:
    """Ids of at most `each` cases of every doubling, of (id, footprint in MiB): always the same ones of the same cases,
    and of fewer `each` a part of them."""
    of_doubling: dict[int, list[str]] = defaultdict(list)
    for name, mib in footprints:
        if LEAST_MIB <= mib <= MOST_MIB:
            of_doubling[doubling(mib)].append(name)
    return {
        name
        for number, names in of_doubling.items()
        for name in sorted(names, key=lambda name: draw("even", name))[: share(number, each)]
    }
