"""The pictures of a data set's card, drawn from its tables. Needs the `docs` and `train` extras.

    python datasets/plot.py datasets/h200-v1

Writes `distributions.png` and, where cases were measured more than once, `repeats.png` beside the tables.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dippm.data import DataSet

Row = dict[str, Any]
DPI = 80
SOURCES = ("timm", "transformers", "handwritten", "random")


def _values(rows: Sequence[Row], label: str) -> np.ndarray[Any, Any]:
    return np.array([row[label] for row in rows if row[label] is not None and row[label] > 0])


def _log_edges(values: np.ndarray[Any, Any], count: int = 40) -> np.ndarray[Any, Any]:
    return np.geomspace(values.min() * 0.999, values.max() * 1.001, count + 1)


def _stacked(axes: Axes, rows: Sequence[Row], label: str, by: str, names: Sequence[str]) -> None:
    edges = _log_edges(_values(rows, label))
    groups = [(name, _values([r for r in rows if r[by] == name], label)) for name in names]
    shown = [(name, values) for name, values in groups if len(values)]
    axes.hist([v for _, v in shown], bins=edges, stacked=True, label=[f"{n} ({len(v)})" for n, v in shown])
    axes.set_xscale("log")
    axes.legend(fontsize=7)


def _distributions(rows: Sequence[Row]) -> plt.Figure:
    figure, panels = plt.subplots(3, 2, figsize=(11, 10))
    timed = [row for row in rows if row["timed"]]
    ways = sorted({f"{r['mode']}, {r['runtime']}" for r in rows})
    labelled = [{**r, "way": f"{r['mode']}, {r['runtime']}"} for r in rows]
    drawn: list[tuple[str, str, Callable[[Axes], None]]] = [
        ("Footprint", "MiB", lambda a: _stacked(a, rows, "footprint_mib", "source", SOURCES)),
        ("Activations over weights and inputs", "MiB", lambda a: _stacked(a, labelled, "activations_mib", "way", ways)),
        ("Activations' share of the allocated peak", "", _activations_of(rows)),
        ("Batch", "", lambda a: _stacked(a, rows, "batch", "precision", ("fp32", "tf32", "fp16", "bf16"))),
        ("Device time of a pass", "ms", lambda a: _stacked(a, timed, "device_ms", "source", SOURCES)),
        ("Energy of a pass", "J", lambda a: _stacked(a, timed, "energy_j", "source", SOURCES)),
    ]
    for axes, (title, unit, draw) in zip(panels.flat, drawn, strict=True):
        draw(axes)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(unit)
        axes.set_ylabel("cases")
    figure.tight_layout()
    return figure


def _activations_of(rows: Sequence[Row]) -> Callable[[Axes], None]:
    shares = [row["activations_mib"] / row["allocated_mib"] for row in rows if row["allocated_mib"]]

    def draw(axes: Axes) -> None:
        axes.hist(shares, bins=40)
        axes.axvline(0.5, color="black", linewidth=0.8)

    return draw


def _repeats(cases: Sequence[Row], repeats: Sequence[Row]) -> plt.Figure:
    labels = ("allocated_mib", "reserved_mib", "footprint_mib", "device_ms", "latency_ms", "energy_j")
    figure, axes = plt.subplots(figsize=(8, 4))
    first = {row["id"]: row for row in cases}
    for same_kind, style in ((True, "-"), (False, "--")):
        for color, label in enumerate(labels):
            gaps = [
                100 * abs(row[label] / case[label] - 1)
                for row in repeats
                if (case := first.get(row["case"])) is not None
                and (case["gpu"] == row["gpu"]) == same_kind
                and case[label]
                and row[label]
            ]
            if gaps:
                where = "the same kind of card" if same_kind else "another kind of card"
                share = np.arange(1, len(gaps) + 1) / len(gaps)
                axes.step(np.sort(gaps).clip(1e-3), share, style, color=f"C{color}", label=f"{label}, {where}")
    axes.set_xscale("log")
    axes.set_xlabel("difference from the case's own row, % (0.001: none)")
    axes.set_ylabel("share of repeated cases")
    axes.legend(fontsize=7)
    figure.tight_layout()
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--out", type=Path, help="folder of the pictures; default: the data set's own")
    options = parser.parse_args()
    data, out = DataSet(options.data), options.out or options.data
    cases, repeats = data.rows("cases"), data.rows("repeats")
    out.mkdir(parents=True, exist_ok=True)
    _distributions([row for row in cases if row["status"] == "ok"]).savefig(out / "distributions.png", dpi=DPI)
    if repeats:
        _repeats(cases, repeats).savefig(out / "repeats.png", dpi=DPI)
    return 0


if __name__ == "__main__":
    sys.exit(main())
