"""How well the replay of ONNX Runtime does on measured rows: arena, smallest limit and process memory.

For every row with labels the network's graph is made on the meta device, convolutions get the shipped weights' estimate
of their workspace, and what comes out is held against the row. Needs the `train` extra, timm and transformers.

    python bench/replay_onnxruntime.py cases.jsonl rows.gz [--list 20]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dippm.case import Runtime
from dippm.data.rowfile import RowFile
from dippm.network.bundle import load_bundle
from dippm.replay import replay
from dippm.replay.bfc_arena import ExtendStrategy
from dippm.replay.onnxruntime import OrtReplay, replay_onnxruntime
from dippm.zoo.case import ZooCase, read_cases
from dippm.zoo.extract import extract

MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class Compared:
    """A row beside its replay and beside what the stand-in (a graph on PyTorch's allocator) says."""

    case: ZooCase
    row: dict[str, Any]
    found: OrtReplay
    tight: OrtReplay
    stand_in_mib: float
    stand_in_cap_mib: float

    @property
    def errors(self) -> dict[str, float]:
        """Percent of each label. The process is the arena, the inputs and what the row has beside them."""
        more = self.row["more"]
        beside = more["beside_arena_mib"] + more["inputs_mib"]
        said = {
            "arena": (self.found.arena_bytes / MIB, more["arena_mib"]),
            "arena, no more than asked for": (self.tight.first_pass_bytes / MIB, more["tight_arena_mib"]),
            "smallest limit": (self.found.min_limit_bytes / MIB, self.row["min_cap_mib"]),
            "process": (self.found.arena_bytes / MIB + beside, self.row["process_mib"]),
            "process, by the stand-in": (self.stand_in_mib + more["beside_arena_mib"], self.row["process_mib"]),
            "smallest limit, by the stand-in": (self.stand_in_cap_mib - more["inputs_mib"], self.row["min_cap_mib"]),
        }
        return {name: 100 * (a - b) / b for name, (a, b) in said.items() if b}


def compare(cases: dict[str, ZooCase], rows: Sequence[dict[str, Any]]) -> Iterator[Compared]:
    """Every row with labels whose case is in the list."""
    bundle = load_bundle()
    for row in rows:
        if row.get("status") != "ok" or row.get("case") not in cases:
            continue
        case = cases[row["case"]]
        graph = extract(case.network, case.batch, case.precision)
        workspaces = bundle.estimate(graph, replace(case.case, runtime=Runtime.GRAPH)).workspace_bytes
        given = {"workspaces": workspaces, "pattern": row["session_options"]["enable_mem_pattern"] == "1"}
        strategy = ExtendStrategy(row["provider_options"]["arena_extend_strategy"])
        plain = replay(graph, runtime=Runtime.GRAPH, allocator=case.allocator, workspaces=workspaces)
        yield Compared(
            case, row, replay_onnxruntime(graph, strategy=strategy, **given),
            replay_onnxruntime(graph, strategy=ExtendStrategy.SAME_AS_REQUESTED, workspaces=workspaces, pattern=False),
            plain.reserved_bytes / MIB, plain.min_cap_bytes / MIB,
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("rows", type=Path, nargs="+")
    parser.add_argument("--list", type=int, default=0, help="list this many cases, the worst by process memory first")
    options = parser.parse_args()
    rows = [row for path in options.rows for row in RowFile(path).rows()]
    found = list(compare({case.id: case for case in read_cases(options.cases)}, rows))
    if not found:
        raise SystemExit("no row with labels has its case in the list")
    print(f"{len(found)} cases")
    for name in found[0].errors:
        sizes = sorted(abs(case.errors[name]) for case in found if name in case.errors)
        print(
            f"  {name:34s} mean {statistics.fmean(sizes):7.2f} %  median {statistics.median(sizes):7.2f} %  "
            f"95th {sizes[round(0.95 * (len(sizes) - 1))]:7.2f} %  within 10 %: "
            f"{100 * sum(s <= 10 for s in sizes) / len(sizes):.0f} %"
        )
    for case in sorted(found, key=lambda c: -abs(c.errors["process"]))[: options.list]:
        print(f"  {case.case.network.architecture:28s} {case.case.id}")
        print("    " + "  ".join(f"{name} {error:+.1f} %" for name, error in case.errors.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
