"""How well the memory replay does on the measured data set, what operators need inside being known.

For every measured case with a graph: the measured workspaces (and the order of allocations inside each operator) go
in; weights, peak allocated, activations and reserved come out and are held against the labels. What is left is what
lifetimes, orders and the allocator's simulator miss. Needs the `train` extra; about twenty minutes of two cores.

    python bench/replay_accuracy.py datasets/h200-v1 --keep replay.csv.gz      # replay, and keep each case's errors
    python bench/replay_accuracy.py --kept replay.csv.gz --write docs/replay.md   # the page, from what was kept
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path

from dippm.attention import KIND
from dippm.data import CaseRow, DataSet
from dippm.data.rows import NodeLabels
from dippm.graph import ModelGraph
from dippm.network.attention import attention_workspace
from dippm.replay import Replay, replay
from dippm.strides import strides_of
from dippm.train.examples import opened
from dippm.train.parallel import default_jobs, spread

MIB = 2.0**20
NO_SEARCH = 1 << 60
"""The smallest cap is not searched for: `dippm evaluate` holds it against its labels."""
ACTIVATIONS, RESERVED = 1.0, 3.0
"""Percent: as near as a case must come."""
BARS = {"activations": 95.0, "reserved": 90.0}
"""Percent of the cases that must come as near."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One case: errors in percent of each label, and what may explain them."""

    id: str
    architecture: str
    super_family: str
    runtime: str
    mode: str
    allocator: str
    activations_mib: float
    unmeasured: int
    """Operators of the graph for which the run has no row."""
    weights: float
    """Weights and inputs."""
    allocated: float
    activations: float
    """Of what lies above weights and inputs."""
    reserved: float
    """The order of allocations inside each operator being known."""
    reserved_unordered: float
    """It being unknown."""


def outcome(row: CaseRow, unmeasured: int, plain: Replay, ordered: Replay) -> Outcome:
    """A case's labels held against its replay from workspaces, and from the order inside each operator."""
    return Outcome(
        row.id, row.architecture, row.super_family, row.runtime.value, row.mode.value, row.allocator.value,
        row.activations_mib or 0.0, unmeasured,
        _percent(plain.weights_bytes + plain.inputs_bytes, row.weights_mib),
        _percent(plain.allocated_bytes, row.allocated_mib),
        _percent(plain.activations_bytes, row.activations_mib),
        _percent(ordered.reserved_bytes, row.reserved_mib),
        _percent(plain.reserved_bytes, row.reserved_mib),
    )  # fmt: skip


def _percent(found: float, label_mib: float | None) -> float:
    if not label_mib:
        raise ValueError("a case without memory labels cannot be compared")
    return 100 * (found / MIB - label_mib) / label_mib


def compare(folder: Path, jobs: int) -> Iterator[Outcome]:
    """Every case that was measured and has a graph, the cases of a network in one process."""
    groups: dict[str, list[CaseRow]] = {}
    for row in DataSet(folder).cases(joined=True):
        groups.setdefault(row.network, []).append(row)
    yield from chain.from_iterable(spread(_outcomes, [(folder, rows) for rows in groups.values()], jobs))


def _outcomes(task: tuple[Path, list[CaseRow]]) -> list[Outcome]:
    folder, rows = task
    data, found = opened(folder), []
    for row in rows:
        graph = data.graph(row)
        labels = data.node_labels(row, graph)
        arguments = {
            "runtime": row.runtime,
            "allocator": row.allocator,
            "mode": row.mode,
            "workspaces": _workspaces(graph, row, labels),
            "cap_floor": NO_SEARCH,
        }
        missing = int((~labels.measured).sum())
        found.append(
            outcome(row, missing, replay(graph, **arguments), replay(graph, **arguments, events=labels.events))
        )
    return found


def _workspaces(graph: ModelGraph, row: CaseRow, labels: NodeLabels) -> tuple[int, ...]:
    """As measured. Outside of inference mode attention was recorded as the calls that it is made of: there it is the
    predictor's rule."""
    measured = [max(0, int(w)) for w in labels.workspace_bytes]
    apart = [i for i, o in enumerate(graph.operators) if o.kind == KIND and not labels.measured[i]]
    strides = strides_of(graph) if apart else []
    for index in apart:
        measured[index] = attention_workspace(graph, graph.operators[index], strides, row.runtime)
    return tuple(measured)


def keep(path: Path, outcomes: Iterable[Outcome]) -> None:
    """Writes them as CSV; `read` is its inverse."""
    names = [field.name for field in fields(Outcome)]
    with io.TextIOWrapper(gzip.GzipFile(path, "wb", mtime=0), newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for one in outcomes:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(one).items()})


def read(path: Path) -> list[Outcome]:
    """What `keep` wrote."""
    texts = ("id", "architecture", "super_family", "runtime", "mode", "allocator")
    with io.TextIOWrapper(gzip.GzipFile(path, "rb"), newline="") as file:
        return [
            Outcome(**{k: v if k in texts else int(v) if k == "unmeasured" else float(v) for k, v in line.items()})
            for line in csv.DictReader(file)
        ]


