"""What a data set's rows of ONNX Runtime say: how far the replay of its memory is off, its bounds, and its time.

    python -m dippm.train.onnxruntime datasets/h200-v1 --work train-work

`--work` is the folder of a `dippm train`: the networks that never saw a super-family (`without-K.safetensors`) say what
the convolutions of its rows need. Writes the calibration that ships, `dippm/weights/onnxruntime.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from dippm.case import Allocator, Case, Mode, Precision, Runtime
from dippm.data import DataSet
from dippm.data.batches import at_batch
from dippm.data.reader import graph_names
from dippm.data.splits import RANDOM, fold_of, locked
from dippm.errors import ArtifactUnreachable
from dippm.folding import as_loaded
from dippm.graph import ModelGraph
from dippm.network.bundle import Bundle, Estimates, load_bundle, read_bundle
from dippm.network.calibration import known_bounds, score, unknown_bounds
from dippm.network.clocks import device_ms
from dippm.network.onnxruntime import FILE, Calibration
from dippm.replay.bfc_arena import ExtendStrategy
from dippm.replay.onnx_nodes import Exporter
from dippm.replay.onnxruntime import OrtReplay, replay_onnxruntime
from dippm.train.bounds import UNCALIBRATED_RATE

MIB = 2.0**20
AS_BY_DEFAULT = {"use_tf32": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"}
"""Options that decide which kernels run, as a prediction takes them: times of other rows are left out."""
SHARES = tuple(step / 20 for step in range(10, 31))
LAUNCHES_US = tuple(step / 2 for step in range(31))
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """One row of ONNX Runtime beside its graph, as it is loaded, and what two bundles estimate of it."""

    row: Row
    graph: ModelGraph
    unseen: Estimates
    """By the network that never saw its super-family."""
    known: Estimates
    """By the one that ships."""

    def replayed(self, estimates: Estimates) -> OrtReplay:
        """Its memory under its own options."""
        return replay_onnxruntime(
            self.graph,
            workspaces=estimates.workspace_bytes,
            exporter=Exporter(self.row["exporter"].split()[-1]),
            strategy=ExtendStrategy(self.option("arena_extend_strategy")),
            pattern=self.option("enable_mem_pattern") == "1",
        )

    @cached_property
    def held_back(self) -> OrtReplay:
        """The replay from workspaces of other super-families."""
        return self.replayed(self.unseen)

    @cached_property
    def looked_up(self) -> OrtReplay:
        """The replay as a prediction has it."""
        return self.replayed(self.known)

    def option(self, name: str) -> str:
        """An option of the provider or the session. KeyError if it has none of that name."""
        return _option(self.row, name)

    @cached_property
    def more(self) -> dict[str, Any]:
        """What has no column of its own."""
        found: dict[str, Any] = json.loads(self.row["more"])
        return found

    @property
    def device_ms(self) -> float:
        """Time of its kernels as a graph of PyTorch, by the held-back network, ms."""
        return device_ms(self.unseen.kernel_us, self.unseen.kernels, self.unseen.gap_us)


def _option(row: Row, name: str) -> str:
    found: dict[str, str] = {**json.loads(row["provider_options"]), **json.loads(row["session_options"])}
    return found[name]


def read_rows(folder: Path, work: Path, bundle: Bundle | None = None) -> Iterator[Measured]:
    """The rows with labels whose network has a graph and belongs to a fold (locked super-families do not)."""
    data, bundle, hidden = DataSet(folder), bundle or load_bundle(), locked()
    stored = frozenset(data.stored_graphs())
    bundles: dict[int, Bundle] = {}
    for row in data.rows("onnxruntime"):
        fold = fold_of(row["super_family"], row["architecture"])
        if row["status"] != "ok" or row["super_family"] in hidden or fold is None:
            continue
        precision = Precision(row["precision"])
        names = graph_names(row["network"], row["batch"], precision.float_dtype)
        name = next((name for name in names if name in stored), None)
        if name is None:
            continue
        graph = data.stored_graph(name)
        graph = at_batch(graph, row["batch"]) if graph.batch != row["batch"] else graph
        graph = replace(graph.cast(precision.float_dtype), open_batch=_option(row, "batch_axis") == "dynamic")
        graph, _ = as_loaded(graph)
        case = Case(row["batch"], precision, Mode.INFERENCE, Runtime.GRAPH, Allocator.DEFAULT, device=bundle.device)
        if fold not in bundles:
            bundles[fold] = read_bundle(_bundle(work, fold))
        yield Measured(row, graph, bundles[fold].estimate(graph, case), bundle.estimate(graph, case))


def _bundle(work: Path, fold: int) -> Path:
    path = work / f"without-{fold}.safetensors"
    if not path.is_file():
        raise ArtifactUnreachable(f"{path} is missing: --work names the folder of a finished dippm train")
    return path


def calibration(rows: Sequence[Measured]) -> Calibration:
    """The bounds of all rows, and the time of those that were timed and ran as by default."""
    timed = [row for row in rows if row.row["latency_ms"] and runs_as_by_default(row)]
    share, launch = fitted_time(timed)
    errors = [abs(error) for error in held_back_times(timed)]
    return Calibration(
        cases=sum(row.row["super_family"] != RANDOM for row in rows),
        bounds={
            "min_cap": _bounds([r for r in rows if r.row["min_cap_mib"]], "min_limit_bytes", _limit_bytes),
            "reserved": _bounds(rows, "arena_bytes", lambda row: row.more["arena_mib"] * MIB),
        },
        timed=len(timed),
        device_share=share,
        launch_us=launch,
        time_error_percent=round(100 * statistics.median(errors), 1),
    )


def runs_as_by_default(row: Measured) -> bool:
    """Whether its options take the kernels that a prediction assumes."""
    return all(row.option(name) == value for name, value in AS_BY_DEFAULT.items())


def _limit_bytes(row: Measured) -> float:
    return float(row.row["min_cap_mib"]) * MIB


def _bounds(rows: Sequence[Measured], name: str, label: Any) -> dict[str, Any]:
    """From named architectures alone: networks drawn at random are no family of anything that a user brings, and what
    goes wrong here is less an operator's workspace than the plan of a whole graph."""
    known, families = [], defaultdict(list)
    for row in rows:
        if row.row["super_family"] != RANDOM:
            known.append(_score(row, row.looked_up, name, label(row)))
            families[row.row["super_family"]].append(_score(row, row.held_back, name, label(row)))
    worst = max((s for group in families.values() for s in group), default=0.0)
    return {
        "known": {str(risk): rate for risk, rate in known_bounds(known).items()},
        "known_sample": len(known),
        "unknown": {str(risk): rate for risk, rate in unknown_bounds(families).items()},
        "unknown_sample": len(families),
        "otherwise": max(UNCALIBRATED_RATE, worst),
    }


