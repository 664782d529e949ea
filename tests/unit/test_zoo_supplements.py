"""Lists beside the main one: what each of them promises."""

from __future__ import annotations

import math
from collections import Counter
from importlib.resources import as_file, files

import pytest

from dippm.case import Mode, Precision, Runtime
from dippm.errors import DippmError
from dippm.zoo import supplements
from dippm.zoo.case import InputShape, Network, ZooCase
from dippm.zoo.catalogue import declared
from dippm.zoo.declare import near_boundary, planned
from dippm.zoo.even import declare_even
from dippm.zoo.planning import Plan, read_plans


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    with as_file(files("dippm.zoo").joinpath("planning.jsonl")) as path:
        return read_plans(path)


def test_the_papers_cases_are_run_in_every_way() -> None:
    cases = supplements.declare_paper()
    assert Counter((c.mode, c.runtime) for c in cases) == {
        (Mode.INFERENCE, Runtime.EAGER): 9, (Mode.NO_GRAD, Runtime.EAGER): 9, (Mode.AUTOGRAD, Runtime.EAGER): 9,
        (Mode.INFERENCE, Runtime.GRAPH): 9, (Mode.INFERENCE, Runtime.TORCHSCRIPT): 9,
    }  # fmt: skip
    members = {m.family: m.super_family for m in declared()}
    assert all(members[c.family] == c.super_family for c in cases)
    batches = {(c.network.architecture, c.batch) for c in cases}
    assert {("densenet121", 8), ("densenet121", 32), ("convnext_base", 128), ("vgg16", 16)} <= batches


def test_large_cases_fill_a_card_in_inference_and_with_gradients(plans: dict[str, Plan]) -> None:
    cases = supplements.declare_large(declared(), plans, seed=1, count=40)
    low, high = supplements.LARGE_MIB
    assert len(cases) == 40
    assert all(low <= c.planned_mib <= high for c in cases)
    assert {c.mode for c in cases} == {Mode.INFERENCE, Mode.AUTOGRAD}
    again = supplements.declare_large(declared(), plans, seed=1, count=40, known=[cases[0].id])
    assert cases[0] not in again
    assert supplements.declare_large(declared(), plans, seed=1, count=40) == cases
    smaller = supplements.declare_large(declared(), plans, seed=1, count=40, least_mib=12_000.0)
    assert 12_000 <= min(c.planned_mib for c in smaller) < 20_000 < low < max(c.planned_mib for c in smaller) <= high


def test_thin_doublings_are_filled_by_what_the_networks_needed_before(plans: dict[str, Plan]) -> None:
    members = [m for m in declared() if m.network.key in plans]
    measured = []
    for member in members:  # each needs half as much for its activations as was planned
        footprint, activations, _ = planned(plans[member.network.key], 64, Precision.FP32, Mode.INFERENCE)
        measured.append(ZooCase(member.network, 64, Precision.FP32, planned_mib=footprint - activations / 2))
    cases = declare_even(declared(), plans, seed=1, each=40, measured=measured)
    assert {c.network.key for c in cases} <= {m.network.key for m in members}
    counts = Counter(int(math.log2(c.planned_mib / 750)) for c in [*measured, *cases])
    assert [counts[doubling] for doubling in range(3, 6)] == [40] * 3
    assert max(counts) == 7
    assert counts[6] <= 40  # passes over so much memory are mostly too long
    assert counts[7] <= round(40 * math.log2(120 / 96))
    assert {c.mode for c in cases} == {Mode.INFERENCE, Mode.AUTOGRAD}
    case = next(c for c in cases if c.mode is Mode.INFERENCE and c.planned_mib > 6_000)
    footprint, activations, _ = planned(plans[case.network.key], case.batch, case.precision, case.mode)
    assert case.planned_mib == pytest.approx(footprint - activations / 2, rel=0.01)
    fewer = declare_even(declared(), plans, seed=1, each=40, measured=measured, known=[c.id for c in cases])
    assert not {c.id for c in fewer} & {c.id for c in cases}
    with pytest.raises(DippmError, match="--known"):
        declare_even(declared(), plans, seed=1, each=40, measured=[])


def test_torchscript_is_asked_of_what_can_be_traced(plans: dict[str, Plan]) -> None:
    cases = supplements.declare_torchscript(declared(), plans, seed=1, count=50)
    assert len(cases) == 50
    assert {c.runtime for c in cases} == {Runtime.TORCHSCRIPT}
    assert not any(c.network.source == "transformers" or c.timed for c in cases)


def test_searches_are_of_measured_cases_and_every_other_one_is_near_a_boundary(plans: dict[str, Plan]) -> None:
    known = [
        ZooCase(m.network, batch, Precision.FP16, family=m.family, super_family=m.super_family, planned_mib=mib)
        for m in declared()
        if m.network.key in plans
        for batch, mib in ((1, 4_900.0), (2, 7_000.0))
    ]
    odd = ZooCase(known[0].network, 3, mode=Mode.AUTOGRAD, planned_mib=4_900.0)
    unknown = ZooCase(Network("new", "timm", "new", {}, (InputShape((3, 8, 8)),)), 1, planned_mib=4_900.0)
    cases = supplements.searches_of([*known, odd, unknown], plans, seed=1, count=60)
    assert len(cases) == 60
    assert {c.purpose for c in cases} == {"min_cap"}
    assert [near_boundary(c.planned_mib) for c in cases] == [True, False] * 30
    assert {c.id for c in cases} <= {c.id for c in known}
    for case in cases:
        expected = planned(plans[case.network.key], case.batch, case.precision, case.mode)[2]
        assert expected <= supplements.QUICK_MS
    searched = {c.id for c in cases[:20]}
    more = supplements.searches_of(known, plans, seed=1, count=60, searched=searched)
    assert len(more) == 60
    assert not searched & {c.id for c in more}
