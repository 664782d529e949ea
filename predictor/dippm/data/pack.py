"""From the harness's rows and the extracted graphs to the published form: Parquet, each distinct call written once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dippm.case import Mode, Precision
from dippm.data.batches import TEMPLATE_BATCH, at_batch
from dippm.data.join import align, align_decomposed, matched_share, tokens_of_calls, tokens_of_graph
from dippm.data.rows import MeasuredCall
from dippm.graph import ModelGraph

FLOATS = (
    "weights_mib", "inputs_mib", "allocated_mib", "activations_mib", "reserved_mib", "reserved_before_mib",
    "context_mib", "footprint_mib", "recorded_peak_mib", "min_cap_steady_mib", "cap_failed_mib", "min_cap_mib",
    "device_ms", "host_ms", "latency_ms", "latency_median_ms", "latency_p90_ms", "energy_j", "energy_seconds",
    "kernel_ms",
)  # fmt: skip
INTEGERS = ("kernels", "latency_passes", "energy_passes", "cases_before", "cap_trials")
PROVENANCE = (
    "run", "gpu", "gpu_uuid", "driver", "cuda", "cudnn", "torch", "timm", "transformers", "python", "host", "kernel",
    "started",
)  # fmt: skip
CAP_COLUMNS = (
    "min_cap_steady_mib", "min_cap_mib", "cap_failed_mib", "cap_trials", "cap_allocated_mib", "cap_reserved_mib", "run",
)  # fmt: skip
ANCHOR_COLUMNS = ("device_ms", "host_ms", "latency_ms", "latency_p90_ms", "energy_j")

Case = Mapping[str, Any]
"""A line of the case list, as JSON."""


@dataclass(slots=True)
class Packed:
    """The tables of a data set, as rows."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    operators: list[dict[str, Any]] = field(default_factory=list)
    sequences: list[dict[str, Any]] = field(default_factory=list)
    graphs: list[dict[str, Any]] = field(default_factory=list)
    anchors: list[dict[str, Any]] = field(default_factory=list)
    caps: list[dict[str, Any]] = field(default_factory=list)


def call_of(entry: Sequence[Any]) -> MeasuredCall:
    """A call as the harness writes it."""
    target, inputs, arguments, outputs, views, net, peak, events = entry
    tensors = [tuple((tuple(s), d, layout) for s, d, layout in side) for side in (inputs, outputs)]
    return MeasuredCall(target, tensors[0], arguments, tensors[1], tuple(views), net, peak, tuple(events))


class Graphs:
    """Extracted graphs by network and batch, rescaled on demand."""

    def __init__(self, extracted: Iterable[tuple[tuple[str, int, str], ModelGraph | str]]) -> None:
        self.by_name: dict[tuple[str, int, str], ModelGraph] = {}
        self.errors: dict[str, str] = {}
        for name, graph in extracted:
            if isinstance(graph, str):
                self.errors[name[0]] = graph
            else:
                self.by_name[name] = graph

    def get(self, key: str, batch: int, float_dtype: str) -> ModelGraph | None:
        """The graph at a batch and dtype; None where the network could not be exported."""
        for dtype in (float_dtype, "float32"):
            exact, template = self.by_name.get((key, batch, dtype)), self.by_name.get((key, TEMPLATE_BATCH, dtype))
            found = exact or (template and at_batch(template, batch))
            if found is not None:
                return found if dtype == float_dtype else found.cast(float_dtype)
        return None


def pack(
    rows: Iterable[Mapping[str, Any]], cases: Mapping[str, Case], runs: Mapping[str, Mapping[str, Any]], graphs: Graphs
) -> Packed:
    """Joins rows with their cases and graphs; the last row of a case counts, caps are added to the same case."""
    packed = Packed()
    index: dict[str, int] = {}
    labels: dict[str, dict[str, Any]] = {}
    order: dict[str, int] = {}
    for position, row in enumerate(rows):
        if row.get("anchor"):
            packed.anchors.append(_anchor(row, runs))
        elif row["purpose"] == "min_cap":
            packed.caps.append({"case": row["case"], "status": row["status"], **{k: row.get(k) for k in CAP_COLUMNS}})
            labels.setdefault(row["case"], {}).update(
                {k: row[k] for k in ("min_cap_steady_mib", "cap_failed_mib", "min_cap_mib", "cap_trials") if k in row}
            )
        else:
            labels[row["case"]] = {**labels.get(row["case"], {}), **row}
            order.setdefault(row["case"], position)
    for name, row in sorted(labels.items(), key=lambda item: order.get(item[0], 1 << 60)):
        if "status" not in row:
            continue
        share = _sequence(packed, index, name, row, cases[name], graphs) if "operators" in row else None
        packed.cases.append(_case(name, row, cases[name], runs, share))
    used = {row["network"] for row in packed.cases}
    for (key, batch, dtype), graph in sorted(graphs.by_name.items()):
        if key in used:
            body = json.dumps(graph.to_dict(), separators=(",", ":"))
            names = {"network": key, "batch": batch, "float_dtype": dtype}
            packed.graphs.append({**names, "digest": graph.digest, "graph": body})
    return packed


