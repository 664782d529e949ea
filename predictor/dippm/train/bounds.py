"""Calibration of the upper bounds from held-back predictions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dippm.network.calibration import known_bounds, unknown_bounds
from dippm.network.compose import Composition
from dippm.train.fit import Prepared
from dippm.train.split import RANDOM

BOUNDED = {"min_cap": "min_cap_bytes", "reserved": "reserved_bytes"}
UNCALIBRATED_FACTOR = 1.25
"""Where too little was measured to say anything: a quarter on top, with no risk stated."""


def bounds_of(data: Prepared, unseen: Sequence[Composition], known: Sequence[Composition]) -> dict[str, dict[str, Any]]:
    """Bounds by target from compositions of every case: held back by architecture, and with all operators looked up.

    Networks drawn at random are no family of anything that a user brings: they count among the known only. A case whose
    target was not measured is left out of that target's scores.
    """
    out = {}
    for target, name in BOUNDED.items():
        known_scores: list[float] = []
        families: dict[str, list[float]] = defaultdict(list)
        for case, far, near in zip(data.cases, unseen, known, strict=True):
            measured = getattr(case.labels, name)
            if not math.isfinite(measured) or measured <= 0:
                continue
            if case.example.group != RANDOM:
                families[case.example.group].append(math.log(measured / getattr(far, name)))
            known_scores.append(math.log(measured / getattr(near, name)))
        worst = max((s for group in families.values() for s in group), default=0.0)
        out[target] = {
            "known": {str(risk): factor for risk, factor in known_bounds(known_scores).items()},
            "known_sample": len(known_scores),
            "unknown": {str(risk): factor for risk, factor in unknown_bounds(families).items()},
            "unknown_sample": len(families),
            "otherwise": max(UNCALIBRATED_FACTOR, math.exp(worst)),
        }
    return out
