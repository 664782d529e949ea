"""The columns of the tables that hold one row a measurement, and how a harness's row fills them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dippm.data.tables import Column

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
RUN_AS = ("batch", "precision", "mode", "runtime", "allocator")
NETWORK = ("architecture", "family", "super_family", "source", "network")
CASE_COLUMNS = (
    "id", "architecture", "family", "super_family", "source", "model", "kwargs", "inputs", "network", *RUN_AS, "status",
    "reason", "timed", "context_fresh", "device_ms_method", "matched_share", *FLOATS, *INTEGERS, *PROVENANCE,
)  # fmt: skip
REPEAT_COLUMNS = (
    "case",
    "status",
    "reason",
    "timed",
    "context_fresh",
    "device_ms_method",
    *FLOATS,
    *INTEGERS,
    *PROVENANCE,
)
ANCHOR_COLUMNS = ("device_ms", "host_ms", "latency_ms", "latency_p90_ms", "energy_j")
CAP_LABELS = ("min_cap_steady_mib", "cap_failed_mib", "min_cap_mib", "cap_trials")
CAP_COLUMNS = (
    "min_cap_steady_mib", "min_cap_mib", "cap_failed_mib", "cap_trials", "cap_allocated_mib", "cap_reserved_mib", "run",
)  # fmt: skip
ORT_FLOATS = (
    "context_mib", "process_mib", "memory_mib", "weights_mib", "min_cap_mib", "cap_failed_mib", "latency_ms",
    "latency_median_ms", "latency_p90_ms", "first_ms", "energy_j", "file_mib",
)  # fmt: skip
ORT_INTEGERS = ("cap_trials", "latency_passes", "opset", "nodes", "fallback_nodes")
ORT_OPTIONS = ("provider_options", "session_options", "more")
ORT_COLUMNS = (
    "id", "architecture", "family", "super_family", "source", "network", "batch", "precision", "mode", "runtime",
    "status", "reason", "provider", *ORT_OPTIONS, "exporter", *ORT_FLOATS, *ORT_INTEGERS, "onnxruntime", *PROVENANCE,
)  # fmt: skip
_DOUBLES = frozenset({*FLOATS, *ANCHOR_COLUMNS, *CAP_COLUMNS, *ORT_FLOATS, "matched_share"}) - {"run", "cap_trials"}
_INTS = frozenset({*INTEGERS, *ORT_INTEGERS, "batch", "stage"})
_FLAGS = frozenset({"timed", "context_fresh"})

Row = Mapping[str, Any]
Case = Mapping[str, Any]
"""A line of the case list, as JSON, with its id."""


def typed(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Column]:
    """Columns of rows, with the types that their names stand for; what a row does not hold is null."""
    import pyarrow as arrow

    kinds = {
        **dict.fromkeys(_DOUBLES, arrow.float64()), **dict.fromkeys(_INTS, arrow.int32()),
        **dict.fromkeys(_FLAGS, arrow.bool_()),
    }  # fmt: skip
    return {name: (kinds.get(name, arrow.string()), [row.get(name) for row in rows]) for name in names}


def network_key(case_id: str) -> str:
    """Key of the case's network: what comes before the first hyphen of the case's id."""
    return case_id.partition("-")[0]


def provenance_of(run: Row, names: Sequence[str] = PROVENANCE) -> dict[str, str]:
    """Where a row was measured."""
    return {key: str(run.get(key, "")) for key in names}


def measured(row: Row, run: Row) -> dict[str, Any]:
    """The columns that `cases` and `repeats` share."""
    return {
        "status": row["status"],
        "reason": row["reason"],
        "timed": row["timed"],
        "context_fresh": row.get("cases_before") == 0,
        "device_ms_method": row.get("device_ms_method", ""),
        **{key: row.get(key) for key in (*FLOATS, *INTEGERS)},
        **provenance_of(run),
    }


def case_row(case: Case, row: Row, run: Row) -> dict[str, Any]:
    """A row of `cases.parquet`, its matched share left open."""
    network = case["network"]
    return {
        "id": case["id"],
        "architecture": network["architecture"],
        "family": case["family"],
        "super_family": case["super_family"],
        "source": network["source"],
        "model": network["model"],
        "kwargs": json.dumps(network["kwargs"], sort_keys=True),
        "inputs": json.dumps(network["inputs"]),
        "network": network_key(case["id"]),
        **{key: case[key] for key in RUN_AS},
        "matched_share": None,
        **measured(row, run),
    }


def anchor_row(row: Row, run: Row) -> dict[str, Any]:
    """A row of `anchors.parquet`; device times that are sums of kernels are left out."""
    labels = {key: row.get(key) for key in ANCHOR_COLUMNS}
    if row.get("device_ms_method") != "run_ahead":
        labels["device_ms"] = None
    return {"case": row["case"], "stage": row["stage"], **labels, **provenance_of(run)}


def cap_row(row: Row) -> dict[str, Any]:
    """A row of `caps.parquet`."""
    return {"case": row["case"], "status": row["status"], **{k: row.get(k) for k in CAP_COLUMNS}}


def ort_row(row: Row, run: Row, relative: Row) -> dict[str, Any]:
    """A row of `onnxruntime.parquet`; `relative` is a case of the same network, which says its families.

    Options that are not the defaults stand in the id, behind a `;`.
    """
    key, batch, precision, mode, runtime, _ = row["case"].partition(";")[0].split("-")
    return {
        "id": row["case"],
        **{name: relative[name] for name in NETWORK if name != "network"},
        "network": key,
        "batch": int(batch[1:]),
        "precision": precision,
        "mode": mode,
        "runtime": runtime,
        "status": row["status"],
        "reason": row.get("reason", ""),
        "provider": row.get("provider", ""),
        "exporter": row.get("exporter", ""),
        **{name: json.dumps(row.get(name, {}), sort_keys=True) for name in ORT_OPTIONS},
        **{name: row.get(name) for name in (*ORT_FLOATS, *ORT_INTEGERS)},
        **provenance_of(run, ("onnxruntime", *PROVENANCE)),
    }
