"""The bundle: weights, tables, costs and calibration in one file, and what they say of a graph.

`load_bundle()` reads the file that ships in the package, once a process. The file is
`dippm/weights/pmgns.safetensors`; its metadata is the `Schema`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dippm.case import Case
from dippm.errors import DippmError
from dippm.graph import ModelGraph
from dippm.network import calibration, lookup, rules, workspace
from dippm.network.costs import EnergyCost, HostCost
from dippm.network.featurizer import Featurized, featurize
from dippm.network.forward import Array, forward, standardise
from dippm.network.schema import Schema
from dippm.network.workload import Workload

FILE = "pmgns.safetensors"
KNOWN_SHARE = 0.99
"""A graph is of a known kind when so many of its operators were measured."""
DEFAULT_RISK_PERCENT = 1.0
FADING = frozenset({"allocated", "reserved", "device_ms"})
RESIDUAL_LIMIT = 4.0
"""No kernel is taken to be further than this from its roofline (log): beyond it the network is guessing."""


class NoWeightsError(DippmError):
    """The package holds no trained weights."""

    reason = "NoWeights"


@dataclass(frozen=True, slots=True)
class Estimates:
    """What the network and its tables say of one case: operator by operator, and of the whole graph.

    Sequences are as long as `graph.operators`, in their order; times and energies are of the measured device.
    """

    workspace_bytes: tuple[int, ...]
    kernel_us: tuple[float, ...]
    """Sum of the operator's kernels, without the gaps."""
    kernels: tuple[int, ...]
    energy_j: tuple[float, ...]
    """Above the static power."""
    host_us: tuple[float, ...]
    host_pass_us: float
    """Host time of a pass that belongs to no operator."""
    gap_us: float
    """Device time between kernels."""
    static_w: float
    log_residuals: Mapping[str, float]
    """log(measured / composed), expected, for `allocated`, `reserved`, `device_ms`, `host_ms`, `energy_j`."""
    upper: Mapping[str, calibration.UpperBound]
    """Bounds of `min_cap` and `reserved`."""
    known_share: float
    """Share of operators that were looked up in the table, or are views, of which nothing is to be known."""

    @property
    def is_known(self) -> bool:
        """Whether the graph consists of measured operators."""
        return self.known_share >= KNOWN_SHARE


