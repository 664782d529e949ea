"""The training corpus: featurised cases and their labels as flat arrays, one file to carry to a GPU.

Operators repeat (a block twelve times, a network at six batch sizes in two precisions), so node features are kept once
for each distinct row. The corpus needs neither graphs nor Parquet to be trained on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dippm.case import Case
from dippm.graph import ModelGraph
from dippm.network import workspace
from dippm.network.featurizer import featurize
from dippm.network.lookup import operator_keys

UNMEASURED = -1


@dataclass(frozen=True, slots=True)
class OperatorLabels:
    """What was measured of each operator of one case, in order; `UNMEASURED` or NaN where it was not."""

    workspace_bytes: npt.NDArray[np.int64]
    kernel_us: npt.NDArray[np.float64]
    kernels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Example:
    """One measured case, joined with its graph (cast to the case's precision)."""

    id: str
    architecture: str
    group: str
    """Super-family: what a split must not divide."""
    graph: ModelGraph
    case: Case
    operators: OperatorLabels


@dataclass(frozen=True)
class Corpus:
    """Arrays over all cases (g of them), their nodes (n) and edges (e)."""

    rows: npt.NDArray[np.float32]
    """Distinct node features, [r, node columns]."""
    row_of: npt.NDArray[np.int32]
    """[n]."""
    kinds: npt.NDArray[np.int16]
    edges: npt.NDArray[np.int32]
    """[2, e], node numbers counted within their own graph."""
    node_start: npt.NDArray[np.int64]
    """[g + 1]."""
    edge_start: npt.NDArray[np.int64]
    """[g + 1]."""
    statics: npt.NDArray[np.float32]
    """[g, static columns]."""
    log_roofline: npt.NDArray[np.float32]
    """[n], log us."""
    reference_bytes: npt.NDArray[np.float32]
    """[n], what a workspace is large or small against."""
    is_view: npt.NDArray[np.bool_]
    kernel_us: npt.NDArray[np.float32]
    """[n], NaN where it was not measured."""
    kernels: npt.NDArray[np.int16]
    workspace_class: npt.NDArray[np.int8]
    """[n], `UNMEASURED` where it was not."""
    workspace_log_ratio: npt.NDArray[np.float32]
    keys: npt.NDArray[np.uint64]
    """[n], keys of `dippm.network.lookup`."""
    workspace_bytes: npt.NDArray[np.int64]
    ids: npt.NDArray[np.str_]
    architectures: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.statics)

    def nodes_of(self, graph: int) -> slice:
        """Nodes of one case."""
        return slice(int(self.node_start[graph]), int(self.node_start[graph + 1]))

    def save(self, path: Path) -> None:
        """Write all arrays to one compressed file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Inverse of `save`."""
        with np.load(path, allow_pickle=False) as file:
            return cls(**{f.name: file[f.name] for f in fields(cls)})

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Corpus:
        """Featurise measured cases."""
        return _concatenate([_case_arrays(example) for example in examples])


@dataclass(frozen=True)
class _CaseArrays:
    example: Example
    nodes: npt.NDArray[np.float32]
    kinds: npt.NDArray[np.int64]
    edges: npt.NDArray[np.int64]
    statics: npt.NDArray[np.float32]
    log_roofline: npt.NDArray[np.float64]
    reference: list[int]
    views: list[bool]
    classes: list[int]
    ratios: list[float]
    keys: npt.NDArray[np.uint64]


def _case_arrays(example: Example) -> _CaseArrays:
    features = featurize(example.graph, example.case)
    labels = [
        workspace.classify(work, int(measured)) if measured >= 0 else workspace.WorkspaceLabel(UNMEASURED, 0.0)
        for work, measured in zip(features.work, example.operators.workspace_bytes, strict=True)
    ]
    return _CaseArrays(
        example=example,
        nodes=features.nodes,
        kinds=features.kinds,
        edges=features.edges,
        statics=features.statics,
        log_roofline=features.log_roofline,
        reference=[workspace.reference_bytes(w) for w in features.work],
        views=[w.is_view for w in features.work],
        classes=[label.index for label in labels],
        ratios=[label.log_ratio for label in labels],
        keys=operator_keys(example.graph, example.case),
    )


def _concatenate(parts: Sequence[_CaseArrays]) -> Corpus:
    rows, row_of = np.unique(np.concatenate([p.nodes for p in parts]), axis=0, return_inverse=True)
    labels = [p.example.operators for p in parts]
    return Corpus(
        rows=rows,
        row_of=row_of.reshape(-1).astype(np.int32),
        kinds=np.concatenate([p.kinds for p in parts]).astype(np.int16),
        edges=np.concatenate([p.edges for p in parts], axis=1).astype(np.int32),
        node_start=_starts(len(p.nodes) for p in parts),
        edge_start=_starts(p.edges.shape[1] for p in parts),
        statics=np.stack([p.statics for p in parts]),
        log_roofline=np.concatenate([p.log_roofline for p in parts]).astype(np.float32),
        reference_bytes=np.array([b for p in parts for b in p.reference], dtype=np.float32),
        is_view=np.array([v for p in parts for v in p.views], dtype=np.bool_),
        kernel_us=np.concatenate([o.kernel_us for o in labels]).astype(np.float32),
        kernels=np.concatenate([o.kernels for o in labels]).astype(np.int16),
        workspace_class=np.array([c for p in parts for c in p.classes], dtype=np.int8),
        workspace_log_ratio=np.array([r for p in parts for r in p.ratios], dtype=np.float32),
        keys=np.concatenate([p.keys for p in parts]),
        workspace_bytes=np.concatenate([o.workspace_bytes for o in labels]).astype(np.int64),
        ids=np.array([p.example.id for p in parts]),
        architectures=np.array([p.example.architecture for p in parts]),
        groups=np.array([p.example.group for p in parts]),
    )


def _starts(lengths: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int64)
