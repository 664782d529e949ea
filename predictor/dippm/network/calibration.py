"""Upper bounds from conformal prediction, by what is known of the model.

Weights are known exactly, activations are what a prediction can get wrong. So the score of a case is

    log(measured / predicted) / (share of activations in the prediction + 0.05)

(locally weighted conformal prediction, Lei et al. 2018), on cases that the prediction was not trained on.
Two situations:

- `known`: (nearly) every operator of the graph was measured. Split conformal over cases (Vovk et al. 2005): the
  ceil((n + 1)(1 - risk))-th smallest score.
- `unknown`: an architecture unlike those measured. Hierarchical conformal over families (Lee, Barber, Willett 2023):
  each of K families weighs 1 / (K + 1), its cases share that, and 1 / (K + 1) stands at infinity. Under 2 / (K + 1) a
  single family would decide: that is the smallest risk that is stated; where less is asked for, it is used and named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RISKS_PERCENT: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 15.0, 20.0, 30.0)
BASE_SHARE = 0.05
"""What may go wrong of a case that is all weights."""
MINIMUM_CASES = 20
MINIMUM_FAMILIES = 5


@dataclass(frozen=True, slots=True)
class UpperBound:
    """From an estimate to its upper bound."""

    rate: float
    """Quantile of the scores, at least 0."""
    risk_percent: float | None
    """Share of such cases that may lie above; None: `uncalibrated`."""
    basis: str
    """`known`, `unknown` (families) or `uncalibrated`."""
    sample: int
    """Cases (known) or families (unknown) that it stands on."""

    @property
    def factor(self) -> float:
        """Factor for an estimate that is all activations: the largest there is."""
        return math.exp(self.rate * (1 + BASE_SHARE))

    def above(self, estimate: float, resident: float) -> float:
        """Upper bound of an estimate of which `resident` (weights and inputs, the same unit) is known exactly."""
        return estimate * math.exp(self.rate * _weight(estimate, resident))

    @property
    def calibrated(self) -> bool:
        """Whether a risk may be stated with it."""
        return self.risk_percent is not None


def score(measured: float, predicted: float, resident: float) -> float:
    """Score of one case; `resident` is what the prediction holds of weights and inputs."""
    return math.log(measured / predicted) / _weight(predicted, resident)


def _weight(estimate: float, resident: float) -> float:
    return min(1.0, max(0.0, 1 - resident / estimate)) + BASE_SHARE if estimate > 0 else 1 + BASE_SHARE


def known_bounds(scores: Sequence[float]) -> dict[float, float]:
    """Rate for each of `RISKS_PERCENT` that so many cases support."""
    ordered = sorted(scores)
    count = len(ordered)
    if count < MINIMUM_CASES:
        return {}
    bounds: dict[float, float] = {}
    for risk in RISKS_PERCENT:
        rank = math.ceil((count + 1) * (1 - risk / 100))
        if rank <= count:
            bounds[risk] = max(0.0, ordered[rank - 1])
    return bounds


def unknown_bounds(scores: Mapping[str, Sequence[float]]) -> dict[float, float]:
    """Rate for each risk, and for the smallest risk that the families support, from scores by family."""
    families = len(scores)
    if families < MINIMUM_FAMILIES:
        return {}
    weighted = sorted((s, 1 / (families + 1) / len(group)) for group in scores.values() for s in group)
    least = math.ceil(2000 / (families + 1)) / 10
    bounds: dict[float, float] = {}
    for risk in sorted({least, *(r for r in RISKS_PERCENT if r > least)}):
        mass = 0.0
        for value, weight in weighted:
            mass += weight
            if mass >= 1 - risk / 100 - 1e-12:
                bounds[risk] = max(0.0, value)
                break
    return bounds


def choose(
    bounds: Mapping[float, float], risk_percent: float, *, basis: str, sample: int, otherwise: float
) -> UpperBound:
    """The bound of the largest calibrated risk not above the one asked for, else of the smallest there is.

    `otherwise` is the rate where nothing is calibrated.
    """
    if not bounds:
        return UpperBound(otherwise, None, "uncalibrated", sample)
    below = [risk for risk in bounds if risk <= risk_percent]
    risk = max(below) if below else min(bounds)
    return UpperBound(bounds[risk], risk, basis, sample)


def read(bounds: Mapping[str, Mapping[str, Any]], risk_percent: float, *, known: bool) -> dict[str, UpperBound]:
    """Upper bounds by target, as a file holds them: `known` and `unknown` rates by risk, sample sizes, `otherwise`."""
    basis = "known" if known else "unknown"
    return {
        target: choose(
            {float(risk): rate for risk, rate in body[basis].items()},
            risk_percent,
            basis=basis,
            sample=int(body[f"{basis}_sample"]),
            otherwise=float(body["otherwise"]),
        )
        for target, body in bounds.items()
    }
