"""`dippm graph`: draws the list of cases, extracts the networks' graphs, and packs measured rows with them.

dippm graph plan                                             what each network roughly needs, resumable
dippm graph list cases.jsonl --timed 900 --memory 2600       the list that dippm measure takes
dippm graph extract cases.jsonl graphs.gz                    one graph a network, resumable
dippm graph pack cases.jsonl rows.gz graphs.gz --out datasets/mine
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING

from dippm.case import Allocator, Mode, Precision, Runtime
from dippm.data.batches import TEMPLATE_BATCH
from dippm.errors import ArtifactUnreachable, DippmError
from dippm.zoo.case import InputShape, Network, ZooCase, read_cases, write_cases
from dippm.zoo.declare import LARGEST_MIB

if TYPE_CHECKING:
    from dippm.zoo.catalogue import Member
    from dippm.zoo.planning import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dippm graph`."""
    steps = parser.add_subparsers(dest="step", required=True)
    planned = steps.add_parser("plan", help="find what each network will roughly need, for `list` to draw batches by")
    planned.add_argument("plans", type=Path, nargs="?", help="lines are added here (default: the package's own file)")
    planned.add_argument("--random", type=int, default=1600, help="random networks (default: %(default)s)")
    planned.add_argument("--seed", type=int, default=1, help="of the random networks (default: %(default)s)")
    planned.add_argument("--processes", type=int, default=2, help="side by side (default: %(default)s)")
    listed = steps.add_parser(
        "list", help="draw the list of cases from a seed",
        description="Draws the list of cases from a seed: --timed, --memory and --caps cases together, behind up to 20 "
        "anchors (timed cases that open and close each run) and --again. A case is a network at a batch, precision, "
        "mode, runtime and allocator; one network has several.",
    )  # fmt: skip
    listed.add_argument("cases", type=Path, help="written anew: a case a line of JSON")
    listed.add_argument("--seed", type=int, default=1, help="the same seed, the same list (default: %(default)s)")
    listed.add_argument(
        "--random", type=int, default=1600,
        help="random networks to draw from, beside those of the catalogue (default: %(default)s)",
    )  # fmt: skip
    listed.add_argument(
        "--timed",
        type=int,
        default=900,
        help="cases with time and energy too, at most (default: %(default)s)",
    )
    listed.add_argument("--memory", type=int, default=2600, help="of memory alone, at most (default: %(default)s)")
    listed.add_argument("--known", type=Path, help="a data set whose cases are not measured anew")
    listed.add_argument(
        "--again", type=int, default=0, help="cases of --known to measure once more (default: %(default)s)"
    )
    listed.add_argument(
        "--caps", type=int, default=160,
        help="searches for the smallest cap, of cases that are in the list too, at most (default: %(default)s)",
    )  # fmt: skip
    beside = listed.add_argument_group("lists beside that one; with any of these it is left out")
    beside.add_argument("--paper", action="store_true", help="the cases that the DIPPM paper prints, in all modes")
    beside.add_argument("--large", type=int, default=0, help="cases of --large-from to 118 GB, evenly on a log scale")
    beside.add_argument(
        "--large-from", type=float, default=62.0, metavar="GB", help="least footprint of --large (default: %(default)g)"
    )
    beside.add_argument(
        "--even", type=int, default=0, metavar="EACH",
        help="cases of networks of --known until each doubling of the footprint, from 750 MiB on, has so many",
    )  # fmt: skip
    beside.add_argument("--torchscript", type=int, default=0, help="cases that TorchScript runs")
    beside.add_argument("--searches", type=int, default=0, help="searches for the smallest cap among cases of --known")
    beside.add_argument("--onnx", type=int, default=0, help="cases that ONNX Runtime runs")
    beside.add_argument(
        "--onnx-ms", type=float, default=60.0, help="longest pass expected of these (ms; default: %(default)s)"
    )
    extracted = steps.add_parser("extract", help="extract the graph of every network of a list")
    extracted.add_argument("cases", type=Path, help="list of cases, as `dippm graph list` writes it")
    extracted.add_argument("graphs", type=Path, help="graphs are appended here; what it holds is not made again")
    extracted.add_argument(
        "--half", action="store_true", help="also in half precision, where a network casts by itself"
    )
    packed = steps.add_parser("pack", help="join measured rows with graphs and write Parquet")
    packed.add_argument("cases", type=Path, help="list of cases that was measured")
    packed.add_argument("rows", type=Path, nargs="+", help="rows as dippm measure wrote them, first come first served")
    packed.add_argument("--graphs", type=Path, nargs="+", required=True, help="graphs as extracted; later files count")
    packed.add_argument("--more-cases", type=Path, nargs="+", default=[], help="further lists that the rows belong to")
    packed.add_argument("--base", type=Path, help="a data set whose cases, graphs and repeats come first")
    packed.add_argument("--out", type=Path, required=True, help="folder of the data set")


