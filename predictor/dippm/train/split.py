"""Splits by super-family: relatives stay on one side, cases are never divided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dippm.data.splits import FOLDS, RANDOM, fold_of
from dippm.train.corpus import UNMEASURED, Corpus

__all__ = ["FOLDS", "RANDOM", "folds", "without_held_back_operators"]

Index = npt.NDArray[np.int64]


def folds(groups: Sequence[str], architectures: Sequence[str], count: int = FOLDS, seed: int = 0) -> Index:
    """Fold of each case, [n]: where `dippm.data.splits` says, which keeps whole super-families together.

    Super-families that it does not know (a data set of one's own) are taken largest first, ties in an order drawn from
    the seed, each into the fold with the fewest cases.
    """
    fixed = np.array([_known(g, a) for g, a in zip(groups, architectures, strict=True)], dtype=np.int64)
    load = np.bincount(fixed[fixed >= 0] % count, minlength=count)
    free = np.flatnonzero(fixed < 0)
    found = fixed % count
    names, inverse, sizes = np.unique(np.asarray(groups)[free], return_inverse=True, return_counts=True)
    drawn = np.random.default_rng(seed).permutation(len(names))
    fold_of_group = np.zeros(len(names), dtype=np.int64)
    for group in sorted(range(len(names)), key=lambda g: (-int(sizes[g]), int(drawn[g]))):
        fold = int(load.argmin())
        fold_of_group[group] = fold
        load[fold] += sizes[group]
    found[free] = fold_of_group[inverse.reshape(-1)]
    return found


def _known(group: str, architecture: str) -> int:
    fold = fold_of(group, architecture)
    return -1 if fold is None else fold


def without_held_back_operators(corpus: Corpus, held_back: Index) -> Corpus:
    """The corpus with the labels of random networks' operators taken out that some held-back case has too.

    An operator is the same where its key is (`dippm.network.lookup`): signature, precision, mode. A network drawn at
    random would otherwise hand over what was measured of the very operators that are held back.
    """
    if not len(held_back):
        return corpus
    sizes = np.diff(corpus.node_start)
    held = np.repeat(np.isin(np.arange(len(corpus)), held_back), sizes)
    drawn = np.repeat(corpus.groups == RANDOM, sizes)
    hidden = drawn & ~held & np.isin(corpus.keys, np.unique(corpus.keys[held]))
    return replace(
        corpus,
        kernel_us=np.where(hidden, np.float32(np.nan), corpus.kernel_us),
        kernels=np.where(hidden, np.int16(0), corpus.kernels),
        workspace_class=np.where(hidden, np.int8(UNMEASURED), corpus.workspace_class),
        workspace_bytes=np.where(hidden, np.int64(UNMEASURED), corpus.workspace_bytes),
    )