def network_key(case: Case) -> str:
    """Key of the case's network: what comes before the first hyphen of the case's id."""
    return str(case["id"]).partition("-")[0]


def _sequence(
    packed: Packed, index: dict[str, int], name: str, row: Mapping[str, Any], case: Case, graphs: Graphs
) -> float | None:
    table = row["operators"]
    calls = [call_of(entry) for entry in table["calls"]]
    places = [_place(packed, index, call) for call in calls]
    sequence = [calls[i] for i in table["sequence"]]
    graph = graphs.get(network_key(case), case["batch"], Precision(case["precision"]).float_dtype)
    node = [-1] * len(sequence)
    share = None
    if graph is not None:
        if case["mode"] == Mode.INFERENCE:
            node = align(tokens_of_calls(sequence), tokens_of_graph(graph))
        else:
            node = align_decomposed(sequence, graph)
        share = matched_share(sequence, node)
    packed.sequences.append({
        "case": name,
        "sequence": [places[i] for i in table["sequence"]],
        "node": node,
        "freed_bytes": table["freed_bytes"],
        "kernel_us": table["kernel_us"],
        "kernels": table["kernels"],
    })  # fmt: skip
    return share


def _place(packed: Packed, index: dict[str, int], call: MeasuredCall) -> int:
    row = {
        "target": call.target,
        "inputs": json.dumps(call.inputs, separators=(",", ":")),
        "arguments": call.arguments,
        "outputs": json.dumps(call.outputs, separators=(",", ":")),
        "views": list(call.views),
        "net_bytes": call.net_bytes,
        "peak_bytes": call.peak_bytes,
        "events": list(call.events),
    }
    key = json.dumps(row)
    if key not in index:
        index[key] = len(packed.operators)
        packed.operators.append(row)
    return index[key]


def _case(
    name: str, row: Mapping[str, Any], case: Case, runs: Mapping[str, Mapping[str, Any]], share: float | None
) -> dict[str, Any]:
    network = case["network"]
    method = row.get("device_ms_method", "")
    return {
        "id": name,
        "architecture": network["architecture"],
        "family": case["family"],
        "super_family": case["super_family"],
        "source": network["source"],
        "model": network["model"],
        "kwargs": json.dumps(network["kwargs"], sort_keys=True),
        "inputs": json.dumps(network["inputs"]),
        "network": network_key(case),
        **{key: case[key] for key in ("batch", "precision", "mode", "runtime", "allocator")},
        "status": row["status"],
        "reason": row["reason"],
        "timed": row["timed"],
        "context_fresh": row.get("cases_before") == 0,
        "device_ms_method": method,
        "matched_share": share,
        **{key: row.get(key) for key in (*FLOATS, *INTEGERS)},
        **{key: str(runs[row["run"]][key]) for key in PROVENANCE},
    }


def _anchor(row: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    run_ahead = row.get("device_ms_method") == "run_ahead"
    labels = {key: row.get(key) for key in ANCHOR_COLUMNS}
    if not run_ahead:
        labels["device_ms"] = None
    return {"case": row["case"], "stage": row["stage"], **labels, **{k: str(runs[row["run"]][k]) for k in PROVENANCE}}


def write(packed: Packed, root: Path) -> dict[str, int]:
    """Writes the tables as zstd-compressed Parquet; gives the bytes of each file."""
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    root.mkdir(parents=True, exist_ok=True)
    narrow = {
        "sequence": arrow.list_(arrow.int32()), "node": arrow.list_(arrow.int32()),
        "freed_bytes": arrow.list_(arrow.int64()), "kernel_us": arrow.list_(arrow.float32()),
        "kernels": arrow.list_(arrow.int16()), "events": arrow.list_(arrow.int64()), "views": arrow.list_(arrow.int8()),
        **dict.fromkeys(FLOATS, arrow.float64()), **dict.fromkeys(("latency_passes", "energy_passes"), arrow.int32()),
    }  # fmt: skip
    sizes = {}
    for name in ("cases", "operators", "sequences", "graphs", "anchors", "caps"):
        rows = getattr(packed, name)
        columns = {}
        for key in rows[0] if rows else ():
            kind = None if name in ("cases", "anchors") and key == "kernels" else narrow.get(key)
            columns[key] = arrow.array([row[key] for row in rows], type=kind)
        path = root / f"{name}.parquet"
        parquet.write_table(arrow.table(columns), path, compression="zstd", compression_level=19)
        sizes[path.name] = path.stat().st_size
    return sizes
