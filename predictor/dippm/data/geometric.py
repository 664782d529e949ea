"""The data set as torch-geometric has it: one `Data` a measured case, and the fixed splits of `dippm.data.splits`.

Each graph carries

    x                [n, 32]  the paper's features of each operator (`dippm.features`, Algorithm 1)
    edge_index       [2, e]   data flow, producer to consumer
    kind             [n]      index into `dippm.vocabulary.KINDS`
    s                [1, 5]   equation 1: multiply-accumulates, batch, convolutions, dense layers, ReLUs
    y                [1, 7]   `TARGETS`; NaN where it was not measured
    workspace_bytes  [n]      measured workspace of each operator, -1 where it was not measured
    kernel_us        [n]      measured kernel time, NaN where it was not measured
    key              [n]      the operator's key (`dippm.network.lookup`): equal for equal signature, precision and mode
    index            [1]      the case's place in `cases`, whose row says how it was run

Cases of which fewer than four fifths of the operator rows belong to nodes of the graph are left out. A graph is put
together when it is first asked for, and kept.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dippm.data.footprints import evenly_spread
from dippm.data.kept_arrays import KeptArrays
from dippm.data.reader import DataSet
from dippm.data.rows import LEAST_MATCHED, CaseRow
from dippm.data.splits import FOLDS, PARTS, RANDOM, fold_of, locked, part_of
from dippm.features import node_features, static_features
from dippm.network.lookup import operator_keys
from dippm.vocabulary import INDEX

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch Geometric 2.8 scripts modules when imported
    from torch_geometric.data import Data, Dataset

TARGETS = (
    "allocated_mib", "activations_mib", "reserved_mib", "footprint_mib", "device_ms", "latency_ms", "energy_j",
)  # fmt: skip
"""Columns of `y`: the paper's three are `footprint_mib`, `latency_ms` and `energy_j`."""
FORM = 1
"""Raised whenever a field changes its meaning."""


class HideOperators:
    """A transform: takes out the labels of operators that are held back, in networks drawn at random."""

    def __init__(self, held_back: MeasuredModels) -> None:
        self._held_back = held_back

    @cached_property
    def keys(self) -> torch.Tensor:
        """Of the operators of all graphs that are held back, sorted. The first time these are put together for it."""
        keys = [graph.key for graph in self._held_back]
        return torch.unique(torch.cat(keys)) if keys else torch.zeros(0, dtype=torch.int64)

    def __call__(self, data: Data) -> Data:
        """The graph with these labels as if they had not been measured."""
        if not bool(data.drawn):
            return data
        hidden = torch.isin(data.key, self.keys)
        data.workspace_bytes = data.workspace_bytes.masked_fill(hidden, -1)
        data.kernel_us = data.kernel_us.masked_fill(hidden, float("nan"))
        return data


class MeasuredModels(Dataset):  # type: ignore[misc]
    """The cases with labels that have a graph, in the data set's order; `cases[i]` is the row of graph `i`."""

    def __init__(self, folder: Path, processed: Path | None = None) -> None:
        if not (folder / "cases.parquet").is_file():
            raise FileNotFoundError(f"{folder} holds no cases.parquet: give the folder of a data set")
        self._data = DataSet(folder)
        self._kept = KeptArrays((processed or folder / "processed") / f"graphs-{_made_from(folder)}.sqlite")
        super().__init__()

    @cached_property
    def cases(self) -> list[CaseRow]:
        """The case of each graph, in their order (of the whole data set, whatever part this is)."""
        return [row for row in self._data.cases(joined=True) if (row.matched_share or 0) >= LEAST_MATCHED]

    def len(self) -> int:
        """Graphs of the whole data set; `len()` of a part counts the part's."""
        return len(self.cases)

    def get(self, index: int) -> Data:
        """Graph `index` of the whole data set, without a transform."""
        arrays = self._kept.get(index)
        if arrays is None:
            arrays = _arrays(self._data, self.cases[index], index)
            self._kept.put(index, arrays)
        return Data(**{name: torch.from_numpy(array) for name, array in arrays.items()})

    def _part(self, chosen: list[int]) -> MeasuredModels:
        part: MeasuredModels = self.index_select(chosen)
        return part

    def _places(self) -> Iterator[tuple[int, CaseRow]]:
        """The cases of this part, each with its place in it."""
        return ((place, self.cases[index]) for place, index in enumerate(self.indices()))

    def random_split(self) -> tuple[MeasuredModels, MeasuredModels, MeasuredModels]:
        """(train, validation, test): 70, 15 and 15 % of the cases, by their ids; locked super-families are in none."""
        parts: dict[str, list[int]] = {name: [] for name, _ in PARTS}
        for place, row in self._places():
            if row.super_family not in locked():
                parts[part_of(row.id)].append(place)
        train, validation, test = (self._part(parts[name]) for name, _ in PARTS)
        return train, validation, test

    def leave_families_out(self, fold: int) -> tuple[MeasuredModels, MeasuredModels]:
        """(train, test) of one of five folds: no super-family stands on both sides, the locked ones on neither.

        In the training part, operators of random networks that some test case has too are without labels.
        Raises ValueError for another fold.
        """
        if fold not in range(FOLDS):
            raise ValueError(f"fold {fold}: there are folds 0 to {FOLDS - 1}")
        train: list[int] = []
        test: list[int] = []
        for place, row in self._places():
            if row.super_family not in locked():
                found = fold_of(row.super_family, row.architecture)
                (test if found == fold else train).append(place)
        held_back = self._part(test)
        seen = self._part(train)
        seen.transform = HideOperators(held_back)
        return seen, held_back

    def evenly_spread(self, each: int = 1_000) -> MeasuredModels:
        """At most `each` cases of every doubling of the footprint between 750 and 120,000 MiB, none of a locked
        super-family."""
        places = {row.id: (place, row) for place, row in self._places() if row.super_family not in locked()}
        found = evenly_spread(((name, row.footprint_mib or 0.0) for name, (_, row) in places.items()), each)
        return self._part([place for name, (place, _) in places.items() if name in found])

    def release(self) -> MeasuredModels:
        """The cases of the locked super-families: look once, for a release."""
        return self._part([place for place, row in self._places() if row.super_family in locked()])


def _made_from(folder: Path) -> str:
    """Names what the graphs are made from."""
    sizes = [(path.name, path.stat().st_size) for path in sorted(folder.glob("*.parquet"))]
    digest = (folder / "sequences.parquet").read_bytes() + (folder / "cases.parquet").read_bytes()
    body = f"{FORM} {TARGETS} {sizes}".encode() + hashlib.sha256(digest).digest()
    return hashlib.sha256(body).hexdigest()[:16]


def _arrays(data: DataSet, row: CaseRow, index: int) -> dict[str, np.ndarray]:
    """The fields of a case's graph."""
    graph = data.graph(row)
    labels = data.node_labels(row, graph)
    targets = [getattr(row, name) for name in TARGETS]
    return {
        "x": node_features(graph),
        "edge_index": np.ascontiguousarray(np.array(graph.edges, dtype=np.int64).reshape(-1, 2).T),
        "kind": np.array([INDEX.get(o.kind, 0) for o in graph.operators], dtype=np.int64),
        "s": static_features(graph).as_array().reshape(1, -1),
        "y": np.array([[np.nan if value is None else value for value in targets]], dtype=np.float32),
        "workspace_bytes": labels.workspace_bytes,
        "kernel_us": labels.kernel_us,
        "key": operator_keys(graph, row.case).view(np.int64),
        "index": np.array([index]),
        "drawn": np.array([row.super_family == RANDOM]),
    }
