"""Lists beside the main one: the paper's own cases, footprints near a whole card, TorchScript, caps of known cases.

As for the main list, the same arguments give the same list, and any prefix holds each stratum in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from random import Random

from dippm.case import Mode, Precision, Runtime
from dippm.zoo.case import InputShape, Network, ZooCase
from dippm.zoo.catalogue import Member
from dippm.zoo.declare import BATCHES, LONGEST_EXPORT, near_boundary, octave, planned, stratified, usable
from dippm.zoo.planning import Plan

_PICTURE = (InputShape((3, 224, 224)),)
PAPERS = (
    ("densenet121", "densenet", "densenet", (8, 16, 32)),
    ("swin_base_patch4_window7_224", "swin", "swin", (2, 8, 16)),
    ("convnext_base", "convnext", "convnext", (4, 128)),
    ("vgg16", "vgg", "vgg", (16,)),
)
"""timm's name, family, super-family and batches of DIPPM's Table 5 and Figure 3 (Euro-Par 2023)."""
LARGE_MIB = (62_000.0, 118_000.0)
LARGE_MS = 500.0
QUICK_MS = 90.0
"""Expected device time up to which a case is taken for what is run ten times over."""


def declare_paper() -> list[ZooCase]:
    """The paper's own cases in every mode and runtime of PyTorch; in fp32, inference by Python is timed too."""
    cases = []
    for name, family, super_family, batches in PAPERS:
        network = Network(name, "timm", name, {}, _PICTURE)
        for batch in batches:
            for mode, runtime in (
                (Mode.INFERENCE, Runtime.EAGER), (Mode.NO_GRAD, Runtime.EAGER), (Mode.AUTOGRAD, Runtime.EAGER),
                (Mode.INFERENCE, Runtime.GRAPH), (Mode.INFERENCE, Runtime.TORCHSCRIPT),
            ):  # fmt: skip
                timed = runtime is Runtime.EAGER and mode is Mode.INFERENCE
                cases.append(
                    ZooCase(
                        network, batch, Precision.FP32, mode, runtime, family=family, super_family=super_family,
                        timed=timed, planned_mib=30_000.0, planned_ms=30.0,
                    )
                )  # fmt: skip
    return cases


def declare_large(
    members: Sequence[Member],
    plans: dict[str, Plan],
    *,
    seed: int,
    count: int,
    least_mib: float = LARGE_MIB[0],
    known: Collection[str] = (),
) -> list[ZooCase]:
    """About `count` cases whose footprint is expected to lie between `least_mib` and the most of `LARGE_MIB`, evenly on
    a log scale; a quarter of them with gradients."""
    random = Random(f"large cases {seed}")
    limits = least_mib, LARGE_MIB[1]
    drawn: dict[str, ZooCase] = {}
    drawable = usable(members, plans)
    for _ in range(count * 30):
        if len(drawn) == count:
            break
        member, precision = random.choice(drawable), random.choice(tuple(Precision))
        mode = Mode.AUTOGRAD if random.random() < 0.25 else Mode.INFERENCE
        goal = math.exp(random.uniform(*map(math.log, limits)))
        plan = plans[member.network.key]
        costs = {b: planned(plan, b, precision, mode) for b in (*range(1, 513, 3), *range(520, 1025, 8))}
        batch = min(costs, key=lambda b: abs(costs[b][0] - goal))
        footprint, _, milliseconds = costs[batch]
        if milliseconds > LARGE_MS or not limits[0] <= footprint <= limits[1]:
            continue
        case = case_of(member, batch, precision, mode, Runtime.EAGER, footprint, milliseconds)
        if case.id not in known:
            drawn.setdefault(case.id, case)
    return stratified(drawn.values(), lambda c: (c.mode, c.network.source), seed)


def declare_torchscript(members: Sequence[Member], plans: dict[str, Plan], *, seed: int, count: int) -> list[ZooCase]:
    """About `count` cases of TorchScript: traced networks (those of transformers cannot be traced with their masks)."""
    random = Random(f"torchscript cases {seed}")
    traceable = [
        m
        for m in usable(members, plans)
        if m.network.source != "transformers" and plans[m.network.key].operators <= LONGEST_EXPORT
    ]
    drawn = {}
    for member in random.sample(traceable, min(count, len(traceable))):
        precision, plan = random.choice((Precision.FP32, Precision.FP16, Precision.BF16)), plans[member.network.key]
        batches = [b for b in BATCHES if planned(plan, b, precision, Mode.INFERENCE)[2] <= QUICK_MS] or [1]
        batch = random.choice(batches)
        footprint, _, milliseconds = planned(plan, batch, precision, Mode.INFERENCE)
        case = case_of(member, batch, precision, Mode.INFERENCE, Runtime.TORCHSCRIPT, footprint, milliseconds)
        drawn[case.id] = case
    return stratified(drawn.values(), _stratum, seed)


def searches_of(
    known: Iterable[ZooCase], plans: dict[str, Plan], *, seed: int, count: int, searched: Collection[str] = ()
) -> list[ZooCase]:
    """Searches for the smallest cap among measured cases, every other one near a profile's boundary (by the footprint
    that was measured), but for the cases whose id is `searched`."""
    able = []
    for case in sorted(known, key=lambda c: c.id):
        plan = plans.get(case.network.key)
        if case.id in searched or plan is None or (case.mode, case.runtime) != (Mode.INFERENCE, Runtime.EAGER):
            continue
        milliseconds = planned(plan, case.batch, case.precision, case.mode)[2]
        if milliseconds <= QUICK_MS:
            able.append(replace(case, purpose="min_cap", planned_ms=round(milliseconds, 3)))
    sides = [
        stratified([c for c in able if near_boundary(c.planned_mib) is near], _stratum, seed) for near in (True, False)
    ]
    return [case for pair in zip(*sides, strict=False) for case in pair][:count]


def case_of(
    member: Member, batch: int, precision: Precision, mode: Mode, runtime: Runtime, footprint: float, ms: float
) -> ZooCase:
    return ZooCase(
        member.network, batch, precision, mode, runtime, family=member.family, super_family=member.super_family,
        timed=False, planned_mib=round(footprint, 1), planned_ms=round(ms, 3),
    )  # fmt: skip


def _stratum(case: ZooCase) -> Hashable:
    return case.super_family, case.precision.float_dtype, case.allocator, octave(case)
