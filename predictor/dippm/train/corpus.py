"""The training corpus: featurised cases and their labels as flat arrays, one file to carry to a GPU.

Operators repeat (a block twelve times, a network at six batch sizes in two precisions), so node features and keys are
kept once for each distinct one. The corpus needs neither graphs nor Parquet to be trained on.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dippm.evaluate.errors import formula_bytes
from dippm.network import workspace
from dippm.network.costs import energy_terms
from dippm.network.featurizer import NODE_COLUMNS, featurize
from dippm.network.lookup import operator_keys
from dippm.train.labels import UNMEASURED, MeasuredCase

__all__ = ["UNMEASURED", "Corpus"]

COMPRESSION = 2
"""Of zlib: half a gigabyte in a few seconds."""
_ROOFLINE, _VIEW = NODE_COLUMNS.index("log_roofline_us"), NODE_COLUMNS.index("is_view")


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
    reference_bytes: npt.NDArray[np.float32]
    """[n], what a workspace is large or small against."""
    kernel_us: npt.NDArray[np.float32]
    """[n], NaN where it was not measured."""
    kernels: npt.NDArray[np.int16]
    workspace_class: npt.NDArray[np.int8]
    """[n], `UNMEASURED` where it was not."""
    workspace_log_ratio: npt.NDArray[np.float32]
    distinct_keys: npt.NDArray[np.uint64]
    """Keys of `dippm.network.lookup`, each once."""
    key_of: npt.NDArray[np.int32]
    """[n]."""
    workspace_bytes: npt.NDArray[np.int64]
    energy_terms: npt.NDArray[np.float64]
    """[g, terms of `dippm.network.costs.ENERGY_COLUMNS` but the last, the kernels' seconds]."""
    formula_bytes: npt.NDArray[np.float64]
    """[g], weights and inputs and three times the largest output."""
    ids: npt.NDArray[np.str_]
    architectures: npt.NDArray[np.str_]
    groups: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.statics)

    @cached_property
    def log_roofline(self) -> npt.NDArray[np.float32]:
        """[n], log us."""
        return self.rows[:, _ROOFLINE][self.row_of]

    @cached_property
    def is_view(self) -> npt.NDArray[np.bool_]:
        """[n]."""
        return (self.rows[:, _VIEW] > 0)[self.row_of]

    @cached_property
    def keys(self) -> npt.NDArray[np.uint64]:
        """[n]."""
        return self.distinct_keys[self.key_of]

    def nodes_of(self, graph: int) -> slice:
        """Nodes of one case."""
        return slice(int(self.node_start[graph]), int(self.node_start[graph + 1]))

    def save(self, path: Path) -> None:
        """Write all arrays to one compressed file; rows column by column, which takes 40 % of the bytes."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=COMPRESSION) as file:
            for name, array in {**arrays, "rows": np.ascontiguousarray(self.rows.T)}.items():
                with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """Inverse of `save`."""
        with np.load(path, allow_pickle=False) as file:
            arrays = {f.name: file[f.name] for f in fields(cls)}
        return cls(**{**arrays, "rows": np.ascontiguousarray(arrays["rows"].T)})

    @classmethod
    def of(cls, cases: Iterable[MeasuredCase]) -> Corpus:
        """Featurise measured cases, one after the other."""
        return cls.join([_one_case(case) for case in cases])

    @classmethod
    def join(cls, parts: Sequence[Corpus]) -> Corpus:
        """The cases of all parts, in order; what is equal between parts is kept once.

        Rows are told apart by a hash of 64 bits: at a million distinct ones two share one with a chance of 3e-8.
        """
        rows = np.concatenate([p.rows for p in parts])
        _, first, row_of = np.unique(_hashes(rows), return_index=True, return_inverse=True)
        order = np.lexsort(rows[first].T[::-1])
        first, row_of = first[order], np.argsort(order)[row_of.reshape(-1)]
        keys, key_of = np.unique(np.concatenate([p.distinct_keys for p in parts]), return_inverse=True)
        given = {
            f.name: [getattr(p, f.name) for p in parts]
            for f in fields(cls)
            if f.name not in ("rows", "row_of", "distinct_keys", "key_of", "node_start", "edge_start")
        }
        return cls(
            rows=rows[first],
            row_of=_renumbered(row_of, [p.row_of for p in parts], [len(p.rows) for p in parts]),
            distinct_keys=keys,
            key_of=_renumbered(key_of, [p.key_of for p in parts], [len(p.distinct_keys) for p in parts]),
            node_start=_starts(n for p in parts for n in np.diff(p.node_start).tolist()),
            edge_start=_starts(n for p in parts for n in np.diff(p.edge_start).tolist()),
            **{name: np.concatenate(arrays, axis=int(name == "edges")) for name, arrays in given.items()},
        )


def _one_case(measured: MeasuredCase) -> Corpus:
    graph = measured.source.graph()
    features, operators = featurize(graph, measured.case), measured.source.operators(graph)
    labels = [
        workspace.classify(work, int(found)) if found >= 0 else workspace.WorkspaceLabel(UNMEASURED, 0.0)
        for work, found in zip(features.work, operators.workspace_bytes, strict=True)
    ]
    rows, row_of = np.unique(features.nodes, axis=0, return_inverse=True)
    keys, key_of = np.unique(operator_keys(graph, measured.case), return_inverse=True)
    terms = energy_terms(features.work, measured.case.precision, np.zeros(len(features.work)))
    return Corpus(
        rows=rows,
        row_of=row_of.reshape(-1).astype(np.int32),
        kinds=features.kinds.astype(np.int16),
        edges=features.edges.astype(np.int32),
        node_start=np.array([0, len(features.nodes)], dtype=np.int64),
        edge_start=np.array([0, features.edges.shape[1]], dtype=np.int64),
        statics=features.statics[None, :],
        reference_bytes=np.array([workspace.reference_bytes(w) for w in features.work], dtype=np.float32),
        kernel_us=operators.kernel_us.astype(np.float32),
        kernels=operators.kernels.astype(np.int16),
        workspace_class=np.array([label.index for label in labels], dtype=np.int8),
        workspace_log_ratio=np.array([label.log_ratio for label in labels], dtype=np.float32),
        distinct_keys=keys,
        key_of=key_of.reshape(-1).astype(np.int32),
        workspace_bytes=operators.workspace_bytes.astype(np.int64),
        energy_terms=terms.sum(axis=0)[None, :-1],
        formula_bytes=np.array([formula_bytes(graph)]),
        ids=np.array([measured.id]),
        architectures=np.array([measured.architecture]),
        groups=np.array([measured.group]),
    )


def _hashes(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of each row's bits."""
    words = np.ascontiguousarray(rows).view(np.uint32)
    factors = np.random.default_rng(0).integers(1, 2**63, size=(words.shape[1], 1), dtype=np.uint64) | np.uint64(1)
    out = np.zeros(len(words), dtype=np.uint64)
    for column in range(words.shape[1]):
        out = (out ^ words[:, column]) * factors[column]
        out ^= out >> np.uint64(29)
    return out


def _renumbered(
    places: npt.NDArray[np.intp], numbers: Sequence[npt.NDArray[np.int32]], sizes: Sequence[int]
) -> npt.NDArray[np.int32]:
    """Numbers within each part as numbers within all, by where each part's entries went."""
    places = places.reshape(-1).astype(np.int32)
    starts = _starts(sizes)
    return np.concatenate([places[start:][own] for start, own in zip(starts[:-1], numbers, strict=True)])


def _starts(lengths: Iterable[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int64)
