"""Makes every model of the table, predicts it, and writes down how long it took or why it was missed.

    python bench/models [--only TEXT] [--results docs/reference/models.csv] [--tensorflow PYTHON] [--paddle PYTHON]
    python bench/models --render            # docs/reference/models.md from the results, nothing run again

Each network's files are made in a temporary folder by a process of its own, then each goes the operator's path: parsed in
a forked, limited child, predicted in this process. Runs under an interpreter that has torch, timm, transformers and
onnxscript. Results are kept cell by cell: a cell that is in the results already is not run again, unless `--again`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

from declared import BATCH, NETWORKS, Cell, cells
from table import Result, read_results, render, write_results

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
RESULTS = REPOSITORY / "docs" / "reference" / "models.csv"
PAGE = REPOSITORY / "docs" / "reference" / "models.md"
MAKE_SECONDS = 1200


@dataclass(frozen=True)
class Made:
    """A file that was made for a cell, or why none was."""

    cell: Cell
    path: Path | None
    inputs: tuple[str, ...] = ()
    batch: int = BATCH
    reason: str = ""


def processor() -> str:
    """Cores and name, as Linux says it."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} cores of {names[0] if names else platform.machine()}"


def predicted(made: Made) -> Result:
    """The cell's file through the operator's path, the quicker of two."""
    from dippm.artifact import open_artifact
    from dippm.case import Case
    from dippm.errors import DippmError
    from dippm.frontend import parse_input
    from dippm.frontend.child import load_graph_in_child
    from dippm.predictor import predict_graph
    from dippm.profiles import resolve_device

    cell = made.cell
    result = Result(
        cell.family, cell.model, cell.door, cell.detail, made.batch, processor=processor(), load=os.getloadavg()[0]
    )
    if made.path is None:
        return replace(result, outcome="no file", reason=made.reason)
    inputs = tuple(map(parse_input, made.inputs)) or None
    best = float("inf")
    try:
        for _ in range(2):
            since = time.perf_counter()
            graph = load_graph_in_child(open_artifact(made.path), batch=made.batch, inputs=inputs)
            prediction = predict_graph(graph, Case(batch=made.batch, device=resolve_device("A100").product))
            best = min(best, time.perf_counter() - since)
    except DippmError as error:
        return replace(result, outcome="miss", reason=str(error).replace(str(made.path), "the file"))
    features = prediction.static_features
    return replace(
        result,
        outcome="ok",
        seconds=round(best, 3),
        memory_mib=round(prediction.memory_mib),
        weights_mib=round(prediction.weights_mib, 1),
        gmacs=round(features["macs"] / 1e9, 3),
        convs=features["convs"],
        denses=features["denses"],
        operators=len(graph.operators),
        mig_profile=prediction.mig_profile or "none",
    )


class PyTorchMaker:
    """The process that makes the files of PyTorch networks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "pytorch_models.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=_environment(),
        )

    def files(self, wanted: Sequence[Cell], folder: Path) -> Iterator[Made]:
        """The files of one network."""
        network = next(n for n in NETWORKS if n.name == wanted[0].model)
        request = {"network": network.name, "folder": str(folder), "cells": [asdict(c) for c in wanted]}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        shape = ",".join(map(str, network.shape))
        inputs = (shape,) if network.source == "timm" else (f"{shape}:int64", f"{shape}:int64")
        told = 0
        for line in self._process.stdout:
            said = json.loads(line)
            if "ended" in said:
                for cell in wanted[told:]:
                    yield Made(cell, None, reason=f"the exporter's process ended with {said['ended']}")
                return
            told += 1
            cell = Cell(**said["cell"])
            path = Path(said["file"]) if said["file"] else None
            yield Made(cell, path, inputs if cell.door == "torchscript" else (), BATCH, said.get("error", ""))
            if path is not None:
                path.unlink()


def huggingface(folder: Path, done: frozenset[str], only: str) -> Iterator[Made]:
    """Hugging Face folders, made by `huggingface_models.py`."""
    script = str(HERE / "huggingface_models.py")
    for one in json.loads(_run([sys.executable, script, "list"]).stdout):
        cell = Cell("Hugging Face", one["name"], "folder")
        if cell.key in done or only not in cell.key:
            continue
        path = folder / one["name"]
        answer = _run([sys.executable, script, "make", one["name"], str(path)])
        if answer.returncode:
            yield Made(cell, None, reason=answer.stderr.strip().splitlines()[-1][:300])
        else:
            yield Made(cell, path, tuple(one["inputs"]), one["batch"])


def _environment() -> dict[str, str]:
    source = os.pathsep.join(str(REPOSITORY / part) for part in ("predictor", "operator"))
    return os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=MAKE_SECONDS, env=_environment(), stdin=subprocess.DEVNULL
    )


def breadth_first() -> list[str]:
    """The networks' names, the first of every family first."""
    place: dict[str, int] = {}
    ranks = []
    for network in NETWORKS:
        place[network.family] = place.get(network.family, 0) + 1
        ranks.append((place[network.family], network.name))
    return [name for _, name in sorted(ranks, key=lambda r: r[0])]


def files(done: frozenset[str], only: str) -> Iterator[Made]:
    """Every file that is not in the results yet; each is gone when the next network's is asked for."""
    wanted = [c for c in cells() if c.key not in done and only in c.key]
    order = breadth_first()
    maker = PyTorchMaker() if wanted else None
    for _, group in groupby(sorted(wanted, key=lambda c: order.index(c.model)), lambda c: c.model):
        assert maker is not None
        with tempfile.TemporaryDirectory() as folder:
            yield from maker.files(list(group), Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from huggingface(Path(folder), done, only)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name (family/model/door) has this text")
    parser.add_argument("--again", action="store_true", help="run cells that are in the results already")
    parser.add_argument("--misses", action="store_true", help="run again what was missed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="write the page from the results and run nothing")
    args = parser.parse_args()
    results = read_results(args.results)
    if not args.render:
        kept = {k: r for k, r in results.items() if not (args.misses and r.outcome != "ok")}
        done = frozenset() if args.again else frozenset(kept)
        for made in files(done, args.only):
            result = predicted(made)
            results[made.cell.key] = result
            write_results(args.results, results)
            print(f"{result.outcome:8} {made.cell.key:60} {result.seconds or '':>7} {result.reason}", flush=True)
    if args.results == RESULTS:
        PAGE.write_text(render(results.values()))


if __name__ == "__main__":
    main()