@dataclass(frozen=True)
class Bundle:
    """Everything that was learned, ready to use."""

    schema: Schema
    weights: Mapping[str, Array]
    node_mean: Array
    node_scale: Array
    static_mean: Array
    static_scale: Array
    table: lookup.Table
    kind_us: Array
    """Host time by kind, [len(KINDS)]."""

    @property
    def device(self) -> str:
        """Product that the figures are of."""
        return self.schema.device

    def estimate(
        self,
        graph: ModelGraph,
        case: Case,
        *,
        work: tuple[Workload, ...] | None = None,
        risk_percent: float = DEFAULT_RISK_PERCENT,
        use_table: bool = True,
    ) -> Estimates:
        """Estimates of a graph that is already cast to the case's precision, with a runtime that is not `auto`.

        `work` is its `workloads`, where they are known. `use_table=False` asks the network about every operator,
        measured or not.
        """
        features = featurize(graph, case, work)
        rows = self.rows_of(graph, case) if use_table else np.full(len(features.work), -1, dtype=np.int64)
        return self.assemble(features, case, rows, *self.network(features), risk_percent=risk_percent)

    def rows_of(self, graph: ModelGraph, case: Case) -> npt.NDArray[np.int64]:
        """Row of each operator in the table of measured ones, [n]; -1 where it was not measured."""
        return self.table.find(lookup.operator_keys(graph, case))

    def assemble(
        self,
        features: Featurized,
        case: Case,
        rows: npt.NDArray[np.int64],
        operators: Array,
        residuals: Array,
        *,
        risk_percent: float = DEFAULT_RISK_PERCENT,
    ) -> Estimates:
        """Estimates from the network's columns ([n, operator columns], [graph columns]) and the table's rows [n]."""
        workspaces = self._workspaces(features, operators, rows)
        kernel_us, kernels = self._kernels(features, operators, rows)
        energy = EnergyCost(self.schema.static_w, self.schema.energy).of(features.work, case.precision, kernel_us)
        known = known_share(features, rows) if len(self.table) else 0.0
        return Estimates(
            workspace_bytes=workspaces,
            kernel_us=tuple(kernel_us.tolist()),
            kernels=tuple(kernels.tolist()),
            energy_j=tuple(energy.tolist()),
            host_us=tuple(HostCost(self.schema.host_pass_us, self.kind_us).of(features.kinds).tolist()),
            host_pass_us=self.schema.host_pass_us,
            gap_us=self.schema.gap_us,
            static_w=self.schema.static_w,
            log_residuals=applied_residuals(
                dict(zip(self.schema.graph_columns, residuals.tolist(), strict=True)), self.schema.graph_shrink, known
            ),
            upper=self.bounds(known >= KNOWN_SHARE, risk_percent),
            known_share=known,
        )

    def network(self, features: Featurized) -> tuple[Array, Array]:
        """Raw columns of the network: [n, operator columns], [graph columns]."""
        return forward(
            self.weights,
            standardise(features.nodes, self.node_mean, self.node_scale),
            features.kinds,
            features.edges,
            standardise(features.statics, self.static_mean, self.static_scale),
            blocks=int(self.schema.hyper["blocks"]),
            with_edges=bool(self.schema.hyper["edges"]),
        )

    def bounds(self, known: bool, risk_percent: float) -> dict[str, calibration.UpperBound]:
        """Upper bounds by target, for a graph of measured operators or not."""
        return calibration.read(self.schema.bounds, risk_percent, known=known)

    def _workspaces(self, features: Featurized, operators: Array, rows: npt.NDArray[np.int64]) -> tuple[int, ...]:
        first = self.schema.operator_columns.index(f"workspace:{workspace.CLASSES[0]}")
        classes = operators[:, first : first + len(workspace.CLASSES)].argmax(axis=1)
        ratios = operators[:, self.schema.operator_columns.index("workspace_log_ratio")]
        measured = frozenset(self.schema.measured_kinds)
        out = []
        for index, work in enumerate(features.work):
            row = rows[index]
            if work.is_view:
                out.append(0)
            elif features.rules.exact[index]:
                out.append(features.rules.workspaces[index])
            elif row >= 0:
                out.append(self.table.workspace_bytes(int(row), work))
            elif work.kind not in measured or work.kind in rules.ALWAYS:
                out.append(features.rules.workspaces[index])
            else:
                out.append(workspace.workspace_bytes(work, int(classes[index]), float(ratios[index])))
        return tuple(out)

    def _kernels(
        self, features: Featurized, operators: Array, rows: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Kernel time in microseconds and number of kernels of each operator; none of a view."""
        columns = self.schema.operator_columns
        residual = operators[:, columns.index("log_time_residual")].astype(np.float64)
        views = np.array([work.is_view for work in features.work], dtype=bool)
        runs = (operators[:, columns.index("kernels_logit")] > 0) & ~views
        counts = np.maximum(1, np.rint(np.exp(operators[:, columns.index("log_kernels")].clip(0, 6)))).astype(np.int64)
        times = np.exp(features.log_roofline + residual.clip(-RESIDUAL_LIMIT, RESIDUAL_LIMIT))
        times, counts = np.where(runs, times, 0.0), np.where(runs, counts, 0)
        if len(self.table):
            measured = np.where(rows >= 0, self.table.kernel_us[rows], np.nan)
            times = np.where(np.isfinite(measured), measured, times)
            counts = np.where(np.isfinite(measured), self.table.kernels[rows], counts)
        return times, counts


def known_share(features: Featurized, rows: npt.NDArray[np.int64]) -> float:
    """Share of operators that were measured, or are views; 0 where none was measured."""
    if not (rows >= 0).any():
        return 0.0
    return float(np.mean([row >= 0 or work.is_view for row, work in zip(rows, features.work, strict=True)]))


def applied_residuals(
    residuals: Mapping[str, float], shrink: Mapping[str, float], known_share: float
) -> dict[str, float]:
    """The graph level's residuals as far as they are used.

    They are told over compositions of estimated operators: memory and device time of operators that were looked up
    need none, so those fade out with the share of such operators. Host time and energy are never looked up.
    """
    unknown = 1.0 - known_share
    return {
        name: value * shrink.get(name, 0.0) * (unknown if name in FADING else 1.0) for name, value in residuals.items()
    }


def read_bundle(path: Path) -> Bundle:
    """The bundle in a file. Raises BundleMismatchError where it was made by another version."""
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as file:
        schema = Schema.from_json((file.metadata() or {}).get("schema", "{}"))
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return Bundle(
        schema=schema,
        weights={
            name.removeprefix("net."): np.ascontiguousarray(a, dtype=np.float32)
            for name, a in arrays.items()
            if name.startswith("net.")
        },
        node_mean=arrays["node.mean"],
        node_scale=arrays["node.scale"],
        static_mean=arrays["static.mean"],
        static_scale=arrays["static.scale"],
        table=lookup.Table.from_arrays(
            {name.removeprefix("table."): a for name, a in arrays.items() if name.startswith("table.")}
        ),
        kind_us=arrays["host.kind_us"],
    )


def write_bundle(bundle: Bundle, path: Path) -> None:
    """Write a bundle; the network's weights are kept in half precision (read back as float32)."""
    from safetensors.numpy import save_file

    arrays: dict[str, npt.NDArray[np.generic]] = {
        f"net.{name}": np.ascontiguousarray(a, dtype=np.float16) for name, a in bundle.weights.items()
    }
    arrays |= {
        "node.mean": bundle.node_mean,
        "node.scale": bundle.node_scale,
        "static.mean": bundle.static_mean,
        "static.scale": bundle.static_scale,
        "host.kind_us": bundle.kind_us,
        **{f"table.{name}": array for name, array in bundle.table.arrays().items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(arrays, str(partial), metadata={"schema": bundle.schema.to_json()})
    partial.replace(path)


@lru_cache(maxsize=1)
def load_bundle() -> Bundle:
    """The bundle that ships in the package, read once a process. Raises NoWeightsError where the package has none."""
    file = resources.files("dippm.weights").joinpath(FILE)
    if not file.is_file():
        raise NoWeightsError(f"the package holds no trained weights (dippm/weights/{FILE}): make them with dippm train")
    with resources.as_file(file) as path:
        return read_bundle(path)
