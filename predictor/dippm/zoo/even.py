"""Cases that spread the footprints of a data set evenly: each doubling gets as many as the others."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from random import Random
from statistics import median

from dippm.case import Allocator, Mode, Precision, Runtime
from dippm.data.footprints import MOST_MIB, doubling, limits, share
from dippm.errors import DippmError
from dippm.zoo.case import ZooCase
from dippm.zoo.catalogue import Member
from dippm.zoo.declare import planned, stratified, usable
from dippm.zoo.planning import Plan
from dippm.zoo.supplements import LARGE_MS, case_of

MOST_BATCH = 4096


def declare_even(
    members: Sequence[Member],
    plans: dict[str, Plan],
    *,
    seed: int,
    each: int,
    measured: Collection[ZooCase],
    known: Collection[str] = (),
) -> list[ZooCase]:
    """Cases that bring each doubling of the footprint from `LEAST_MIB` on to `each`, those `measured` counted.

    Networks are those of `measured`: what these needed tells how far off the plans are, so that cases come to lie in
    the doubling that they were drawn for. A quarter are with gradients, a sixth in expandable segments, a third of
    networks drawn at random. Fewer come where networks are too few or their passes too long. Raises DippmError where
    none of the networks was measured.
    """
    if not each:
        return []
    random = Random(f"even cases {seed}")
    have = Counter(doubling(case.planned_mib) for case in measured if case.planned_mib <= MOST_MIB)
    needs = _Needs(plans, measured)
    drawable = [m for m in usable(members, plans) if m.network.key in needs.networks]
    if not drawable:
        raise DippmError(
            "--even draws cases of networks that were measured: name a data set that has some with --known"
        )
    at_random = [m for m in drawable if m.network.source == "random"]
    named = [m for m in drawable if m.network.source != "random"]
    drawn: dict[str, ZooCase] = {}
    for number in range(doubling(MOST_MIB), -1, -1):
        for _ in range(share(number, each) - have[number]):
            mode = Mode.AUTOGRAD if random.random() < 0.25 else Mode.INFERENCE
            among = (at_random or named) if random.random() < 1 / 3 else (named or at_random)
            tries = (needs.draw(random.choice(among), mode, limits(number), random) for _ in range(300))
            case = next((c for c in tries if c is not None and c.id not in known and c.id not in drawn), None)
            if case is not None:
                drawn[case.id] = case
    return stratified(drawn.values(), lambda c: (doubling(c.planned_mib), c.mode, c.network.source), seed)


class _Needs:
    """What cases of measured networks will need: their plans, put right by what the network needed before."""

    def __init__(self, plans: dict[str, Plan], measured: Collection[ZooCase]) -> None:
        self.networks = {case.network.key for case in measured}
        self._plans = plans
        self._off: dict[tuple[str, Mode], list[float]] = defaultdict(list)
        for case in measured:
            plan = plans.get(case.network.key)
            if plan is None:
                continue
            footprint, activations, _ = planned(plan, case.batch, case.precision, case.mode)
            mode = Mode.AUTOGRAD if case.mode is Mode.AUTOGRAD else Mode.INFERENCE
            if activations > footprint / 3:
                off = 1 + (case.planned_mib - footprint) / activations
                self._off[case.network.key, mode].append(off)
        self._usual = {
            mode: median([median(offs) for (_, other), offs in self._off.items() if other is mode] or [1.0])
            for mode in (Mode.INFERENCE, Mode.AUTOGRAD)
        }

    def draw(self, member: Member, mode: Mode, within: tuple[float, float], random: Random) -> ZooCase | None:
        """A case whose footprint comes near one drawn evenly on a log scale; None where a pass would take too long."""
        plan, precision = self._plans[member.network.key], random.choice(tuple(Precision))
        allocator = Allocator.EXPANDABLE if random.random() < 1 / 6 else Allocator.DEFAULT
        offs = self._off.get((member.network.key, mode))
        off = median(offs) if offs else self._usual[mode]
        goal = math.exp(random.uniform(*map(math.log, within)))
        footprint, activations, _ = planned(plan, 1, precision, mode)
        batch = round((goal - footprint + activations) / (activations * off))
        if not 1 <= batch <= MOST_BATCH:
            return None
        footprint, activations, milliseconds = planned(plan, batch, precision, mode)
        footprint += activations * (off - 1)
        if milliseconds > LARGE_MS or not within[0] <= footprint <= within[1]:
            return None
        return replace(
            case_of(member, batch, precision, mode, Runtime.EAGER, footprint, milliseconds), allocator=allocator
        )