def reason(one: Outcome) -> str:
    """Why a case is off, as far as what is known of it tells."""
    if one.super_family in ("levit", "tiny_vit"):
        return "a first pass fills caches that no graph holds"
    if one.runtime == "torchscript":
        return "TorchScript: kernels fused from the third pass on, calls under other names than the graph's"
    if one.mode == "autograd":
        return "autograd: what an operator leaves for its backward pass"
    if one.unmeasured and one.super_family in ("bert", "clip", "detr", "gpt", "llama", "speech", "t5"):
        return "the export has operators that the run has not: masks spelled out, heads repeated, dropouts"
    if one.mode == "no_grad":
        return "no_grad: other calls than in inference mode"
    return "locals of the network's own Python, or the order of equal blocks"


def _share(cases: Sequence[Outcome], error: Callable[[Outcome], float], limit: float) -> float:
    return 100 * sum(abs(error(case)) <= limit for case in cases) / len(cases)


def page(outcomes: Sequence[Outcome]) -> str:
    """The document."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for one in outcomes:
        for name in ("all cases", f"{one.runtime}", f"{one.runtime}, {one.mode}, {one.allocator} allocator"):
            groups[name].append(one)
    off = [one for one in outcomes if abs(one.activations) > ACTIVATIONS]
    wide = [one for one in outcomes if abs(one.reserved) > RESERVED]
    whole = groups["all cases"]
    lines = [
        "# The memory replay on the measured data set",
        "",
        "Written by `bench/replay_accuracy.py`: every measured case with a graph, replayed from its measured",
        "workspaces. What is left are lifetimes and orders that the rules miss.",
        "",
        f"Of {len(whole):,} cases {_share(whole, lambda c: c.activations, ACTIVATIONS):.1f} % come within "
        f"{ACTIVATIONS:g} % of their activations (bar: {BARS['activations']:g} %) and "
        f"{_share(whole, lambda c: c.reserved, RESERVED):.1f} % within {RESERVED:g} % of what is reserved (bar: "
        f"{BARS['reserved']:g} %).",
        "",
        f"| run as | cases | activations within {ACTIVATIONS:g} % | mean error | reserved within {RESERVED:g} %, order "
        "inside operators known | unknown |",
        "|---|---|---|---|---|---|",
    ]
    for name, cases in sorted(groups.items(), key=lambda item: (item[0] != "all cases", item[0])):
        lines.append(
            f"| {name} | {len(cases):,} | {_share(cases, lambda c: c.activations, ACTIVATIONS):.1f} % | "
            f"{statistics.fmean(abs(c.activations) for c in cases):.2f} % | "
            f"{_share(cases, lambda c: c.reserved, RESERVED):.1f} % | "
            f"{_share(cases, lambda c: c.reserved_unordered, RESERVED):.1f} % |"
        )
    for title, cases, error in (
        (f"Activations more than {ACTIVATIONS:g} % off", off, lambda c: c.activations),
        (f"Reserved more than {RESERVED:g} % off", wide, lambda c: c.reserved),
    ):
        lines += ["", f"## {title}: {len(cases)} cases", ""]
        for why, members in sorted(_by(cases, reason).items(), key=lambda item: -len(item[1])):
            lines += [f"**{why[0].upper()}{why[1:]}** ({len(members)} cases)", ""]
            lines += ["| super-family | cases | of | median error | architectures |", "|---|---|---|---|---|"]
            for family, some in sorted(_by(members, lambda c: c.super_family).items(), key=lambda i: -len(i[1])):
                of = sum(c.super_family == family and reason(c) == why for c in outcomes)
                lines.append(
                    f"| {family} | {len(some)} | {of} | {statistics.median(error(c) for c in some):+.1f} % | "
                    f"{_names(some)} |"
                )
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _by(cases: Iterable[Outcome], key: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    found: dict[str, list[Outcome]] = defaultdict(list)
    for case in cases:
        found[key(case)].append(case)
    return found


def _names(cases: Sequence[Outcome]) -> str:
    """Architectures, those with the most cases first; the rest as a number."""
    counted = Counter(case.architecture for case in cases).most_common()
    shown = ", ".join(name if n == 1 else f"{name} ({n})" for name, n in counted[:12])
    return shown + (f" and {len(counted) - 12} more" if len(counted) > 12 else "")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder of the data set")
    parser.add_argument(
        "--jobs", type=int, default=default_jobs(), help="processes (default: the processors there are)"
    )
    parser.add_argument("--keep", type=Path, metavar="CSV.GZ", help="keep each case's errors")
    parser.add_argument("--kept", type=Path, metavar="CSV.GZ", help="instead of a data set: what --keep left")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="the page (default: printed)")
    parser.add_argument("--list", type=int, default=0, help="list this many of the worst cases by activations too")
    options = parser.parse_args()
    if (options.data is None) == (options.kept is None):
        parser.error("give the folder of a data set, or --kept")
    outcomes = read(options.kept) if options.kept else list(compare(options.data, options.jobs))
    if options.keep:
        keep(options.keep, outcomes)
    text = page(outcomes)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    else:
        print(text)
    for case in sorted(outcomes, key=lambda c: -abs(c.activations))[: options.list]:
        print(f"{case.activations:+8.2f} %  {case.id}  {case.architecture}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
