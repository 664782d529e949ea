"""Makes every model of the table, predicts it, and writes down how long it took or why it was missed.

    python bench/models [--only TEXT] [--again] [--misses] [--rounds 2] [--results docs/reference/models.csv]
    python bench/models --render            # docs/reference/models.md from the results, nothing run again

Each network's files are made in a temporary folder by a process of its own, then each goes the operator's path: parsed
in a forked, limited child, predicted in this process. Runs under an interpreter that has torch, timm, transformers and
onnxscript; TensorFlow's and Paddle's models are made, and converted, by the interpreters that DIPPM_TENSORFLOW_PYTHON
and DIPPM_PADDLE_PYTHON name, and left out where they name none. Results are kept cell by cell: what is in them already
is not run again, unless by `--again` (everything) or `--misses`.
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


def cpu_seconds() -> float:
    """Of this process, its children that ended (converters), and those of the preloaded one (parsing children)."""
    from dippm.frontend.pool import PARENT

    own = sum(os.times()[:4])
    if PARENT._process is None:
        return own
    fields = Path(f"/proc/{PARENT._process.pid}/stat").read_text().rpartition(")")[2].split()
    return own + sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")  # cutime, cstime: proc_pid_stat(5)


def predicted(made: Made, rounds: int) -> Result:
    """The cell's file through the operator's path, the quickest of so many rounds."""
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
    best = cpu = float("inf")
    try:
        for _ in range(rounds):
            since, spent = time.perf_counter(), cpu_seconds()
            graph = load_graph_in_child(open_artifact(made.path), batch=made.batch, inputs=inputs)
            prediction = predict_graph(graph, Case(batch=made.batch, device=resolve_device("A100").product))
            best = min(best, time.perf_counter() - since)
            cpu = min(cpu, cpu_seconds() - spent)
    except DippmError as error:
        return replace(result, outcome="miss", reason=str(error).replace(str(made.path), "the file"))
    features = prediction.static_features
    return replace(
        result,
        outcome="ok",
        seconds=round(best, 3),
        cpu_seconds=round(cpu, 2),
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
        told = set()
        for line in self._process.stdout:
            said = json.loads(line)
            if "ended" in said:
                for cell in (c for c in wanted if c.key not in told):
                    yield Made(cell, None, reason=f"the exporter's process ended with {said['ended']}")
                return
            cell = Cell(**said["cell"])
            told.add(cell.key)
            path = Path(said["file"]) if said["file"] else None
            yield Made(cell, path, inputs if cell.door == "torchscript" else (), BATCH, said.get("error", ""))
            if path is not None:
                path.unlink()


@dataclass(frozen=True)
class Script:
    """A maker of its own: `SCRIPT list` names its models, `SCRIPT make NAME FOLDER` writes one of them."""

    family: str
    file: str
    setting: str = ""
    """Environment variable by which the predictor, too, knows the interpreter that has the framework."""
    door: str = ""
    """Where its names do not say it (`resnet50/keras`)."""

    def files(self, done: frozenset[str], only: str) -> Iterator[Made]:
        """Its files that are not in the results yet; none where the interpreter is not named."""
        python = os.environ.get(self.setting) if self.setting else sys.executable
        if not python or not (HERE / self.file).exists():
            return
        command = [python, str(HERE / self.file)]
        for one in json.loads(_run([*command, "list"]).stdout):
            model, _, door = one["name"].partition("/")
            cell = Cell(self.family, model, door or self.door)
            if cell.key in done or only not in cell.key:
                continue
            with tempfile.TemporaryDirectory() as folder:
                answer = _run([*command, "make", one["name"], folder])
                if answer.returncode:
                    yield Made(cell, None, reason=_last_line(answer.stderr))
                else:
                    yield Made(cell, _written(answer.stdout, Path(folder)), tuple(one["inputs"]), one["batch"])


SCRIPTS = (
    Script("Hugging Face", "huggingface_models.py", door="folder"),
    Script("TensorFlow", "tensorflow_models.py", "DIPPM_TENSORFLOW_PYTHON"),
    Script("Paddle", "paddle_models.py", "DIPPM_PADDLE_PYTHON", door="inference model"),
)


def _written(printed: str, folder: Path) -> Path:
    """The path that a maker printed last; else the program in the folder; else the folder."""
    last = _last_line(printed)
    if last and Path(last).exists():
        return Path(last)
    programs = sorted(p for p in folder.glob("inference.*") if p.suffix in (".json", ".pdmodel"))
    return programs[0] if programs else folder


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1].strip()[:300]


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
    for script in SCRIPTS:
        yield from script.files(done, only)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="cells whose name (family/model/door) has this text")
    parser.add_argument("--again", action="store_true", help="run cells that are in the results already")
    parser.add_argument("--misses", action="store_true", help="run again what was missed")
    parser.add_argument("--rounds", type=int, default=2, help="predictions of each file; the quickest is told")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--render", action="store_true", help="write the page from the results and run nothing")
    args = parser.parse_args()
    results = read_results(args.results)
    if not args.render:
        kept = {k: r for k, r in results.items() if not (args.misses and r.outcome != "ok")}
        done = frozenset() if args.again else frozenset(kept)
        for made in files(done, args.only):
            result = predicted(made, args.rounds)
            results[made.cell.key] = result
            write_results(args.results, results)
            print(f"{result.outcome:8} {made.cell.key:60} {result.seconds or '':>7} {result.reason}", flush=True)
    if args.results == RESULTS:
        PAGE.write_text(render(results.values()))


if __name__ == "__main__":
    main()
