"""From the harness's rows and the extracted graphs to the published form (`graph_store`, `call_store`, `columns`).

1. Rows are read one after the other; of each case the first one with labels on the set's card counts (a timed one
   before one of memory alone), the others are repeats. A data set that exists already may be the base of new rows.
2. Cases are joined with their graphs, relatives one after the other: what repeats is then found by the compression.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dippm.case import Mode, Precision
from dippm.data import columns
from dippm.data.batches import TEMPLATE_BATCHES, at_batch, collides
from dippm.data.call_store import CallWriter
from dippm.data.columns import Case, Row, network_key
from dippm.data.graph_store import GraphName, GraphWriter
from dippm.data.join import align, align_decomposed, matched_share, tokens_of_calls, tokens_of_graph
from dippm.data.reader import DataSet, graph_names
from dippm.data.rows import MeasuredCall, OperatorRows
from dippm.data.symbols import Shapes
from dippm.data.tables import write_table
from dippm.graph import ModelGraph

TABLES = {
    "cases": columns.CASE_COLUMNS,
    "anchors": ("case", "stage", *columns.ANCHOR_COLUMNS, *columns.PROVENANCE),
    "caps": ("case", "status", *columns.CAP_COLUMNS),
    "repeats": columns.REPEAT_COLUMNS,
    "onnxruntime": columns.ORT_COLUMNS,
}

_STORAGE = re.compile(r"( *\d+\n)+\[torch\.storage\.UntypedStorage[^]]*\]")
"""How earlier rows spell a storage: every byte of it."""

Operators = Callable[[], OperatorRows]
"""Puts together the rows of one case; their nodes are not known yet, or those of the base."""


@dataclass(slots=True)
class Packed:
    """The tables of a data set."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    anchors: list[dict[str, Any]] = field(default_factory=list)
    caps: list[dict[str, Any]] = field(default_factory=list)
    repeats: list[dict[str, Any]] = field(default_factory=list)
    onnxruntime: list[dict[str, Any]] = field(default_factory=list)
    calls: CallWriter = field(default_factory=CallWriter)
    graphs: GraphWriter = field(default_factory=GraphWriter)


def call_of(entry: Sequence[Any]) -> MeasuredCall:
    """A call as the harness writes it."""
    target, inputs, arguments, outputs, views, net, peak, events = entry
    tensors = [tuple((tuple(s), d, layout) for s, d, layout in side) for side in (inputs, outputs)]
    arguments = _STORAGE.sub("storage", arguments)
    return MeasuredCall(target, tensors[0], arguments, tensors[1], tuple(views), net, peak, tuple(events))


def operators_of(body: bytes) -> OperatorRows:
    """The harness's table of operators (compressed JSON), without nodes."""
    import numpy as np

    table = json.loads(zlib.decompress(body))
    calls = [call_of(entry) for entry in table["calls"]]
    return OperatorRows(
        tuple(calls[i] for i in table["sequence"]),
        np.full(len(table["sequence"]), -1, np.int32),
        np.asarray(table["freed_bytes"], np.int64),
        np.asarray(table["kernel_us"], np.float32),
        np.asarray(table["kernels"], np.int16),
    )


