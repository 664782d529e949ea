"""Draws the list of cases from the catalogue: batch, precision, mode, runtime and allocator, spread on purpose.

Every list is shuffled in strata, so that any prefix of it holds each super-family, precision and footprint in
proportion: a run that stops early still leaves a usable data set.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

from dippm.case import Allocator, Mode, Precision, Runtime
from dippm.profiles import NEAR
from dippm.zoo.case import ZooCase
from dippm.zoo.catalogue import Member
from dippm.zoo.planning import Plan

T = TypeVar("T")

CONTEXT_MIB = 700.0
"""CUDA context and kernels of one process on a Hopper card, for planning only."""
BATCHES = (1, 1, 2, 3, 4, 6, 8, 8, 12, 16, 16, 20, 24, 32, 32, 48, 64, 64, 96, 128, 128, 192, 256, 256, 384, 512)
PRECISIONS = (Precision.FP32,) * 7 + (Precision.FP16,) * 6 + (Precision.BF16,) * 5 + (Precision.TF32,) * 2
TFLOPS = {Precision.FP32: 45.0, Precision.TF32: 120.0, Precision.FP16: 250.0, Precision.BF16: 250.0}
"""Rates assumed when the list is drawn (10^12 operations a second), far under the card's peak on purpose."""
RANDOM_SHARE = 0.7
"""Random networks are drawn a little less often than named ones."""
LONGEST_EXPORT = 900
"""Networks with more operators than this are not exported on the measuring machine (seconds each)."""
MOST_OPERATORS = 2500
"""Networks with more are left out: one such case costs as much as ten others."""
BOUNDARIES_MIB = (4864, 9856, 16384, 19968, 33280, 40192)
"""Usable memory of profiles of A100 and H200 up to which the smallest cap is searched."""
LONGEST_MS = 220.0
LONGEST_TIMED_MS = 300.0
LARGEST_MIB = 62_000.0


def planned(plan: Plan, batch: int, precision: Precision, mode: Mode) -> tuple[float, float, float]:
    """(footprint MiB, activations MiB, device ms) expected of a case."""
    scale = 0.5 if precision in (Precision.FP16, Precision.BF16) else 1.0
    live = plan.written_mib if mode is Mode.AUTOGRAD else plan.activations_mib * 1.4
    activations = live * batch * scale
    footprint = CONTEXT_MIB + plan.weights_mib * scale + activations + 34
    milliseconds = plan.gflop * batch / TFLOPS[precision] + 3 * plan.written_mib * batch * scale / 2.5e3
    return footprint, activations, milliseconds + 0.01 * plan.operators


def stratified(items: Iterable[T], stratum: Callable[[T], Hashable], seed: int) -> list[T]:
    """Shuffles so that every prefix holds each stratum in proportion, within one item of its share."""
    random = Random(f"strata {seed}")
    groups: dict[Hashable, list[T]] = defaultdict(list)
    for item in items:
        groups[stratum(item)].append(item)
    placed: list[tuple[float, int, T]] = []
    for group in groups.values():
        random.shuffle(group)
        offset = random.random()
        placed += [((rank + offset) / len(group), len(placed) + rank, item) for rank, item in enumerate(group)]
    placed.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in placed]


def networks_first(cases: Iterable[ZooCase]) -> list[ZooCase]:
    """Each network's first case before any network's second, and so on; otherwise in the order given."""
    count: dict[str, int] = defaultdict(int)
    rounds: list[tuple[int, ZooCase]] = []
    for case in cases:
        rounds.append((count[case.network.key], case))
        count[case.network.key] += 1
    return [case for _, case in sorted(rounds, key=lambda entry: entry[0])]


def _batch_for(plan: Plan, precision: Precision, mode: Mode, longest_ms: float, random: Random) -> int | None:
    """A batch whose footprint comes near one drawn evenly on a log scale; None where even one sample is too much."""
    goal = math.exp(random.uniform(math.log(800), math.log(LARGEST_MIB)))
    allowed = [
        batch
        for batch in sorted({*BATCHES, random.randint(1, 512), random.randint(1, 64)})
        if (cost := planned(plan, batch, precision, mode))[2] <= longest_ms and cost[0] <= LARGEST_MIB
    ]
    if not allowed:
        return None
    if random.random() < 0.45:
        return random.choice([b for b in BATCHES if b in allowed] or allowed)
    return min(allowed, key=lambda b: abs(math.log(planned(plan, b, precision, mode)[0] / goal)))


