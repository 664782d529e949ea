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

ENOUGH_CAPS = 500
"""So many measured caps speak for themselves."""
UNCALIBRATED_RATE = 0.25
"""Where too little was measured to say anything: a good quarter on top of the activations, with no risk stated."""


def bounds_of(data: Prepared, unseen: Sequence[Composition], known: Sequence[Composition]) -> dict[str, dict[str, Any]]:
    """Bounds by target from compositions of every case: held back by architecture, and with all operators looked up.

    Networks drawn at random are no family of anything that a user brings: they count among the known only. The smallest
    cap takes a search of its own and was measured for some cases only. Elsewhere the reserved memory can stand in for
    it, which is never less, so that its bound is on the safe side: everywhere while caps are few, and in families that
    have none of them once there are `ENOUGH_CAPS`.
    """
    return {
        "min_cap": _bounds(data, unseen, known, "min_cap_bytes", _caps(data)),
        "reserved": _bounds(data, unseen, known, "reserved_bytes", [case.labels.reserved_bytes for case in data.cases]),
    }


def _caps(data: Prepared) -> list[float]:
    """Smallest cap of each case, measured or stood in for; NaN where it is left out."""
    measured = [math.isfinite(case.labels.min_cap_bytes) for case in data.cases]
    enough = sum(measured) >= ENOUGH_CAPS
    covered = {case.group for case, found in zip(data.cases, measured, strict=True) if found} if enough else set()
    return [
        case.labels.min_cap_bytes if found else math.nan if case.group in covered else case.labels.reserved_bytes
        for case, found in zip(data.cases, measured, strict=True)
    ]


def _bounds(
    data: Prepared, unseen: Sequence[Composition], known: Sequence[Composition], name: str, measured: Sequence[float]
) -> dict[str, Any]:
    known_scores: list[float] = []
    families: dict[str, list[float]] = defaultdict(list)
    for case, far, near, value in zip(data.cases, unseen, known, measured, strict=True):
        if not math.isfinite(value) or value <= 0:
            continue
        if case.group != RANDOM:
            families[case.group].append(_score(value, far, name))
        known_scores.append(_score(value, near, name))
    worst = max((s for group in families.values() for s in group), default=0.0)
    return {
        "known": {str(risk): rate for risk, rate in known_bounds(known_scores).items()},
        "known_sample": len(known_scores),
        "unknown": {str(risk): rate for risk, rate in unknown_bounds(families).items()},
        "unknown_sample": len(families),
        "otherwise": max(UNCALIBRATED_RATE, worst),
    }


def _score(measured: float, composed: Composition, name: str) -> float:
    return score(measured, getattr(composed, name), composed.weights_bytes + composed.inputs_bytes)
