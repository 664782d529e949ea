"""Draws the list of ONNX cases: networks of all families at batches that people serve, and the provider's options.

As for the other list, any prefix holds each super-family, precision and footprint in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence
from random import Random

from dippm.case import Mode, Precision, Runtime
from dippm.zoo.case import ZooCase
from dippm.zoo.catalogue import Member
from dippm.zoo.declare import RANDOM_SHARE, networks_first, octave, planned, stratified
from dippm.zoo.planning import Plan

BATCHES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
LARGEST_WEIGHTS_MIB = 1_100.0
"""A file of one protobuf message ends at 2 GiB, and every trial reads it again."""
LARGEST_MIB = 40_000.0
LONGEST_MS = 60.0
ARENA = 1.7
"""The arena that grows by powers of two takes up to twice what is needed; for planning only."""
OPTIONS: tuple[tuple[float, dict[str, str]], ...] = (
    (0.62, {}),
    (0.12, {"arena_extend_strategy": "kSameAsRequested"}),
    (0.10, {"cudnn_conv_algo_search": "HEURISTIC"}),
    (0.03, {"cudnn_conv_algo_search": "DEFAULT"}),
    (0.05, {"cudnn_conv_use_max_workspace": "0"}),
    (0.05, {"use_tf32": "0"}),
    (0.03, {"enable_mem_pattern": "0"}),
)
"""Shares of the cases, and what is not the default in them."""


def declare_onnx(
    members: Sequence[Member],
    plans: dict[str, Plan],
    *,
    seed: int,
    count: int,
    longest_ms: float = LONGEST_MS,
    known: Collection[str] = (),
) -> list[ZooCase]:
    """About `count` cases of runtime `onnxruntime` whose pass takes `longest_ms` at most, in fp32 and fp16; no case
    twice, and none whose id is `known`. (Each session tries every algorithm of its convolutions anew: ten sessions cost
    a hundred passes.)

    The same arguments give the same list. Networks of `transformers` go through the dynamo exporter: the other one
    cannot trace their masks.
    """
    random = Random(f"onnx cases {seed}")
    usable = [m for m in members if m.network.key in plans and plans[m.network.key].weights_mib <= LARGEST_WEIGHTS_MIB]
    drawn: dict[str, ZooCase] = {}
    rounds: list[Member] = []
    for _ in range(count * 4):
        if not rounds:
            rounds = [
                m for m in random.sample(usable, len(usable)) if m.family != "random" or random.random() < RANDOM_SHARE
            ]
        member = rounds.pop()
        case = _draw(member, plans[member.network.key], random, longest_ms)
        if case is not None and case.id not in known:
            drawn.setdefault(case.id, case)
        if len(drawn) == count:
            break
    return networks_first(stratified(list(drawn.values()), _stratum, seed))


def _draw(member: Member, plan: Plan, random: Random, longest_ms: float) -> ZooCase | None:
    precision = Precision.FP16 if random.random() < 0.4 else Precision.FP32
    options = dict(random.choices([o for _, o in OPTIONS], [share for share, _ in OPTIONS])[0])
    if member.network.source == "transformers":
        options["exporter"] = "dynamo"
    elif random.random() < 0.5:
        options["batch_axis"] = "dynamic"
    goal = math.exp(random.uniform(math.log(800), math.log(LARGEST_MIB)))
    costs = {batch: planned(plan, batch, precision, Mode.INFERENCE) for batch in BATCHES}
    allowed = [b for b, (footprint, _, ms) in costs.items() if ms <= longest_ms and footprint <= LARGEST_MIB]
    if not allowed:
        return None
    batch = min(allowed, key=lambda b: abs(math.log(costs[b][0] / goal))) if random.random() < 0.6 else None
    batch = random.choice(allowed) if batch is None else batch
    footprint, _, milliseconds = costs[batch]
    return ZooCase(
        member.network, batch, precision, Mode.INFERENCE, Runtime.ONNXRUNTIME, family=member.family,
        super_family=member.super_family, timed=False, planned_mib=round(footprint * ARENA, 1),
        planned_ms=round(milliseconds, 3), purpose="onnxruntime", options=options,
    )  # fmt: skip


def _stratum(case: ZooCase) -> Hashable:
    return case.super_family, case.precision, octave(case)