def _draw(member: Member, plan: Plan, random: Random, *, timed: bool) -> ZooCase | None:
    precision = random.choice(PRECISIONS)
    if plan.weights_mib > 9_000:
        precision = Precision.BF16
    mode, runtime, allocator = Mode.INFERENCE, Runtime.EAGER, Allocator.DEFAULT
    if not timed:
        kind = random.random()
        if kind < 0.14 and plan.operators <= LONGEST_EXPORT:
            runtime = Runtime.GRAPH
        elif 0.14 <= kind < 0.24:
            mode = Mode.AUTOGRAD
        elif 0.24 <= kind < 0.27:
            mode = Mode.NO_GRAD
        if random.random() < 0.2:
            allocator = Allocator.EXPANDABLE
    batch = _batch_for(plan, precision, mode, LONGEST_TIMED_MS if timed else LONGEST_MS, random)
    if batch is None:
        return None
    footprint, _, milliseconds = planned(plan, batch, precision, mode)
    return ZooCase(
        member.network, batch, precision, mode, runtime, allocator, member.family, member.super_family,
        timed=timed, planned_mib=round(footprint, 1), planned_ms=round(milliseconds, 3),
    )  # fmt: skip


def usable(members: Sequence[Member], plans: dict[str, Plan]) -> list[Member]:
    """The members that could be planned and are not too long to run."""
    return [m for m in members if m.network.key in plans and plans[m.network.key].operators <= MOST_OPERATORS]


def octave(case: ZooCase) -> int:
    """Which doubling of 700 MiB the planned footprint lies in."""
    return int(math.log2(case.planned_mib / 700))


def _stratum(case: ZooCase) -> Hashable:
    return case.super_family, case.precision.float_dtype, case.runtime, octave(case)


def declare(
    members: Sequence[Member],
    plans: dict[str, Plan],
    *,
    seed: int,
    timed: int,
    memory: int,
    caps: int = 0,
    known: Collection[str] = (),
) -> list[ZooCase]:
    """About `timed` cases with time, `memory` with memory alone, `caps` searches for the smallest cap; no case twice.

    Networks without a plan are left out, and cases whose id is `known`. The same arguments give the same list on every
    machine.
    """
    random = Random(f"cases {seed}")
    drawable = usable(members, plans)
    seen: set[str] = set(known)
    lists: list[list[ZooCase]] = []
    for count, is_timed in ((timed, True), (memory, False)):
        drawn: list[ZooCase] = []
        rounds: list[Member] = []
        for _ in range(count * 4):
            if len(drawn) == count:
                break
            if not rounds:
                rounds = [
                    m
                    for m in random.sample(drawable, len(drawable))
                    if m.family != "random" or random.random() < RANDOM_SHARE
                ]
            member = rounds.pop()
            case = _draw(member, plans[member.network.key], random, timed=is_timed)
            if case is not None and case.id not in seen:
                seen.add(case.id)
                drawn.append(case)
        shuffled = stratified(drawn, _stratum, seed)
        lists.append(networks_first(shuffled) if is_timed else shuffled)
    return [*lists[0], *lists[1], *_searches([*lists[0], *lists[1]], caps, seed)]


def near_boundary(mib: float) -> bool:
    """Whether a footprint lies within 20 % of what some profile offers."""
    return any(abs(mib - boundary) <= NEAR * boundary for boundary in BOUNDARIES_MIB)


def _searches(cases: Iterable[ZooCase], count: int, seed: int) -> list[ZooCase]:
    """Searches for the smallest cap, every other one near a profile's boundary."""
    able = [
        replace(case, timed=False, purpose="min_cap")
        for case in cases
        if case.mode is Mode.INFERENCE
        and case.runtime is Runtime.EAGER
        and case.planned_ms < 150
        and case.planned_mib < BOUNDARIES_MIB[-1] * (1 + NEAR)
    ]
    sides = [
        stratified([case for case in able if near_boundary(case.planned_mib) is near], _stratum, seed + 1)
        for near in (True, False)
    ]
    return [case for pair in zip(*sides, strict=False) for case in pair][:count]


def anchors(cases: Sequence[ZooCase], count: int = 20) -> list[ZooCase]:
    """Cases that open and close every run on a GPU: short ones, of different super-families, evenly by footprint."""
    chosen: dict[str, ZooCase] = {}
    for case in cases:
        if case.timed and case.planned_ms < 60 and case.super_family not in chosen:
            chosen[case.super_family] = replace(case, anchor=True)
    return list(chosen.values())[:count]
