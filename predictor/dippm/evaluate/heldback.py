"""Held-back predictions as a file: one line a case, what was measured beside what was predicted."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO

from dippm.errors import ModelFormatError
from dippm.evaluate.errors import TARGETS, ErrorRow, error_row

FIGURES: tuple[str, ...] = tuple(name for name, _ in TARGETS)


@dataclass(frozen=True, slots=True)
class HeldBackRow:
    """One case. Bytes, ms, J; NaN where it was not measured."""

    id: str
    architecture: str
    group: str
    """Super-family: never divided between training and held back."""
    fold: int
    batch: int
    precision: str
    mode: str
    runtime: str
    allocator: str
    operators: int
    known_share: float
    """Share of its operators that were measured in other architectures too, and so looked up."""
    formula_bytes: float
    """Weights and inputs and three times the largest output."""
    resident_bytes: float
    """Weights and inputs, as measured."""
    context_bytes: float
    """Predicted: the median of the other folds."""
    measured: tuple[float, ...]
    """By `FIGURES`."""
    predicted: tuple[float, ...]
    """By `FIGURES`, graph level included."""
    composed: tuple[float, ...]
    """By `FIGURES`, of the operators alone."""

    def formula(self, figure: str) -> float:
        """What the plain formula says of a memory figure, bytes."""
        return {
            "activations_bytes": self.formula_bytes - self.resident_bytes,
            "footprint_bytes": self.formula_bytes + self.context_bytes,
        }.get(figure, self.formula_bytes)


def write_rows(path: Path, rows: Iterable[HeldBackRow]) -> None:
    """Write rows as CSV (compressed where the name ends in `.gz`), figures to five digits, nothing where there is none.

    Their columns are named `measured:...` and so on.
    """
    plain = [f.name for f in fields(HeldBackRow) if f.name not in ("measured", "predicted", "composed")]
    groups = ("measured", "predicted", "composed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _open(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*plain, *(f"{group}:{figure}" for group in groups for figure in FIGURES)])
        for row in rows:
            body = asdict(row)
            figures = [_digits(value, 5) for group in groups for value in body[group]]
            writer.writerow([_digits(body[n], 9) if isinstance(body[n], float) else body[n] for n in plain] + figures)


def _open(path: Path, mode: str) -> IO[str]:
    if path.suffix != ".gz":
        return path.open(mode, newline="")
    if mode == "r":
        return io.TextIOWrapper(gzip.GzipFile(path, "rb"), newline="")
    # Without a time in it: the same rows are the same file.
    return io.TextIOWrapper(gzip.GzipFile(path, "wb", mtime=0), newline="")


def _digits(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}g}"


def _figure(text: str) -> float:
    return float(text) if text else math.nan


def read_rows(path: Path) -> list[HeldBackRow]:
    """Inverse of `write_rows`. Raises ModelFormatError where the file is another one."""
    with _open(path, "r") as file:
        try:
            return [_row(line) for line in csv.DictReader(file)]
        except (KeyError, ValueError) as error:
            raise ModelFormatError(f"{path} holds no held-back rows, as dippm train writes them") from error


def _row(line: dict[str, str]) -> HeldBackRow:
    def figures(group: str) -> tuple[float, ...]:
        return tuple(_figure(line[f"{group}:{figure}"]) for figure in FIGURES)

    return HeldBackRow(
        id=line["id"],
        architecture=line["architecture"],
        group=line["group"],
        fold=int(line["fold"]),
        batch=int(line["batch"]),
        precision=line["precision"],
        mode=line["mode"],
        runtime=line["runtime"],
        allocator=line["allocator"],
        operators=int(line["operators"]),
        known_share=_figure(line["known_share"]),
        formula_bytes=_figure(line["formula_bytes"]),
        resident_bytes=_figure(line["resident_bytes"]),
        context_bytes=_figure(line["context_bytes"]),
        measured=figures("measured"),
        predicted=figures("predicted"),
        composed=figures("composed"),
    )


def error_table(rows: Sequence[HeldBackRow], *, composed: bool = False) -> list[ErrorRow]:
    """Errors by target; `composed` leaves the graph level out."""
    table = []
    for index, (figure, name) in enumerate(TARGETS):
        row = error_row(
            figure,
            name,
            [r.measured[index] for r in rows],
            [(r.composed if composed else r.predicted)[index] for r in rows],
            [r.formula(figure) for r in rows],
        )
        if row is not None:
            table.append(row)
    return table


def heavy(rows: Iterable[HeldBackRow]) -> list[HeldBackRow]:
    """Cases whose activations are over a tenth of the peak: where a prediction of memory can be wrong."""
    peak, activations = FIGURES.index("allocated_bytes"), FIGURES.index("activations_bytes")
    return [r for r in rows if r.measured[activations] > 0.1 * r.measured[peak]]


def measured_footprints(rows: Iterable[HeldBackRow]) -> list[tuple[float, float]]:
    """(measured, predicted) footprint in MiB where it was measured."""
    index = FIGURES.index("footprint_bytes")
    pairs = [(r.measured[index] / 2**20, r.predicted[index] / 2**20) for r in rows]
    return [(m, p) for m, p in pairs if math.isfinite(m)]