class Graphs:
    """Extracted graphs by network, batch and dtype, kept compressed; those of a base where none was made anew."""

    def __init__(self, extracted: Iterable[tuple[GraphName, ModelGraph | str]], base: DataSet | None = None) -> None:
        self.errors: dict[str, str] = {}
        self.doubtful: set[str] = set()
        """Networks with a size that is a multiple of their template's batch: does it scale? Not made again to see."""
        self._bodies: dict[GraphName, bytes] = {}
        self._last: tuple[GraphName, ModelGraph] | None = None
        self.base = base
        for name, graph in extracted:
            if isinstance(graph, str):
                self.errors[name[0]] = graph
                continue
            earlier = [n for n in ((name[0], batch, name[2]) for batch in TEMPLATE_BATCHES) if n in self._bodies]
            if name[1] in TEMPLATE_BATCHES:
                for other in earlier:
                    del self._bodies[other]
                (self.doubtful.discard if earlier or not collides(graph) else self.doubtful.add)(name[0])
            self._bodies[name] = zlib.compress(json.dumps(graph.to_dict(), separators=(",", ":")).encode(), 1)
        anew = {(key, dtype) for key, batch, dtype in self._bodies if batch in TEMPLATE_BATCHES}
        self.of_base = {
            (key, batch, dtype)
            for key, batch, dtype in (base.stored_graphs() if base else ())
            if not (batch in TEMPLATE_BATCHES and (key, dtype) in anew) and (key, batch, dtype) not in self._bodies
        }

    def names(self) -> list[GraphName]:
        """Of all graphs."""
        return sorted({*self._bodies, *self.of_base})

    def stored(self, name: GraphName) -> ModelGraph:
        """A graph as it was extracted."""
        if self._last is None or self._last[0] != name:
            if name in self._bodies:
                graph = ModelGraph.from_dict(json.loads(zlib.decompress(self._bodies[name])))
            else:
                assert self.base is not None
                graph = self.base.stored_graph(name)
            self._last = name, graph
        return self._last[1]

    def nearest(self, key: str, batch: int, float_dtype: str) -> GraphName | None:
        """The name of the graph for a case; None where the network could not be exported."""
        return next(
            (name for name in graph_names(key, batch, float_dtype) if name in self._bodies or name in self.of_base),
            None,
        )

    def get(self, name: GraphName, batch: int, float_dtype: str) -> ModelGraph:
        """A graph at a case's batch, in its precision."""
        graph = self.stored(name)
        graph = graph if graph.batch == batch else at_batch(graph, batch)
        return graph if name[2] == float_dtype else graph.cast(float_dtype)


@dataclass(slots=True)
class _Taken:
    """What was found for one case."""

    row: dict[str, Any]
    operators: Operators | None


class Choice:
    """Step 1: which row of a case counts."""

    def __init__(self, cases: Mapping[str, Case], packed: Packed, base: DataSet | None) -> None:
        self.cases, self.packed = cases, packed
        self.runs: dict[str, Row] = {}
        self.taken: dict[str, _Taken] = {}
        self.card = ""
        self._caps: dict[str, dict[str, Any]] = {}
        self._relatives = {network_key(c["id"]): c for c in cases.values()}
        self._in_base: set[tuple[str, str, str]] = set()
        self._ort: dict[tuple[str, ...], dict[str, Any]] = {}
        if base is not None:
            self._base(base)

    def _base(self, base: DataSet) -> None:
        for row in base.rows("cases"):
            self.card = self.card or row["gpu"]
            operators = None
            if base.has_operators(row["id"]):
                batch, dtype = row["batch"], Precision(row["precision"]).float_dtype
                operators = partial(base.rows_of, row["id"], batch, dtype)
            self.taken[row["id"]] = _Taken(row, operators)
        for name in ("anchors", "caps", "repeats", "onnxruntime"):
            getattr(self.packed, name).extend(base.rows(name))
        self._in_base = {("labels", taken.row["id"], taken.row["run"]) for taken in self.taken.values()}
        for name in ("anchors", "caps", "repeats", "onnxruntime"):
            purpose = {"caps": "min_cap", "repeats": "labels"}.get(name, name)
            found = getattr(self.packed, name)
            self._in_base |= {(purpose, row.get("case") or row["id"], row["run"]) for row in found}

    def take(self, row: Row) -> None:
        """One line of the harness; what a base took of the same run is not taken twice."""
        if "provenance" in row:
            self.runs[row["provenance"]["run"]] = row["provenance"]
            return
        run = self.runs[row["run"]]
        purpose = "anchors" if row.get("anchor") else row["purpose"]
        if (purpose, row["case"], row["run"]) in self._in_base:
            return
        if row["purpose"] == "onnxruntime":
            self._onnxruntime(row, run)
        elif row.get("anchor"):
            self.packed.anchors.append(columns.anchor_row(row, run))
        elif row["purpose"] == "min_cap":
            if row["case"] in self.cases or row["case"] in self.taken:
                self.packed.caps.append(columns.cap_row(row))
                labels = {k: row[k] for k in columns.CAP_LABELS if k in row}
                self._caps.setdefault(row["case"], {}).update(labels)
        elif row["case"] in self.cases:
            self._labels(row, run)

    def _labels(self, row: Row, run: Row) -> None:
        found = columns.case_row(self.cases[row["case"]], row, run)
        self.card = self.card or found["gpu"]
        kept = self.taken.get(row["case"])
        better = kept is None or _rank(found) < _rank(kept.row)
        if found["gpu"] != self.card or not better:
            if row["status"] != "failed":
                self.packed.repeats.append({"case": row["case"], **columns.measured(row, run)})
            return
        if kept is not None and kept.row["status"] == "ok":
            earlier = {name: kept.row.get(name) for name in columns.REPEAT_COLUMNS[1:]}
            self.packed.repeats.append({"case": row["case"], **earlier, **dict.fromkeys(columns.CAP_LABELS)})
            found.update({name: kept.row.get(name) for name in columns.CAP_LABELS})
        operators = None
        if "operators" in row:
            body = zlib.compress(json.dumps(row["operators"], separators=(",", ":")).encode(), 6)
            operators = partial(operators_of, body)
        self.taken[row["case"]] = _Taken(found, operators)

    def _onnxruntime(self, row: Row, run: Row) -> None:
        relative = self._relatives.get(network_key(row["case"]))
        if relative is None:
            raise ValueError(f"{row['case']}: no case of the list is of this network, so nothing says its family")
        known = {
            "architecture": relative["network"]["architecture"], "source": relative["network"]["source"],
            "family": relative["family"], "super_family": relative["super_family"],
        }  # fmt: skip
        found = columns.ort_row(row, run, known)
        key = (found["id"], found["run"], found["provider"], found["provider_options"], found["session_options"])
        if key in self._ort:
            kept = self._ort[key]
            kept.update({k: v for k, v in found.items() if kept[k] in (None, "", "{}")})
            return
        self._ort[key] = found
        self.packed.onnxruntime.append(found)

    def finish(self) -> None:
        """Adds what the searches for the smallest cap found to their cases."""
        for name, labels in self._caps.items():
            if name in self.taken:
                self.taken[name].row.update(labels)