def run(args: argparse.Namespace) -> int:
    """Runs one step; 0."""
    return {"plan": _plan, "list": _list, "extract": _extract, "pack": _pack}[args.step](args)


def _plan(args: argparse.Namespace) -> int:
    from dippm.zoo.catalogue import broad, random_members
    from dippm.zoo.declare import stratified
    from dippm.zoo.planning import plan_all

    members = stratified(broad() + random_members(args.random, args.seed), lambda m: m.super_family, args.seed)
    with as_file(files("dippm.zoo").joinpath("planning.jsonl")) as path:
        made = plan_all([m.network for m in members], args.plans or path, args.processes)
    print(f"{made} networks planned", file=sys.stderr)
    return 0


def _list(args: argparse.Namespace) -> int:
    from dippm.zoo.catalogue import broad, random_members
    from dippm.zoo.declare import anchors, declare, stratified
    from dippm.zoo.planning import read_plans

    with as_file(files("dippm.zoo").joinpath("planning.jsonl")) as path:
        plans = read_plans(path)
    members = broad() + random_members(args.random, args.seed)
    known = _known(args.known) if args.known else {}
    if args.paper or args.large or args.even or args.torchscript or args.searches or args.onnx:
        listed = _beside(args, members, plans, known)
        write_cases(args.cases, listed)
        print(f"{args.cases}: {len(listed)} cases of {len({c.network.key for c in listed})} networks", file=sys.stderr)
        return 0
    cases = declare(members, plans, seed=args.seed, timed=args.timed, memory=args.memory, caps=args.caps, known=known)
    again = stratified(known.values(), lambda case: (case.super_family, case.precision), args.seed)[: args.again]
    networks = len({case.network.key for case in (*cases, *again)})
    opening = anchors(cases)
    write_cases(args.cases, opening + again + cases)
    print(
        f"{args.cases}: {len(cases)} cases of {networks} networks, {len(again)} more again, {len(opening)} anchors",
        file=sys.stderr,
    )
    return 0


def _beside(
    args: argparse.Namespace, members: list[Member], plans: dict[str, Plan], known: dict[str, ZooCase]
) -> list[ZooCase]:
    from dippm.zoo import supplements
    from dippm.zoo.even import declare_even
    from dippm.zoo.onnx_cases import declare_onnx

    seed = args.seed
    measured = _measured(args.known, "cases.parquet", "id", label="footprint_mib")
    if args.searches and not known:
        raise DippmError("--searches looks for the smallest cap of measured cases: name their data set with --known")
    searched = _measured(args.known, "caps.parquet", "case", label="min_cap_steady_mib")
    ran = _measured(args.known, "onnxruntime.parquet", "id", label="memory_mib")
    return [
        *(supplements.declare_paper() if args.paper else ()),
        *supplements.declare_large(
            members, plans, seed=seed, count=args.large, least_mib=args.large_from * 1_000, known=known
        ),
        *declare_even(
            members, plans, seed=seed, each=args.even, measured=[known[name] for name in sorted(measured)], known=known
        ),
        *supplements.declare_torchscript(members, plans, seed=seed, count=args.torchscript),
        *supplements.searches_of(known.values(), plans, seed=seed, count=args.searches, searched=searched),
        *declare_onnx(members, plans, seed=seed, count=args.onnx, longest_ms=args.onnx_ms, known=ran),
    ]


