"""A gate for new weights: what they reach on architectures that were held back, and on cases that they know.

The limits stand a little above what the shipped weights reach; weights that are worse do not pass.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from dippm.data.splits import RANDOM, locked
from dippm.evaluate.heldback import FIGURES, HeldBackRow, error_table, measured_footprints, read_rows
from dippm.evaluate.right_profile import near_boundary, profile_share
from dippm.network.bundle import load_bundle
from dippm.network.compose import compose, correct
from dippm.train.examples import read_cases

ROOT = Path(__file__).parents[2]
HELDBACK = ROOT / "docs" / "accuracy" / "heldback.csv.gz"
LARGE_MIB = 24_000
"""From this footprint on cases are mostly of batches that nobody serves (up to 4,096), and have limits of their own."""
LIMITS = {
    ("named", "small"): {"allocated_bytes": 1.3, "activations_bytes": 1.7, "reserved_bytes": 3.6, "device_ms": 9.6},
    ("random", "small"): {"allocated_bytes": 6.8, "reserved_bytes": 9.8, "device_ms": 19.5},
    ("named", "large"): {"allocated_bytes": 2.3, "activations_bytes": 2.4, "reserved_bytes": 5.3},
    ("random", "large"): {"allocated_bytes": 7.8, "reserved_bytes": 12.0},
}
"""MAPE in percent."""
PROFILES = {
    ("A100-SXM4-40GB", "small"): (98.0, 92.5),
    ("H200", "small"): (99.0, 90.0),
    ("A100-SXM4-40GB", "large"): (95.0, 89.0),
    ("H200", "large"): (93.5, 90.0),
}
"""Percent of named cases with the right profile: of all, and of those near a profile's limit."""


@pytest.fixture(scope="module")
def rows() -> list[HeldBackRow]:
    return read_rows(HELDBACK)


def part_of(row: HeldBackRow) -> tuple[str, str]:
    footprint = row.measured[FIGURES.index("footprint_bytes")]
    return "random" if row.group == RANDOM else "named", "large" if footprint >= LARGE_MIB * 2**20 else "small"


@pytest.mark.parametrize("part", LIMITS)
def test_held_back_errors_stay_under_their_limits(rows: list[HeldBackRow], part: tuple[str, str]) -> None:
    errors = {row.target: row.mean for row in error_table([row for row in rows if part_of(row) == part])}
    assert {t: errors[t] for t, limit in LIMITS[part].items() if errors[t] > limit} == {}


def test_half_the_named_cases_are_exact(rows: list[HeldBackRow]) -> None:
    (allocated,) = [
        row for row in error_table([r for r in rows if r.group != RANDOM]) if row.target == "allocated_bytes"
    ]
    assert allocated.median < 0.1
    assert allocated.formula_mean > 10 * allocated.mean


@pytest.mark.parametrize(("device", "size"), PROFILES)
def test_the_right_profile_is_chosen(rows: list[HeldBackRow], device: str, size: str) -> None:
    share, near = PROFILES[device, size]
    footprints = measured_footprints([row for row in rows if part_of(row) == ("named", size)])
    assert profile_share(footprints, device) >= share
    assert profile_share(near_boundary(footprints, device), device) >= near


def test_the_held_back_rows_are_those_of_the_shipped_weights(rows: list[HeldBackRow]) -> None:
    said = load_bundle().schema.trained_on
    assert said["cases"] == len(rows)
    assert said["architectures"] == len({row.architecture for row in rows})
    assert not {row.group for row in rows} & locked()


def test_no_family_is_in_two_folds(rows: list[HeldBackRow]) -> None:
    folds = {(row.group, row.fold) for row in rows if row.group != RANDOM}
    assert len(folds) == len({group for group, _ in folds})


def test_cases_of_the_training_are_known_and_nearly_exact() -> None:
    bundle = load_bundle()
    cases = [case for case in read_cases(ROOT / "datasets" / "h200-v1", sample=400) if case.group != RANDOM]
    errors, known = [], []
    for case in Random(0).sample(cases, 10):
        graph = case.source.graph()
        estimates = bundle.estimate(graph, case.case)
        predicted = correct(compose(graph, case.case, estimates), estimates.log_residuals)
        known.append(estimates.known_share)
        errors.append(abs(predicted.allocated_bytes / case.labels.allocated_bytes - 1))
    assert float(np.mean(known)) > 0.97
    assert float(np.mean(errors)) < 0.015
