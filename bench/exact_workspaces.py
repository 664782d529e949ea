"""How many measured operators have, to the byte, the workspace that shapes and strides say (`dippm.network.rules`).

Every operator of the measured cases that an exact rule speaks of, once for each signature, precision, mode and order
of allocations. Rows with gradients or under `no_grad` are of decomposed calls: what such a call frees between its
parts, and the copies of a bias sum that only the recording makes, are in none of the labels.

    python bench/exact_workspaces.py datasets/h200-v1 [--every N] [--misses]
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dippm.case import Runtime
from dippm.data import CaseRow, DataSet
from dippm.network.rules import workspace_rules
from dippm.network.workload import workloads
from dippm.signature import signature
from dippm.strides import strides_of
from dippm.train.examples import within


@dataclass(frozen=True, slots=True)
class Held:
    """One distinct measured operator held against its rule."""

    kind: str
    target: str
    mode: str
    super_family: str
    where: str
    """Case and place of the operator where it was first seen."""
    measured: int
    by_rule: int

    @property
    def is_exact(self) -> bool:
        """Whether they are equal."""
        return self.measured == self.by_rule


def held(data: DataSet, rows: Iterable[CaseRow]) -> Iterator[Held]:
    """Distinct operators of some cases with an exact rule, in the order in which they are met."""
    seen = set()
    for row in rows:
        if row.runtime is Runtime.TORCHSCRIPT or not data.has_operators(row.id):
            continue
        graph = data.graph(row)
        labels = data.node_labels(row, graph)
        rules = workspace_rules(graph, row.case, workloads(graph), strides_of(graph))
        for index, (operator, exact, events) in enumerate(
            zip(graph.operators, rules.exact, labels.events, strict=True)
        ):
            if not exact or events is None:
                continue
            key = (signature(graph, index), row.precision, row.mode, events)
            if key not in seen:
                seen.add(key)
                yield Held(
                    operator.kind, operator.target, row.mode.value, row.super_family, f"{row.id} {index}",
                    within(events), rules.workspaces[index],
                )  # fmt: skip


def main() -> None:
    """Print the shares by kind and mode."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="take every Nth case")
    parser.add_argument("--misses", action="store_true", help="name an operator of each super-family that is not met")
    given = parser.parse_args()
    data = DataSet(given.data)
    rows = sorted(data.cases(joined=True), key=lambda row: (row.network, row.batch))
    found, exact = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    missed = defaultdict[tuple[str, str], dict[str, Held]](dict)
    for one in held(data, rows[:: given.every]):
        place = (one.mode, one.target)
        found[place] += 1
        exact[place] += one.is_exact
        if not one.is_exact:
            missed[place].setdefault(one.super_family, one)
    for place, count in sorted(found.items()):
        share = 100 * exact[place] / count
        print(f"{place[0]:10s} {place[1]:28s} {exact[place]:6d} of {count:6d} exact ({share:.2f} %)")
        for family, one in missed[place].items() if given.misses else ():
            print(f"    {family}: {one.where}: measured {one.measured}, by rule {one.by_rule}")


if __name__ == "__main__":
    main()