def _rank(row: Row) -> tuple[int, bool]:
    """The least counts: labels before none, times before memory alone."""
    return ("ok", "oom", "failed").index(row["status"]), row["device_ms"] is None


def pack(rows: Iterable[Row], cases: Mapping[str, Case], graphs: Graphs, base: DataSet | None = None) -> Packed:
    """Both steps."""
    packed = Packed()
    choice = Choice(cases, packed, base)
    for row in rows:
        choice.take(row)
    choice.finish()
    _join(packed, choice.taken, graphs)
    packed.cases = [taken.row for taken in choice.taken.values()]
    order = {row["network"]: _relatives_first(row)[:4] for row in packed.cases}
    for name in sorted((n for n in graphs.names() if n[0] in order), key=lambda n: (order[n[0]], n)):
        packed.graphs.add(name, graphs.stored(name))
    return packed


def _relatives_first(row: Row) -> tuple[Any, ...]:
    dtype = Precision(row["precision"]).float_dtype
    names = tuple(row[key] for key in ("source", "family", "architecture", "network"))
    return (*names, row["mode"], row["runtime"], dtype, row["batch"], row["id"])


def _join(packed: Packed, taken: Mapping[str, _Taken], graphs: Graphs) -> None:
    """Step 2."""
    nodes: dict[Any, tuple[int, ...]] = {}
    for found in sorted(taken.values(), key=lambda t: _relatives_first(t.row)):
        row = found.row
        if found.operators is None:
            continue
        measured, batch = found.operators(), row["batch"]
        dtype = Precision(row["precision"]).float_dtype
        name = graphs.nearest(row["network"], batch, dtype)
        program = packed.calls.program(measured.calls, Shapes(graphs.stored(name) if name else None, batch), dtype)
        inference = row["mode"] == Mode.INFERENCE
        if name is None:
            row["matched_share"], measured = None, measured.with_nodes([-1] * len(measured.calls))
        elif not (name in graphs.of_base and row["matched_share"] is not None):
            key = (name, inference, program)
            if key not in nodes:
                graph = graphs.get(name, batch, dtype)
                nodes[key] = tuple(
                    align(tokens_of_calls(measured.calls), tokens_of_graph(graph))
                    if inference
                    else align_decomposed(measured.calls, graph)
                )
            row["matched_share"] = matched_share(measured.calls, nodes[key])
            measured = measured.with_nodes(nodes[key])
        packed.calls.add(row["id"], row["network"], program, measured)


def write(packed: Packed, root: Path) -> dict[str, int]:
    """Writes all tables; gives the bytes of each file."""
    root.mkdir(parents=True, exist_ok=True)
    sizes = {
        f"{name}.parquet": write_table(root / f"{name}.parquet", columns.typed(getattr(packed, name), names))
        for name, names in TABLES.items()
        if getattr(packed, name) or name == "cases"
    }
    return {**sizes, **packed.calls.write(root), **packed.graphs.write(root)}
