"""The numbers of a data set's card, computed from its tables: regenerated with the data, never typed by hand."""

from __future__ import annotations

import itertools
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dippm.data.reader import DataSet
from dippm.profiles import NEAR, resolve_device

Row = dict[str, Any]

BEGIN, END = "<!-- generated: begin -->", "<!-- generated: end -->"
LABELS = (
    "weights_mib", "allocated_mib", "activations_mib", "reserved_mib", "footprint_mib", "min_cap_steady_mib",
    "device_ms", "host_ms", "latency_ms", "energy_j",
)  # fmt: skip
FOOTPRINT_EDGES = (0, 750, 1500, 3000, 6000, 12_000, 24_000, 48_000, 96_000, 192_000)
DEVICES = ("A100-SXM4-40GB", "H200")
"""Cards whose MIG profiles the smallest caps are held against."""
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
    data = DataSet(root)
    cases = data.rows("cases")
    good = [row for row in cases if row["status"] == "ok"]
    parts = [
        f"{len(cases)} cases ({len(good)} with labels, {sum(r['timed'] for r in good)} of them timed) of "
        f"{len({r['network'] for r in good})} networks, {len({r['architecture'] for r in good})} architectures, "
        f"{len({r['super_family'] for r in good})} super-families; {data.distinct_calls} distinct calls of the "
        f"framework. {sum(path.stat().st_size for path in root.glob('*.parquet')) / 2**20:.1f} MiB in all.",
        _counts(good),
        _quantiles(good),
        _footprints(good),
        _caps(good),
        _shares(good),
        _families(good),
        _repeats(cases, data.rows("repeats")),
        _anchors(data.rows("anchors")),
        _onnxruntime(data.rows("onnxruntime")),
        _failures(cases),
        _machines([*cases, *data.rows("repeats")]),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _counts(rows: Sequence[Row]) -> str:
    found = [
        (column, ", ".join(f"{name} {count}" for name, count in Counter(row[column] for row in rows).most_common()))
        for column in ("precision", "mode", "runtime", "allocator", "source")
    ]
    return "### Cases by how they are run\n\n" + _table(("column", "cases"), found)


def _quantiles(rows: Sequence[Row]) -> str:
    found = []
    for label in LABELS:
        values = sorted(row[label] for row in rows if row[label] is not None)
        if values:
            picks = [values[min(len(values) - 1, int(q * len(values)))] for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)]
            found.append((f"`{label}`", len(values), *map(_number, picks)))
    header = ("label", "cases", "least", "5 %", "25 %", "median", "75 %", "95 %", "most")
    return "### Distributions\n\n" + _table(header, found)


def _footprints(rows: Sequence[Row]) -> str:
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


def _shares(rows: Sequence[Row]) -> str:
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


def _families(rows: Sequence[Row]) -> str:
    groups: dict[str, list[Row]] = defaultdict(list)
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


def _anchors(anchors: Sequence[Row]) -> str:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in anchors:
        groups[row["case"]].append(row)
    found = []
    for label in REPEATED:
        same = _spread(groups.values(), label, lambda a, b: a["gpu_uuid"] == b["gpu_uuid"])
        other = _spread(groups.values(), label, lambda a, b: a["gpu_uuid"] != b["gpu_uuid"])
        found.append((f"`{label}`", *same, *other))
    if not anchors:
        return ""
    header = ("label", "pairs, same card", "median", "95 %", "pairs, other card", "median", "95 %")
    return (
        "### How well times repeat within and between runs\n\nThe anchor cases open and close each run; differences of "
        "two measurements of one case, as a share of their mean.\n\n" + _table(header, found)
    )  # fmt: skip


