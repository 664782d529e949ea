"""Draws the pictures of docs/accuracy.md from docs/accuracy/heldback.csv.gz. Needs the extra `docs`.

PYTHONPATH=predictor python docs/accuracy/plot.py
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from dippm.evaluate.heldback import FIGURES, HeldBackRow, read_rows

HERE = Path(__file__).parent
PANELS = (
    ("allocated_bytes", "allocated memory (MiB)", 2**20),
    ("activations_bytes", "activations (MiB)", 2**20),
    ("reserved_bytes", "reserved memory (MiB)", 2**20),
    ("device_ms", "device time (ms)", 1.0),
    ("energy_j", "energy (J)", 1.0),
    ("latency_ms", "eager latency (ms)", 1.0),
)


def main() -> None:
    """Writes scatter.png and by_family.png beside the table."""
    rows = read_rows(HERE / "heldback.csv.gz")
    scatter(rows, HERE / "scatter.png")
    by_family(rows, HERE / "by_family.png")


def scatter(rows: list[HeldBackRow], path: Path) -> None:
    """Predicted against measured, each case held back with its super-family."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.4))
    for axis, (name, title, unit) in zip(axes.flat, PANELS, strict=True):
        index = FIGURES.index(name)
        pairs = [(r.measured[index] / unit, r.predicted[index] / unit) for r in rows]
        pairs = [(m, p) for m, p in pairs if math.isfinite(m) and m > 0 and p > 0]
        if not pairs:
            axis.set_axis_off()
            continue
        low, high = min(map(min, pairs)), max(map(max, pairs))
        axis.plot([low, high], [low, high], color="0.6", linewidth=0.8)
        axis.scatter(*zip(*pairs, strict=True), s=4, alpha=0.5, linewidths=0)
        axis.set(xscale="log", yscale="log", title=title, xlabel="measured", ylabel="predicted")
        axis.title.set_fontsize(9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def by_family(rows: list[HeldBackRow], path: Path) -> None:
    """Mean absolute percentage error of device time and of allocated memory, by super-family."""
    groups = sorted({r.group for r in rows})
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.22 * len(groups) + 1), sharey=True)
    for axis, (name, title) in zip(axes, (("allocated_bytes", "allocated"), ("device_ms", "device time")), strict=True):
        index = FIGURES.index(name)
        means = []
        for group in groups:
            errors = [
                100 * abs(r.predicted[index] / r.measured[index] - 1)
                for r in rows
                if r.group == group and math.isfinite(r.measured[index])
            ]
            means.append(sum(errors) / len(errors) if errors else 0.0)
        axis.barh(groups, means, color="tab:blue")
        axis.set(xlabel=f"MAPE of {title} (%), held back")
        axis.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
