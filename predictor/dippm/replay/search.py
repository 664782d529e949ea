"""The search for the smallest cap (or `gpu_mem_limit`) that passes, whatever a trial is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

RESOLUTION = 0.01
FIRST_STEP = 0.02


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a search: the smallest value that passed, the largest that failed, and how often it was tried."""

    passed: float
    failed: float
    trials: int


def search(
    passes: Callable[[float], float | None], *, guess: float, low: float, high: float, resolution: float = RESOLUTION
) -> Found:
    """Between `low` (sure to fail) and `high` (sure to pass), to `resolution`: from the guess in growing steps until
    one trial passed and one failed, then by halves.

    `passes` gives None where it failed, else what was used: no more than that is needed.
    """
    trials, step = 0, FIRST_STEP
    tried_low = tried_high = False
    value = guess if low < guess < high else (low + high) / 2
    while high - low > resolution * high:
        used = passes(value)
        trials += 1
        if used is None:
            low, tried_low = value, True
        else:
            high, tried_high = min(value, max(used, low)), True
        value = high * (1 - step) if tried_high else low * (1 + step)
        if (tried_low and tried_high) or not low < value < high:
            value = (low + high) / 2
        step *= 3
    return Found(high, low, trials)