def _score(row: Measured, found: OrtReplay, name: str, label: float) -> float:
    """Inputs lie outside of the arena and are known: they count on both sides."""
    inputs = found.inputs_bytes
    return score(label + inputs, getattr(found, name) + inputs, found.weights_bytes + inputs)


def _latency_ms(row: Measured, share: float, launch: float) -> float:
    return share * row.device_ms + launch * sum(row.unseen.kernels) / 1e3


def fitted_time(rows: Sequence[Measured]) -> tuple[float, float]:
    """The share of the kernels' time and the microseconds of a launch that leave the least absolute log error."""

    def error(pair: tuple[float, float]) -> float:
        return sum(abs(math.log(_latency_ms(row, *pair) / row.row["latency_ms"])) for row in rows)

    return min(product(SHARES, LAUNCHES_US), key=error)


def held_back_times(rows: Sequence[Measured]) -> list[float]:
    """Relative errors of the latency, each super-family left out of the fit in turn (of random networks each one)."""
    groups: dict[str, list[Measured]] = defaultdict(list)
    for row in rows:
        family = row.row["super_family"]
        groups[row.row["architecture"] if family == RANDOM else family].append(row)
    errors = []
    for name, members in groups.items():
        pair = fitted_time([row for other, others in groups.items() if other != name for row in others])
        errors += [_latency_ms(row, *pair) / row.row["latency_ms"] - 1 for row in members]
    return errors


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the calibration of ONNX Runtime from a data set's rows."""
    parser = argparse.ArgumentParser(prog="python -m dippm.train.onnxruntime", description=main.__doc__)
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--work", type=Path, default=Path("train-work"), help="folder of a finished dippm train")
    parser.add_argument(
        "--out", type=Path, default=Path(str(resources.files("dippm.weights").joinpath(FILE))),
        help="the calibration (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    found = calibration(list(read_rows(options.data, options.work)))
    options.out.write_text(found.to_json(), encoding="utf-8")
    print(f"{options.out}: {found.cases} cases, {found.timed} timed, {found.time_error_percent} % median error of time")


if __name__ == "__main__":
    main()
