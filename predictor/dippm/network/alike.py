"""Operators that a GraphSAGE block cannot tell apart: one of each kind is computed.

Two operators come out of a block alike if they and their neighbours, in order, went in alike: the refinement of colours
of Weisfeiler and Leman (1968), block by block. Deep networks repeat their layers: of the 844 operators of a Swin-base
250 are left after three blocks.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Alike:
    """Operators in classes."""

    first: npt.NDArray[np.int64]
    """[n_classes]: of each class the operator that stands for it, the first."""
    of: npt.NDArray[np.int64]
    """[n]: the class of each operator."""


def each_alone(count: int) -> Alike:
    """So many operators, each in a class of its own."""
    every = np.arange(count, dtype=np.int64)
    return Alike(every, every)


def by_rows(rows: npt.NDArray[np.float32]) -> Alike:
    """Operators with equal rows [n, width] together."""
    return _classes(row.tobytes() for row in rows)


def refined(classes: Alike, around: list[list[int]]) -> Alike:
    """Those of a class together whose neighbours (`around`, by operator, in order) are of the same classes in turn."""
    of = classes.of.tolist()
    return _classes((own, *[of[n] for n in near]) for own, near in zip(of, around, strict=True))


def neighbours_of(count: int, edges: npt.NDArray[np.int64]) -> list[list[int]]:
    """The in-neighbours of each of `count` operators, in the order of the edges [2, e]."""
    around: list[list[int]] = [[] for _ in range(count)]
    for source, destination in zip(*edges.tolist(), strict=True):
        around[destination].append(source)
    return around


def _classes(keys: Iterable[Hashable]) -> Alike:
    known: dict[Hashable, int] = {}
    first: list[int] = []
    of: list[int] = []
    for index, key in enumerate(keys):
        number = known.setdefault(key, len(first))
        if number == len(first):
            first.append(index)
        of.append(number)
    return Alike(np.array(first, dtype=np.int64), np.array(of, dtype=np.int64))
