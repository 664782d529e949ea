"""Errors of predictions: mean absolute percentage, beside the plain formula."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dippm.graph import ModelGraph, ValueKind

TARGETS: tuple[tuple[str, str], ...] = (
    ("allocated_bytes", "allocated memory"),
    ("activations_bytes", "its activations"),
    ("reserved_bytes", "reserved memory"),
    ("footprint_bytes", "footprint (context + reserved)"),
    ("min_cap_bytes", "smallest cap"),
    ("device_ms", "device time"),
    ("host_ms", "host time"),
    ("latency_ms", "eager latency"),
    ("energy_j", "energy"),
)
FORMULA_TARGETS = frozenset(
    {"allocated_bytes", "activations_bytes", "reserved_bytes", "footprint_bytes", "min_cap_bytes"}
)


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """Percentage errors of one target over some cases."""

    target: str
    name: str
    cases: int
    mean: float
    """Mean absolute percentage error (MAPE)."""
    median: float
    p95: float
    within_10: float
    """Share of cases within 10 %, percent."""
    formula_mean: float
    """MAPE of weights + inputs + 3 x largest output; NaN where the formula says nothing."""
    formula_median: float


def formula_bytes(graph: ModelGraph) -> float:
    """The plain formula: weights and inputs and three times the largest output, bytes."""
    resident = sum(
        v.spec.nbytes for v in graph.values if (v.kind.is_state or v.kind is ValueKind.INPUT) and v.alias_of is None
    )
    largest = max((v.spec.nbytes for v in graph.values if v.kind is ValueKind.RESULT), default=0)
    return float(resident + 3 * largest)


def percentage_errors(
    measured: Sequence[float], predicted: Sequence[float]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """|predicted / measured - 1| in percent, where measured is finite and positive."""
    pairs = [(m, p) for m, p in zip(measured, predicted, strict=True) if math.isfinite(m) and m > 0]
    return np.array([100 * abs(p / m - 1) for m, p in pairs], dtype=np.float64)


def error_row(
    target: str, name: str, measured: Sequence[float], predicted: Sequence[float], formula: Sequence[float]
) -> ErrorRow | None:
    """Errors of one target; None where it was measured nowhere."""
    errors = percentage_errors(measured, predicted)
    if not len(errors):
        return None
    plain = percentage_errors(measured, formula) if target in FORMULA_TARGETS else np.array([math.nan])
    return ErrorRow(
        target=target,
        name=name,
        cases=len(errors),
        mean=float(errors.mean()),
        median=float(np.median(errors)),
        p95=float(np.percentile(errors, 95)),
        within_10=100 * float((errors <= 10).mean()),
        formula_mean=float(plain.mean()),
        formula_median=float(np.median(plain)),
    )


def render(rows: Sequence[ErrorRow]) -> str:
    """The error table in Markdown."""
    lines = [
        "| target | cases | MAPE | median | 95 % of cases within | within 10 % | formula MAPE | formula median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        formula = ("-", "-") if math.isnan(r.formula_mean) else (f"{r.formula_mean:.1f} %", f"{r.formula_median:.1f} %")
        lines.append(
            f"| {r.name} | {r.cases} | {r.mean:.2f} % | {r.median:.2f} % | {r.p95:.1f} % | {r.within_10:.0f} % "
            f"| {formula[0]} | {formula[1]} |"
        )
    return "\n".join(lines)
