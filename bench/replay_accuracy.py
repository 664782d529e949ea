"""How well the memory replay does on the measured data set, what operators need inside being known.

For every measured case with a graph: the measured workspaces (and the order of allocations inside each operator) go
in; weights, peak allocated, activations, reserved and the smallest cap come out and are held against the labels. What
is left is what lifetimes, orders and the allocator's simulator miss. Needs the `train` extra.

    python bench/replay_accuracy.py datasets/h200-v1 [--list 30]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dippm.data import CaseRow, DataSet
from dippm.replay import Replay, replay

MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class Compared:
    """One case: its labels, the replay from workspaces, and the replay from the order inside each operator."""

    row: CaseRow
    by_workspace: Replay
    by_events: Replay

    @property
    def errors(self) -> dict[str, float]:
        """Percent of each label; activations of what lies above weights and inputs."""
        row, plain, ordered = self.row, self.by_workspace, self.by_events
        cap = row.min_cap_steady_mib
        return {
            "weights and inputs": _percent(plain.weights_bytes + plain.inputs_bytes, row.weights_mib),
            "allocated": _percent(plain.allocated_bytes, row.allocated_mib),
            "activations": _percent(plain.activations_bytes, row.activations_mib),
            "reserved, order inside unknown": _percent(plain.reserved_bytes, row.reserved_mib),
            "reserved, order inside known": _percent(ordered.reserved_bytes, row.reserved_mib),
        } | ({"smallest cap": _percent(plain.min_cap_bytes, cap)} if cap is not None else {})


def _percent(found: float, label_mib: float | None) -> float:
    if not label_mib:
        raise ValueError("a case without memory labels cannot be compared")
    return 100 * (found / MIB - label_mib) / label_mib


def compare(data: DataSet) -> Iterator[Compared]:
    """Every case that was measured and has a graph."""
    for row in data.cases(joined=True):
        graph = data.graph(row)
        labels = data.node_labels(row, graph)
        arguments = {
            "runtime": row.runtime,
            "allocator": row.allocator,
            "mode": row.mode,
            "workspaces": tuple(max(0, int(w)) for w in labels.workspace_bytes),
        }
        yield Compared(row, replay(graph, **arguments), replay(graph, **arguments, events=labels.events))


def _line(name: str, errors: Sequence[float]) -> str:
    sizes = sorted(abs(e) for e in errors)
    shares = [100 * sum(e <= limit for e in sizes) / len(sizes) for limit in (1, 3)]
    return (
        f"  {name:32s} {len(sizes):5d}  mean {statistics.fmean(sizes):6.2f} %  median {statistics.median(sizes):6.3f} %"
        f"  95th {sizes[round(0.95 * (len(sizes) - 1))]:6.2f} %  within 1 %: {shares[0]:5.1f} %, 3 %: {shares[1]:.1f} %"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument(
        "--list", type=int, default=0, help="list this many of the worst cases by activations and reserved"
    )
    options = parser.parse_args()
    found = list(compare(DataSet(options.data)))
    groups: dict[str, list[Compared]] = defaultdict(list)
    for case in found:
        groups["all cases"].append(case)
        groups[f"{case.row.runtime.value}, {case.row.mode.value}, {case.row.allocator.value} allocator"].append(case)
    for group, members in groups.items():
        print(f"\n{group}: {len(members)} cases")
        errors: dict[str, list[float]] = defaultdict(list)
        for case in members:
            for name, error in case.errors.items():
                errors[name].append(error)
        for name, sizes in errors.items():
            print(_line(name, sizes))
    for name in ("activations", "reserved, order inside known"):
        worst = sorted(found, key=lambda case: -abs(case.errors[name]))[: options.list]
        if worst:
            print(f"\nworst by {name}:")
        for case in worst:
            print(
                f"  {case.errors[name]:8.2f} %  {case.row.id}  {case.row.architecture}  {case.row.reserved_mib:.0f} MiB"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