def _repeats(cases: Sequence[Row], repeats: Sequence[Row]) -> str:
    first = {row["id"]: row for row in cases}
    pairs: dict[str, list[tuple[Row, Row]]] = defaultdict(list)
    for row in repeats:
        if (case := first.get(row["case"])) is not None and case["status"] == row["status"] == "ok":
            pairs[_apart(case, row)].append((case, row))
    found = []
    for apart, measured in sorted(pairs.items()):
        for label in LABELS:
            gaps = sorted(
                abs(a[label] - b[label]) / ((abs(a[label]) + abs(b[label])) / 2)
                for a, b in measured
                if a[label] and b[label]
            )
            if gaps:
                exact = 100 * sum(gap == 0 for gap in gaps) / len(gaps)
                picks = (statistics.median(gaps), gaps[int(0.95 * (len(gaps) - 1))], gaps[-1])
                found.append((apart, f"`{label}`", len(gaps), f"{exact:.0f} %", *(f"{100 * g:.2f} %" for g in picks)))
    if not found:
        return ""
    header = ("measured again on", "label", "pairs", "equal", "median", "95 %", "most")
    return (
        "### Repeat error of each label\n\nA case's row against the same case measured once more "
        "(`repeats.parquet`): difference as a share of the mean.\n\n" + _table(header, found)
    )  # fmt: skip


def _apart(case: Row, again: Row) -> str:
    if case["gpu"] != again["gpu"]:
        return str(again["gpu"]).removeprefix("NVIDIA ")
    return "another machine" if case["gpu_uuid"] != again["gpu_uuid"] else "the same card"


def _caps(rows: Sequence[Row]) -> str:
    found = [row for row in rows if row["min_cap_steady_mib"] is not None and row["context_mib"] is not None]
    if not found:
        return ""
    usable = {p.usable_mib for device in DEVICES for p in resolve_device(device).profiles}

    def near(needed: Iterable[float]) -> int:
        return sum(any(abs(mib - u) <= NEAR * u for u in usable) for mib in needed)

    uncapped = near(row["footprint_mib"] for row in found)
    capped = near(row["min_cap_steady_mib"] + row["context_mib"] for row in found)
    return (
        f"### Smallest caps\n\n{len(found)} cases have one. Within {NEAR:.0%} of what some MIG profile of "
        f"{' or '.join(DEVICES)} offers are {uncapped} by their footprint, {capped} by the cap and the context."
    )


def _onnxruntime(rows: Sequence[Row]) -> str:
    good = [row for row in rows if row["status"] == "ok"]
    if not rows:
        return ""
    found = []
    for label in ("memory_mib", "context_mib", "min_cap_mib", "latency_ms"):
        values = sorted(row[label] for row in good if row[label] is not None)
        if values:
            picks = [values[min(len(values) - 1, int(q * len(values)))] for q in (0, 0.25, 0.5, 0.75, 1)]
            found.append((f"`{label}`", len(values), *map(_number, picks)))
    header = ("label", "rows", "least", "25 %", "median", "75 %", "most")
    return (
        f"### ONNX Runtime\n\n{len(rows)} rows of {len({r['network'] for r in rows})} networks, {len(good)} with "
        "labels.\n\n" + _table(header, found)
    )


def _spread(
    groups: Iterable[list[Row]], label: str, chosen: Callable[[dict[str, Any], Row], bool]
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


def _failures(cases: Sequence[Row]) -> str:
    failed = [row for row in cases if row["status"] != "ok"]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in failed:
        groups[row["status"], _short(row["reason"])].append(row)
    found = [
        (status, reason, len(rows), _some(sorted({row["architecture"] for row in rows})))
        for (status, reason), rows in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    share = f"{100 * len(failed) / max(1, len(cases)):.1f} % of all cases have no labels.\n\n"
    return "### Without labels\n\n" + share + _table(("status", "reason", "cases", "architectures"), found)


def _short(reason: str) -> str:
    """The reason without what differs from case to case, on one line of a table."""
    plain = re.sub(r"\d+(\.\d+)?", "N", " ".join(reason.split())).replace("|", "/")
    return plain if len(plain) <= 120 else plain[:117] + "..."


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _machines(rows: Sequence[Row]) -> str:
    keys = ("gpu", "gpu_uuid", "driver", "cuda", "torch", "timm", "transformers", "host")
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    found = [(*names, min(r["started"] for r in group), len(group)) for names, group in groups.items()]
    return "### Machines\n\n" + _table((*keys, "first run", "rows"), found)
