"""Reads a data set folder: cases, graphs and operator rows, each only when asked for.

data = DataSet(Path("datasets/h200-v1"))
for case in data.cases():
    graph = data.graph(case)              # at the case's batch, cast to its precision
    labels = data.node_labels(case)       # one entry per operator of that graph
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dippm.case import Allocator, Mode, Precision, Runtime
from dippm.data.batches import TEMPLATE_BATCH, at_batch
from dippm.data.rows import CaseRow, MeasuredCall, NodeLabels, OperatorRows
from dippm.graph import ModelGraph

ENUMS = {"precision": Precision, "mode": Mode, "runtime": Runtime, "allocator": Allocator}


def call_from_row(row: dict[str, Any]) -> MeasuredCall:
    """A row of `operators.parquet`."""
    tensors = {
        side: tuple((tuple(shape), dtype, layout) for shape, dtype, layout in json.loads(row[side]))
        for side in ("inputs", "outputs")
    }
    return MeasuredCall(
        row["target"], tensors["inputs"], row["arguments"], tensors["outputs"], tuple(row["views"]),
        row["net_bytes"], row["peak_bytes"], tuple(row["events"]),
    )  # fmt: skip


def case_from_row(row: dict[str, Any]) -> CaseRow:
    """A row of `cases.parquet`; columns that a `CaseRow` does not name are left out."""
    named: dict[str, Any] = {name: row[name] for name in CaseRow.__dataclass_fields__}
    for name, kind in ENUMS.items():
        named[name] = kind(row[name])
    return CaseRow(**named)


class DataSet:
    """A folder of Parquet files as `dippm.data.pack` writes it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _table(self, name: str) -> list[dict[str, Any]]:
        import pyarrow.parquet as parquet

        rows: list[dict[str, Any]] = parquet.read_table(self.root / name).to_pylist()
        return rows

    @cached_property
    def _cases(self) -> list[CaseRow]:
        return [case_from_row(row) for row in self._table("cases.parquet")]

    @cached_property
    def _graphs(self) -> dict[tuple[str, int, str], str]:
        rows = self._table("graphs.parquet")
        return {(row["network"], row["batch"], row["float_dtype"]): row["graph"] for row in rows}

    @cached_property
    def _calls(self) -> list[MeasuredCall]:
        return [call_from_row(row) for row in self._table("operators.parquet")]

    @cached_property
    def _sequences(self) -> dict[str, dict[str, Any]]:
        return {row["case"]: row for row in self._table("sequences.parquet")}

    def cases(self, *, status: str | None = "ok", joined: bool = False) -> list[CaseRow]:
        """Cases of a status (None: all), in the order of the list; with `joined`, those that have a graph only."""
        return [
            row
            for row in self._cases
            if (status is None or row.status == status) and (not joined or self.has_graph(row))
        ]

    def has_graph(self, row: CaseRow) -> bool:
        """Whether the graph store holds the case's network."""
        return self._stored(row) is not None

    def _stored(self, row: CaseRow) -> tuple[str, int, str] | None:
        """The store's name of the graph nearest to the case: its own dtype before fp32, its own batch before any."""
        names = [
            (row.network, batch, dtype)
            for dtype in (row.precision.float_dtype, "float32")
            for batch in (row.batch, TEMPLATE_BATCH)
        ]
        return next((name for name in names if name in self._graphs), None)

    def graph(self, row: CaseRow) -> ModelGraph:
        """The case's graph at its batch and in its precision. KeyError if there is none."""
        name = self._stored(row)
        if name is None:
            raise KeyError(f"{self.root}: no graph of {row.architecture} ({row.network})")
        graph = ModelGraph.from_dict(json.loads(self._graphs[name]))
        graph = graph if graph.batch == row.batch else at_batch(graph, row.batch)
        return graph if name[2] == row.precision.float_dtype else graph.cast(row.precision.float_dtype)

    def operators(self, row: CaseRow) -> OperatorRows:
        """Measured rows of the case, in order. KeyError if the case has none."""
        found = self._sequences[row.id]
        return OperatorRows(
            calls=tuple(self._calls[index] for index in found["sequence"]),
            node=np.asarray(found["node"], dtype=np.int32),
            freed_bytes=np.asarray(found["freed_bytes"], dtype=np.int64),
            kernel_us=np.asarray(found["kernel_us"], dtype=np.float32),
            kernels=np.asarray(found["kernels"], dtype=np.int16),
        )

    def node_labels(self, row: CaseRow, graph: ModelGraph | None = None) -> NodeLabels:
        """The measured rows seen from the graph's operators."""
        graph = graph or self.graph(row)
        return node_labels(self.operators(row), len(graph.operators))


def node_labels(rows: OperatorRows, operators: int) -> NodeLabels:
    """Spreads matched rows over a graph's operators; rows of one node (a decomposed call) are added up in order."""
    measured = np.zeros(operators, dtype=np.bool_)
    peak = [0] * operators
    workspace, net = np.full(operators, -1, dtype=np.int64), np.zeros(operators, dtype=np.int64)
    kernel_us, kernels = np.full(operators, np.nan, dtype=np.float32), np.full(operators, -1, dtype=np.int32)
    events: list[tuple[int, ...] | None] = [None] * operators
    timed = len(rows.kernel_us) == len(rows.calls)
    for index, (call, node) in enumerate(zip(rows.calls, rows.node.tolist(), strict=True)):
        if node < 0:
            continue
        level, peak[node] = int(net[node]), max(peak[node], int(net[node]) + call.peak_bytes)
        net[node] = level + call.net_bytes
        workspace[node] = peak[node] - max(int(net[node]), 0)
        events[node] = (*(events[node] or ()), *call.events)
        if timed:
            first = not measured[node]
            kernel_us[node] = rows.kernel_us[index] + (0.0 if first else kernel_us[node])
            kernels[node] = rows.kernels[index] + (0 if first else kernels[node])
        measured[node] = True
    return NodeLabels(measured, workspace, net, kernel_us, kernels, tuple(events))


def cases(root: Path) -> Sequence[CaseRow]:
    """The measured cases of a data set folder."""
    return DataSet(root).cases()
