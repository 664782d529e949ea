"""The numbers of a data set's card, computed from its tables: regenerated with the data, never typed by hand."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
LABELS = (
    "weights_mib", "allocated_mib", "activations_mib", "reserved_mib", "footprint_mib", "min_cap_steady_mib",
    "device_ms", "host_ms", "latency_ms", "energy_j",
)  # fmt: skip
FOOTPRINT_EDGES = (0, 1000, 2000, 5000, 10_000, 20_000, 40_000, 100_000)
REPEATED = ("device_ms", "host_ms", "latency_ms", "energy_j")


def write_card(root: Path) -> None:
    """Puts the generated part into `root/README.md` between its markers (or makes a README of that part alone)."""
    path = root / "README.md"
    body = f"{BEGIN}\n{render(root)}\n{END}"
    if path.exists() and BEGIN in (text := path.read_text()):
        head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
        path.write_text(head + body + tail)
    else:
        path.write_text(f"# Measured cases\n\n{body}\n")


def render(root: Path) -> str:
    """The generated part: counts, distributions, repeat errors, failures."""
    import pyarrow.parquet as parquet

    cases: list[dict[str, Any]] = parquet.read_table(root / "cases.parquet").to_pylist()
    anchors: list[dict[str, Any]] = parquet.read_table(root / "anchors.parquet").to_pylist()
    calls = parquet.read_metadata(root / "calls.parquet").num_rows
    good = [row for row in cases if row["status"] == "ok"]
    parts = [
        f"{len(cases)} cases ({len(good)} with labels, {sum(r['timed'] for r in good)} of them timed) of "
        f"{len({r['network'] for r in good})} networks, {len({r['architecture'] for r in good})} architectures, "
        f"{len({r['super_family'] for r in good})} super-families; {calls} distinct calls of the framework.",
        _counts(good),
        _quantiles(good),
        _footprints(good),
        _shares(good),
        _families(good),
        _repeats(anchors),
        _failures(cases),
        _machines(cases),
    ]
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _counts(rows: Sequence[dict[str, Any]]) -> str:
    found = [
        (column, ", ".join(f"{name} {count}" for name, count in Counter(row[column] for row in rows).most_common()))
        for column in ("precision", "mode", "runtime", "allocator", "source")
    ]
    return "### Cases by how they are run\n\n" + _table(("column", "cases"), found)


def _quantiles(rows: Sequence[dict[str, Any]]) -> str:
    found = []
    for label in LABELS:
        values = sorted(row[label] for row in rows if row[label] is not None)
        if values:
            picks = [values[min(len(values) - 1, int(q * len(values)))] for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)]
            found.append((f"`{label}`", len(values), *map(_number, picks)))
    header = ("label", "cases", "least", "5 %", "25 %", "median", "75 %", "95 %", "most")
    return "### Distributions\n\n" + _table(header, found)


def _footprints(rows: Sequence[dict[str, Any]]) -> str:
    values = [row["footprint_mib"] for row in rows if row["footprint_mib"] is not None]
    most = max(1, len(values))
    found = []
    for low, high in itertools.pairwise(FOOTPRINT_EDGES):
        count = sum(low <= v < high for v in values)
        found.append((f"{low:,} - {high:,}", count, "█" * round(60 * count / most)))
    half = sum(r["activations_mib"] > r["allocated_mib"] / 2 for r in rows if r["allocated_mib"])
    return (
        "### Footprint, MiB\n\n" + _table(("from - to", "cases", ""), found)
        + "\n\nActivations are more than half of the allocated peak in "
        + f"{100 * half / max(1, len(rows)):.0f} % of cases."
    )  # fmt: skip


def _shares(rows: Sequence[dict[str, Any]]) -> str:
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["matched_share"] is not None:
            groups[row["mode"], row["runtime"]].append(row["matched_share"])
    found = [
        (
            mode,
            runtime,
            len(v),
            f"{100 * statistics.fmean(v):.2f} %",
            f"{100 * sum(s >= 0.98 for s in v) / len(v):.1f} %",
        )
        for (mode, runtime), v in sorted(groups.items())
    ]
    header = ("mode", "runtime", "cases", "rows matched (mean)", "cases with 98 % or more")
    return "### Operator rows matched with nodes of the graph\n\n" + _table(header, found)


def _families(rows: Sequence[dict[str, Any]]) -> str:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["super_family"]].append(row)
    found = [
        (
            name,
            ", ".join(sorted({r["family"] for r in group})),
            len({r["architecture"] for r in group}),
            len(group),
            sum(r["timed"] for r in group),
        )
        for name, group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]  # fmt: skip
    return "### Families\n\n" + _table(("super-family", "families", "architectures", "cases", "timed"), found)


def _repeats(anchors: Sequence[dict[str, Any]]) -> str:
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in anchors:
        groups[row["case"]].append(row)
    found = []
    for label in REPEATED:
        same = _spread(groups.values(), label, lambda a, b: a["gpu_uuid"] == b["gpu_uuid"])
        other = _spread(groups.values(), label, lambda a, b: a["gpu_uuid"] != b["gpu_uuid"])
        found.append((f"`{label}`", *same, *other))
    header = ("label", "pairs, same card", "median", "95 %", "pairs, other card", "median", "95 %")
    return (
        "### How well labels repeat\n\nThe anchor cases open and close each run; differences of two measurements of "
        "one case, as a share of their mean.\n\n" + _table(header, found)
    )  # fmt: skip


def _spread(
    groups: Iterable[list[dict[str, Any]]], label: str, chosen: Callable[[dict[str, Any], dict[str, Any]], bool]
) -> tuple[int, str, str]:
    gaps = sorted(
        abs(a[label] - b[label]) / ((a[label] + b[label]) / 2)
        for group in groups
        for i, a in enumerate(group)
        for b in group[i + 1 :]
        if a[label] and b[label] and chosen(a, b)
    )
    if not gaps:
        return 0, "", ""
    return len(gaps), f"{100 * statistics.median(gaps):.1f} %", f"{100 * gaps[int(0.95 * (len(gaps) - 1))]:.1f} %"


def _failures(cases: Sequence[dict[str, Any]]) -> str:
    failed = [row for row in cases if row["status"] != "ok"]
    found = [(r["architecture"], r["id"].partition("-")[2], r["status"], r["reason"]) for r in failed]
    share = f"{100 * len(failed) / max(1, len(cases)):.1f} % of all cases have no labels.\n\n"
    return "### Without labels\n\n" + share + _table(("architecture", "case", "status", "reason"), found)


def _machines(cases: Sequence[dict[str, Any]]) -> str:
    keys = ("gpu", "gpu_uuid", "driver", "cuda", "torch", "timm", "transformers", "host", "started")
    counts = Counter(tuple(row[k] for k in keys) for row in cases)
    return "### Machines\n\n" + _table((*keys, "cases"), [(*names, count) for names, count in counts.items()])
