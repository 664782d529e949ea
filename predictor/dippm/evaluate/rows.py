"""From cases and their predictions to held-back rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dippm.evaluate.heldback import FIGURES, HeldBackRow
from dippm.network.compose import Composition
from dippm.train.labels import CaseLabels, MeasuredCase


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of each case's graph."""

    known_share: Sequence[float]
    formula_bytes: Sequence[float]
    operators: Sequence[int]


def heldback_rows(
    cases: Sequence[MeasuredCase],
    fold_of: npt.NDArray[np.int64],
    facts: Facts,
    predicted: Sequence[Composition],
    composed: Sequence[Composition],
) -> list[HeldBackRow]:
    """One row a case; its context is predicted as the median of the other folds' (of all, where the fold is -1)."""
    contexts = np.array([c.labels.context_bytes for c in cases])
    usual = {fold: _median(contexts[(fold_of != fold) | (fold < 0)]) for fold in np.unique(fold_of).tolist()}
    rows = []
    for index, case in enumerate(cases):
        context = usual[int(fold_of[index])]
        rows.append(
            HeldBackRow(
                id=case.id,
                architecture=case.architecture,
                group=case.group,
                fold=int(fold_of[index]),
                batch=case.case.batch,
                precision=case.case.precision.value,
                mode=case.case.mode.value,
                runtime=case.case.runtime.value,
                allocator=case.case.allocator.value,
                operators=facts.operators[index],
                known_share=facts.known_share[index],
                formula_bytes=facts.formula_bytes[index],
                resident_bytes=case.labels.weights_bytes + case.labels.inputs_bytes,
                context_bytes=context,
                measured=tuple(_measured(case.labels, name) for name in FIGURES),
                predicted=tuple(_predicted(predicted[index], name, context) for name in FIGURES),
                composed=tuple(_predicted(composed[index], name, context) for name in FIGURES),
            )
        )
    return rows


def _median(values: npt.NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def _measured(labels: CaseLabels, figure: str) -> float:
    if figure == "footprint_bytes":
        return labels.reserved_bytes + labels.context_bytes
    return float(getattr(labels, figure))


def _predicted(composition: Composition, figure: str, context: float) -> float:
    if figure == "footprint_bytes":
        return composition.reserved_bytes + context
    return float(getattr(composition, figure))