def _known(root: Path) -> dict[str, ZooCase]:
    """The cases of a data set by id, as a list would hold them (their footprint is known, not planned)."""
    if not (root / "cases.parquet").is_file():
        raise ArtifactUnreachable(f"{root} holds no cases.parquet: give the folder of a data set")
    from dippm.data.tables import read_rows

    found = {}
    for row in read_rows(root / "cases.parquet"):
        inputs = tuple(InputShape(tuple(i["shape"]), i["dtype"], i["high"]) for i in json.loads(row["inputs"]))
        network = Network(row["architecture"], row["source"], row["model"], json.loads(row["kwargs"]), inputs)
        found[row["id"]] = ZooCase(
            network, row["batch"], Precision(row["precision"]), Mode(row["mode"]), Runtime(row["runtime"]),
            Allocator(row["allocator"]), row["family"], row["super_family"],
            timed=False, planned_mib=row["footprint_mib"] or LARGEST_MIB,
        )  # fmt: skip
    return found


def _measured(root: Path | None, table: str, name: str, *, label: str) -> frozenset[str]:
    """Ids, in column `name`, of a table's rows that have this label; none where the table is missing."""
    from dippm.data.tables import read_rows

    if root is None or not (root / table).exists():
        return frozenset()
    return frozenset(row[name] for row in read_rows(root / table) if row[label] is not None)


def _extract(args: argparse.Namespace) -> int:
    from dippm.graph import ModelGraph
    from dippm.zoo.extract import casts, extract_all, read_graphs

    cases = read_cases(args.cases)
    networks: dict[str, Network] = {case.network.key: case.network for case in cases}
    extract_all([(n, TEMPLATE_BATCH, Precision.FP32) for n in networks.values()], args.graphs)
    if args.half:
        casting = {name[0] for name, g in read_graphs([args.graphs]) if isinstance(g, ModelGraph) and casts(g)}
        halves = {
            (c.network.key, c.precision.float_dtype): (c.network, TEMPLATE_BATCH, c.precision)
            for c in cases
            if c.network.key in casting and c.precision.float_dtype != "float32"
        }
        extract_all(halves.values(), args.graphs)
    return 0


def _pack(args: argparse.Namespace) -> int:
    from dippm.data.card import write_card
    from dippm.data.pack import Graphs, pack, write
    from dippm.data.reader import DataSet
    from dippm.data.rowfile import RowFile
    from dippm.zoo.extract import read_graphs

    listed = [case for path in (args.cases, *args.more_cases) for case in read_cases(path)]
    cases = {case.id: _line(case) for case in listed if case.purpose != "min_cap" and not case.anchor}
    base = DataSet(args.base) if args.base else None
    rows = (row for path in args.rows for row in RowFile(path).stream())
    graphs = Graphs(read_graphs(args.graphs), base)
    if graphs.doubtful:
        print(
            f"{len(graphs.doubtful)} graphs may not scale with the batch (a size of theirs is a multiple of the "
            f"template's): run dippm graph extract on {args.graphs[-1]} again, it makes these anew",
            file=sys.stderr,
        )
    packed = pack(rows, cases, graphs, base)
    for name, size in write(packed, args.out).items():
        print(f"{args.out / name}: {size} bytes", file=sys.stderr)
    write_card(args.out)
    return 0


def _line(case: ZooCase) -> dict[str, object]:
    body: dict[str, object] = json.loads(case.to_json())
    return {**body, "id": case.id}
