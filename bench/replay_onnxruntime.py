"""How well the replay of ONNX Runtime does on measured rows: arena, smallest limit and process memory.

Every row of the data set with labels whose network has a graph is replayed, its convolutions' workspaces estimated by
the network that never saw the row's super-family (`--work` is the folder of a `dippm train`), and held against the row;
beside it what a graph of PyTorch, the stand-in of before, would say. Needs the `train` extra.

    python bench/replay_onnxruntime.py datasets/h200-v1 --work train-work [--list 20]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dippm.case import Allocator, Runtime
from dippm.data.splits import RANDOM
from dippm.replay import replay
from dippm.train.onnxruntime import MIB, Measured, held_back_times, read_rows, runs_as_by_default


@dataclass(frozen=True, slots=True)
class Compared:
    """A row beside its replay and beside what the stand-in says."""

    measured: Measured
    errors: dict[str, float]
    """Percent of each label. The process is the arena, the inputs and what the row has beside them."""

    @property
    def group(self) -> str:
        """Named or random, by which exporter, with the batch axis left open or not."""
        row = self.measured.row
        named = "networks drawn at random" if row["super_family"] == RANDOM else "named architectures"
        axis = self.measured.option("batch_axis")
        return f"{named}, {row['exporter'].split()[-1]} exporter, batch axis {axis}"


def compare(measured: Measured) -> Compared:
    """Errors of one row."""
    row, more, found = measured.row, measured.more, measured.held_back
    plain = replay(
        measured.graph,
        runtime=Runtime.GRAPH,
        allocator=Allocator.DEFAULT,
        workspaces=measured.unseen.workspace_bytes,
    )
    beside, inputs = more["beside_arena_mib"] + more["inputs_mib"], more["inputs_mib"]
    said = {
        "arena": (found.arena_bytes / MIB, more["arena_mib"]),
        "smallest limit": (found.min_limit_bytes / MIB, row["min_cap_mib"]),
        "process": (found.arena_bytes / MIB + beside, row["process_mib"]),
        "process, by the stand-in": (plain.reserved_bytes / MIB + more["beside_arena_mib"], row["process_mib"]),
        "smallest limit, by the stand-in": (plain.min_cap_bytes / MIB - inputs, row["min_cap_mib"]),
    }
    return Compared(measured, {name: 100 * (a - b) / b for name, (a, b) in said.items() if b})


def line(name: str, errors: Sequence[float]) -> str:
    """One label's errors."""
    sizes = sorted(map(abs, errors))
    within = [100 * sum(size <= limit for size in sizes) / len(sizes) for limit in (1, 10)]
    return (
        f"  {name:31s} {len(sizes):4d}  mean {statistics.fmean(sizes):6.2f} %  median {statistics.median(sizes):6.2f} %"
        f"  95th {sizes[round(0.95 * (len(sizes) - 1))]:6.2f} %  within 1 %: {within[0]:3.0f} %, 10 %:{within[1]:.0f} %"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--work", type=Path, default=Path("train-work"), help="folder of a finished dippm train")
    parser.add_argument("--list", type=int, default=0, help="list this many cases, the worst by smallest limit first")
    options = parser.parse_args()
    found = [compare(row) for row in read_rows(options.data, options.work)]
    groups: dict[str, list[Compared]] = defaultdict(list)
    for case in found:
        groups["all rows"].append(case)
        groups[case.group].append(case)
    for group, members in sorted(groups.items()):
        print(f"{group}: {len(members)}")
        for name in members[0].errors:
            if errors := [case.errors[name] for case in members if name in case.errors]:
                print(line(name, errors))
    timed = [case.measured for case in found if case.measured.row["latency_ms"] and runs_as_by_default(case.measured)]
    print("latency, each super-family left out of the fit")
    print(line("latency", [100 * error for error in held_back_times(timed)]))
    for case in sorted(found, key=lambda c: -abs(c.errors.get("smallest limit", 0)))[: options.list]:
        row = case.measured.row
        print(f"  {row['architecture']:28s} {row['id']}")
        print("    " + "  ".join(f"{name} {error:+.1f} %" for name, error in case.errors.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
