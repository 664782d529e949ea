"""From cases and their predictions to held-back rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dippm.evaluate.errors import formula_bytes
from dippm.evaluate.heldback import FIGURES, HeldBackRow
from dippm.network.compose import Composition
from dippm.train.labels import CaseLabels, MeasuredCase


def heldback_rows(
    cases: Sequence[MeasuredCase],
    fold_of: npt.NDArray[np.int64],
    known_share: Sequence[float],
    predicted: Sequence[Composition],
    composed: Sequence[Composition],
) -> list[HeldBackRow]:
    """One row a case; its context is predicted as the median of the other folds'."""
    contexts = np.array([c.labels.context_bytes for c in cases])
    rows = []
    for index, case in enumerate(cases):
        others = contexts[(fold_of != fold_of[index]) & np.isfinite(contexts)]
        context = float(np.median(others)) if len(others) else math.nan
        example = case.example
        rows.append(
            HeldBackRow(
                id=example.id,
                architecture=example.architecture,
                group=example.group,
                fold=int(fold_of[index]),
                batch=example.case.batch,
                precision=example.case.precision.value,
                mode=example.case.mode.value,
                runtime=example.case.runtime.value,
                allocator=example.case.allocator.value,
                operators=len(example.graph.operators),
                known_share=known_share[index],
                formula_bytes=formula_bytes(example.graph),
                resident_bytes=case.labels.weights_bytes + case.labels.inputs_bytes,
                context_bytes=context,
                measured=tuple(_measured(case.labels, name) for name in FIGURES),
                predicted=tuple(_predicted(predicted[index], name, context) for name in FIGURES),
                composed=tuple(_predicted(composed[index], name, context) for name in FIGURES),
            )
        )
    return rows


def _measured(labels: CaseLabels, figure: str) -> float:
    if figure == "footprint_bytes":
        return labels.reserved_bytes + labels.context_bytes
    return float(getattr(labels, figure))


def _predicted(composition: Composition, figure: str, context: float) -> float:
    if figure == "footprint_bytes":
        return composition.reserved_bytes + context
    return float(getattr(composition, figure))
