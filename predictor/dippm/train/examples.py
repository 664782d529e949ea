"""From the data set on disk to the cases that training and evaluation see."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

import numpy as np

from dippm.data import CaseRow, DataSet, NodeLabels
from dippm.data.rows import LEAST_MATCHED
from dippm.data.splits import locked
from dippm.errors import ArtifactUnreachable
from dippm.graph import ModelGraph
from dippm.network.workload import workloads
from dippm.train.labels import UNMEASURED, CaseLabels, MeasuredCase, OperatorLabels

MIB = 2**20


def read_cases(
    folder: Path, *, release: bool = False, seen: Collection[str] = (), sample: int | None = None
) -> list[MeasuredCase]:
    """The measured cases of a data set folder that have a graph, in its order; locked super-families are left out.

    With `release`, the locked ones alone. Architectures that were `seen` are left out; of the rest, `sample` cases are
    drawn by a fixed seed. Raises ArtifactUnreachable where the folder holds no data set.
    """
    if not (folder / "cases.parquet").is_file():
        raise ArtifactUnreachable(f"{folder} holds no cases.parquet: give the folder that dippm graph wrote")
    data, hidden = opened(folder), locked()
    rows = [
        row
        for row in data.cases(joined=True)
        if (row.super_family in hidden) == release
        and row.architecture not in seen
        and row.matched_share is not None
        and row.matched_share >= LEAST_MATCHED
        and row.allocated_mib is not None
    ]
    if sample is not None and sample < len(rows):
        drawn = sorted(Random(f"sample {sample}").sample(range(len(rows)), sample))
        rows = [rows[index] for index in drawn]
    return [
        MeasuredCase(
            row.id, row.architecture, row.super_family, row.network, row.case, case_labels(row), StoredCase(folder, row)
        )
        for row in rows
    ]


@lru_cache(maxsize=2)
def opened(folder: Path) -> DataSet:
    """A data set, which a process opens once."""
    return DataSet(folder)


@dataclass(frozen=True, slots=True)
class StoredCase:
    """A case in a data set folder, which each process opens once."""

    folder: Path
    row: CaseRow

    @property
    def mark(self) -> str:
        """The row and the digest of its graph."""
        return f"{self.row} {opened(self.folder).graph_digest(self.row)}"

    def graph(self) -> ModelGraph:
        """The stored graph, at the case's batch and in its precision."""
        return opened(self.folder).graph(self.row)

    def operators(self, graph: ModelGraph) -> OperatorLabels:
        """The measured rows, matched with the graph's operators."""
        labels = opened(self.folder).node_labels(self.row, graph)
        return operator_labels(graph, labels, timed=self.row.timed)


def operator_labels(graph: ModelGraph, labels: NodeLabels, *, timed: bool) -> OperatorLabels:
    """Labels of each operator; views that no row was matched with are known to cost nothing."""
    views = np.array([w.is_view for w in workloads(graph)], dtype=np.bool_)
    free = views & ~labels.measured
    kernel_us = labels.kernel_us.astype(np.float64)
    kernels = labels.kernels.astype(np.int64)
    if timed:
        kernel_us[free], kernels[free] = 0.0, 0
    workspace = [
        UNMEASURED if not measured else _workspace(graph, index, events, plain)
        for index, (measured, events, plain) in enumerate(
            zip(labels.measured.tolist(), labels.events, labels.workspace_bytes.tolist(), strict=True)
        )
    ]
    workspaces = np.array(workspace, dtype=np.int64)
    workspaces[free] = 0
    return OperatorLabels(workspaces, kernel_us, np.where(kernels < 0, 0, kernels))


def _workspace(graph: ModelGraph, index: int, events: tuple[int, ...] | None, plain: int) -> int:
    """Workspace as the replay wants it: what the peak inside is above what stays.

    Told by the order of allocations where it was recorded: their sizes are as asked for, while the counters hold whole
    blocks of the allocator (up to 1 MiB more).
    """
    return within(events) if events else max(0, plain)


def within(events: Sequence[int]) -> int:
    """What allocations and frees inside a call need beside what they leave, bytes as asked for."""
    level = peak = 0
    for size in events:
        level += size
        peak = max(peak, level)
    return max(0, peak - max(0, level))


def case_labels(row: CaseRow) -> CaseLabels:
    """Labels of the whole case, bytes, ms and J."""
    return CaseLabels(
        weights_bytes=_bytes(row.weights_mib) - _bytes(row.inputs_mib),
        inputs_bytes=_bytes(row.inputs_mib),
        allocated_bytes=_bytes(row.allocated_mib),
        reserved_bytes=_bytes(row.reserved_mib),
        min_cap_bytes=_bytes(row.min_cap_steady_mib),
        context_bytes=_bytes(row.context_mib),
        device_ms=_number(row.device_ms),
        host_ms=_number(row.host_ms),
        latency_ms=_number(row.latency_ms),
        energy_j=_number(row.energy_j),
    )


def _bytes(mib: float | None) -> float:
    return math.nan if mib is None else mib * MIB


def _number(value: float | None) -> float:
    return math.nan if value is None or value <= 0 else value


def data_card(folder: Path) -> dict[str, object]:
    """What a bundle says that it was trained on: the folder's name, the measured card, how many rows."""
    rows = opened(folder).cases()
    cards = sorted({row.gpu for row in rows})
    return {"data": folder.name, "gpus": cards, "rows": len(rows), "device": _product(cards)}


def _product(cards: list[str]) -> str:
    """The product that most labels are of, as GPU Feature Discovery spells it (`NVIDIA H200` is `H200`)."""
    return cards[0].removeprefix("NVIDIA ").replace(" ", "-") if cards else "H200"
