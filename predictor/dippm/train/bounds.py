"""Calibration of the upper bounds from held-back predictions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dippm.network.calibration import known_bounds, score, unknown_bounds
from dippm.network.compose import Composition
from dippm.train.fit import Prepared
from dippm.train.split import RANDOM

BOUNDED = {"min_cap": "min_cap_bytes", "reserved": "reserved_bytes"}
UNCALIBRATED_RATE = 0.25
"""Where too little was measured to say anything: a good quarter on top of the activations, with no risk stated."""


def bounds_of(data: Prepared, unseen: Sequence[Composition], known: Sequence[Composition]) -> dict[str, dict[str, Any]]:
    """Bounds by target from compositions of every case: held back by architecture, and with all operators looked up.

    Networks drawn at random are no family of anything that a user brings: they count among the known only. The smallest
    cap takes a search of its own and was measured for few cases; elsewhere the reserved memory stands in for it, which
    is never less, so that its bound is on the safe side.
    """
    out = {}
    for target, name in BOUNDED.items():
        known_scores: list[float] = []
        families: dict[str, list[float]] = defaultdict(list)
        for case, far, near in zip(data.cases, unseen, known, strict=True):
            measured = getattr(case.labels, name)
            if target == "min_cap" and not math.isfinite(measured):
                measured = case.labels.reserved_bytes
            if not math.isfinite(measured) or measured <= 0:
                continue
            if case.group != RANDOM:
                families[case.group].append(_score(measured, far, name))
            known_scores.append(_score(measured, near, name))
        worst = max((s for group in families.values() for s in group), default=0.0)
        out[target] = {
            "known": {str(risk): rate for risk, rate in known_bounds(known_scores).items()},
            "known_sample": len(known_scores),
            "unknown": {str(risk): rate for risk, rate in unknown_bounds(families).items()},
            "unknown_sample": len(families),
            "otherwise": max(UNCALIBRATED_RATE, worst),
        }
    return out


def _score(measured: float, composed: Composition, name: str) -> float:
    return score(measured, getattr(composed, name), composed.weights_bytes + composed.inputs_bytes)
