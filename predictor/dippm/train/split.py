"""Splits by architecture: relatives stay on one side, rows are never divided."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FOLDS = 5
RANDOM = "random"
"""Super-family of networks drawn at random: they have no relatives, so each is divided off by itself."""


def split_keys(groups: Sequence[str], architectures: Sequence[str]) -> list[str]:
    """What must stay on one side, by case: its super-family, or the network itself where it was drawn at random."""
    return [a if g == RANDOM else g for g, a in zip(groups, architectures, strict=True)]


def folds(groups: Sequence[str], count: int = FOLDS, seed: int = 0) -> npt.NDArray[np.int64]:
    """Fold of each case, [n]: whole groups (super-families), balanced by number of cases.

    The groups are taken largest first, ties in an order drawn from the seed, each into the fold with the fewest cases.
    """
    names, inverse, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    drawn = np.random.default_rng(seed).permutation(len(names))
    order = sorted(range(len(names)), key=lambda g: (-int(sizes[g]), int(drawn[g])))
    load = np.zeros(count, dtype=np.int64)
    fold_of_group = np.zeros(len(names), dtype=np.int64)
    for group in order:
        fold = int(load.argmin())
        fold_of_group[group] = fold
        load[fold] += sizes[group]
    return fold_of_group[inverse.reshape(-1)]
