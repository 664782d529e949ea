"""Reads a data set folder: cases, graphs and operator rows, each only when asked for.

data = DataSet(Path("datasets/h200-v1"))
for case in data.cases():
    graph = data.graph(case)              # at the case's batch, cast to its precision
    labels = data.node_labels(case)       # one entry per operator of that graph
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dippm.case import Allocator, Mode, Precision, Runtime
from dippm.data.batches import TEMPLATE_BATCHES, at_batch
from dippm.data.call_store import CallReader
from dippm.data.graph_store import GraphName, GraphReader
from dippm.data.rows import CaseRow, NodeLabels, OperatorRows
from dippm.data.tables import read_rows
from dippm.graph import ModelGraph

ENUMS = {"precision": Precision, "mode": Mode, "runtime": Runtime, "allocator": Allocator}


def case_from_row(row: dict[str, Any]) -> CaseRow:
    """A row of `cases.parquet`; columns that a `CaseRow` does not name are left out."""
    named: dict[str, Any] = {name: row[name] for name in CaseRow.__dataclass_fields__}
    for name, kind in ENUMS.items():
        named[name] = kind(row[name])
    return CaseRow(**named)


def graph_names(key: str, batch: int, float_dtype: str) -> list[GraphName]:
    """Where a case's graph may be stored: its own dtype before fp32, its own batch before a template."""
    return [(key, b, dtype) for dtype in (float_dtype, "float32") for b in (batch, *TEMPLATE_BATCHES)]


class DataSet:
    """A folder of Parquet files as `dippm.data.pack` writes it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._last_graph = lru_cache(maxsize=32)(self.stored_graph)

    def __reduce__(self) -> tuple[type[DataSet], tuple[Path]]:
        return DataSet, (self.root,)  # another process reads for itself

    def rows(self, table: str) -> list[dict[str, Any]]:
        """All rows of a table (`cases`, `repeats`, `caps`, `anchors`, `onnxruntime`); none where it is missing."""
        path = self.root / f"{table}.parquet"
        return read_rows(path) if path.exists() else []

    @property
    def distinct_calls(self) -> int:
        """Rows of `calls.parquet`: calls that differ in more than batch and precision."""
        import pyarrow.parquet as parquet

        return int(parquet.read_metadata(self.root / "calls.parquet").num_rows)

    @cached_property
    def _cases(self) -> list[CaseRow]:
        return [case_from_row(row) for row in read_rows(self.root / "cases.parquet")]

    @cached_property
    def _graphs(self) -> GraphReader:
        return GraphReader(self.root)

    @cached_property
    def _calls(self) -> CallReader:
        return CallReader(self.root)

    def cases(self, *, status: str | None = "ok", joined: bool = False) -> list[CaseRow]:
        """Cases of a status (None: all), in the order of the list; with `joined`, those that have a graph only."""
        return [
            row
            for row in self._cases
            if (status is None or row.status == status) and (not joined or self.has_graph(row))
        ]

    def stored_graphs(self) -> Sequence[GraphName]:
        """Names of the graphs as they are stored."""
        return self._graphs.names

    def stored_graph(self, name: GraphName) -> ModelGraph:
        """A graph as it is stored: at a template's batch, mostly in fp32. KeyError if there is none of this name."""
        return self._graphs.graph(name)

    def has_graph(self, row: CaseRow) -> bool:
        """Whether the graph store holds the case's network."""
        return self._stored(row) is not None

    def graph_digest(self, row: CaseRow) -> str:
        """Digest of the stored graph that the case's is made from. KeyError if there is none."""
        name = self._stored(row)
        if name is None:
            raise KeyError(f"{self.root}: no graph of {row.architecture} ({row.network})")
        return self._graphs.digest(name)

    def _stored(self, row: CaseRow) -> GraphName | None:
        names = graph_names(row.network, row.batch, row.precision.float_dtype)
        return next((name for name in names if name in self._graphs), None)

    def graph(self, row: CaseRow) -> ModelGraph:
        """The case's graph at its batch and in its precision. KeyError if there is none."""
        name = self._stored(row)
        if name is None:
            raise KeyError(f"{self.root}: no graph of {row.architecture} ({row.network})")
        graph = self._last_graph(name)
        graph = graph if graph.batch == row.batch else at_batch(graph, row.batch)
        return graph if name[2] == row.precision.float_dtype else graph.cast(row.precision.float_dtype)

    def has_operators(self, case_id: str) -> bool:
        """Whether operator rows of a case were recorded."""
        return case_id in self._calls

    def rows_of(self, case_id: str, batch: int, float_dtype: str) -> OperatorRows:
        """Measured rows of a case, told what its id does not say."""
        return self._calls.operators(case_id, batch, float_dtype)

    def operators(self, row: CaseRow) -> OperatorRows:
        """Measured rows of the case, in order. KeyError if the case has none."""
        return self.rows_of(row.id, row.batch, row.precision.float_dtype)

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
