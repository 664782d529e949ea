"""A bundle's predictions of measured rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dippm.evaluate.errors import formula_bytes
from dippm.evaluate.heldback import HeldBackRow, read_rows, write_rows
from dippm.evaluate.rows import Facts, heldback_rows
from dippm.network.bundle import load_bundle, read_bundle
from dippm.network.compose import compose, correct
from dippm.train.examples import read_cases


def rows_of_bundle(
    data: Path,
    weights: Path | None,
    out: Path | None,
    show: Callable[[int, int], None],
    *,
    release: bool = False,
    unseen: Path | None = None,
    sample: int | None = None,
) -> list[HeldBackRow]:
    """Rows of cases in a data set as a bundle predicts them.

    With `release`, of the locked super-families alone; with `unseen`, of architectures that this file of held-back rows
    (so the bundle's training) does not hold; with `sample`, of so many cases.
    """
    bundle = read_bundle(weights) if weights is not None else load_bundle()
    seen = frozenset() if unseen is None else {row.architecture for row in read_rows(unseen)}
    cases = read_cases(data, release=release, seen=seen, sample=sample)
    composed, predicted, known, formula, operators = [], [], [], [], []
    for index, case in enumerate(cases):
        graph, asked = case.source.graph(), case.case
        estimates = bundle.estimate(graph, asked)
        composed.append(compose(graph, asked, estimates))
        predicted.append(correct(composed[-1], estimates.log_residuals))
        known.append(estimates.known_share)
        formula.append(formula_bytes(graph))
        operators.append(len(graph.operators))
        show(index + 1, len(cases))
    # No fold holds the others back: the context is the data set's own median.
    fold_of = np.full(len(cases), -1)
    rows = heldback_rows(cases, fold_of, Facts(known, formula, operators), predicted, composed)
    if out is not None:
        write_rows(out, rows)
    return rows
