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

Cases of which fewer than four fifths of the operator rows belong to nodes of the graph are left out.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dippm.data.reader import DataSet
from dippm.data.rows import LEAST_MATCHED, CaseRow
from dippm.data.splits import FOLDS, PARTS, RANDOM, fold_of, locked, part_of
from dippm.features import node_features, static_features
from dippm.network.lookup import operator_keys
from dippm.vocabulary import INDEX

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch Geometric 2.8 scripts modules when imported
    from torch_geometric.data import Data, InMemoryDataset

TARGETS = (
    "allocated_mib", "activations_mib", "reserved_mib", "footprint_mib", "device_ms", "latency_ms", "energy_j",
)  # fmt: skip
"""Columns of `y`: the paper's three are `footprint_mib`, `latency_ms` and `energy_j`."""
FORM = 1
"""Raised whenever a field changes its meaning."""


class HideOperators:
    """A transform: takes out the labels of operators that are held back, in networks drawn at random."""

    def __init__(self, keys: torch.Tensor) -> None:
        self.keys = keys

    def __call__(self, data: Data) -> Data:
        """The graph with these labels as if they had not been measured."""
        if not bool(data.drawn):
            return data
        hidden = torch.isin(data.key, self.keys)
        data.workspace_bytes = data.workspace_bytes.masked_fill(hidden, -1)
        data.kernel_us = data.kernel_us.masked_fill(hidden, float("nan"))
        return data


class MeasuredModels(InMemoryDataset):  # type: ignore[misc]
    """The cases with labels that have a graph, in the data set's order; `cases[i]` is the row of graph `i`."""

    def __init__(self, folder: Path, processed: Path | None = None) -> None:
        if not (folder / "cases.parquet").is_file():
            raise FileNotFoundError(f"{folder} holds no cases.parquet: give the folder of a data set")
        self._folder, self._processed = folder, processed or folder / "processed"
        super().__init__(str(folder))
        self.load(self.processed_paths[0])

    @property
    def raw_dir(self) -> str:
        """The folder of Parquet files."""
        return str(self._folder)

    @property
    def raw_file_names(self) -> list[str]:
        """The Parquet files."""
        return sorted(path.name for path in self._folder.glob("*.parquet"))

    @property
    def processed_dir(self) -> str:
        """Where graphs are kept once they were put together."""
        return str(self._processed)

    @property
    def processed_file_names(self) -> list[str]:
        """One file, named by what it was made from."""
        sizes = [(name, (self._folder / name).stat().st_size) for name in self.raw_file_names]
        digest = (self._folder / "sequences.parquet").read_bytes() + (self._folder / "cases.parquet").read_bytes()
        body = f"{FORM} {TARGETS} {sizes}".encode() + hashlib.sha256(digest).digest()
        return [f"graphs-{hashlib.sha256(body).hexdigest()[:16]}.pt"]

    @cached_property
    def cases(self) -> list[CaseRow]:
        """The case of each graph, in their order (of the whole data set, whatever part this is)."""
        return [row for row in DataSet(self._folder).cases(joined=True) if (row.matched_share or 0) >= LEAST_MATCHED]

    def process(self) -> None:
        """Puts all graphs together."""
        self.save(list(self._graphs()), self.processed_paths[0])

    def _graphs(self) -> Iterator[Data]:
        data = DataSet(self._folder)
        for index, row in enumerate(self.cases):
            yield _graph(data, row, index)

    def _part(self, chosen: list[int]) -> MeasuredModels:
        part: MeasuredModels = self.index_select(chosen)
        return part

    def random_split(self) -> tuple[MeasuredModels, MeasuredModels, MeasuredModels]:
        """(train, validation, test): 70, 15 and 15 % of the cases, by their ids; locked super-families are in none."""
        parts: dict[str, list[int]] = {name: [] for name, _ in PARTS}
        for index, row in enumerate(self.cases):
            if row.super_family not in locked():
                parts[part_of(row.id)].append(index)
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
        for index, row in enumerate(self.cases):
            if row.super_family not in locked():
                found = fold_of(row.super_family, row.architecture)
                (test if found == fold else train).append(index)
        held_back = self._part(test)
        keys = torch.cat([graph.key for graph in held_back]) if test else torch.zeros(0, dtype=torch.int64)
        seen = self._part(train)
        seen.transform = HideOperators(torch.unique(keys))
        return seen, held_back

    def release(self) -> MeasuredModels:
        """The cases of the locked super-families: look once, for a release."""
        return self._part([i for i, row in enumerate(self.cases) if row.super_family in locked()])


def _graph(data: DataSet, row: CaseRow, index: int) -> Data:
    graph = data.graph(row)
    labels = data.node_labels(row, graph)
    edges = np.array(graph.edges, dtype=np.int64).reshape(-1, 2).T
    targets = [getattr(row, name) for name in TARGETS]
    return Data(
        x=torch.from_numpy(node_features(graph)),
        edge_index=torch.from_numpy(np.ascontiguousarray(edges)),
        kind=torch.tensor([INDEX.get(o.kind, 0) for o in graph.operators], dtype=torch.int64),
        s=torch.from_numpy(static_features(graph).as_array()).reshape(1, -1),
        y=torch.tensor([[float("nan") if value is None else value for value in targets]], dtype=torch.float32),
        workspace_bytes=torch.from_numpy(labels.workspace_bytes),
        kernel_us=torch.from_numpy(labels.kernel_us),
        key=torch.from_numpy(operator_keys(graph, row.case).view(np.int64)),
        index=torch.tensor([index]),
        drawn=torch.tensor([row.super_family == RANDOM]),
    )
