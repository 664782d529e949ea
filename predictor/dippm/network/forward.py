"""The forward pass of PMGNS in NumPy: the same numbers as `dippm.network.model`, without importing PyTorch.

A prediction is one pass over a few hundred nodes; importing PyTorch and PyTorch Geometric for it takes several
seconds, the pass itself milliseconds. Names of weights are those of the module's `state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from dippm.network.alike import Alike, by_rows, each_alone, neighbours_of, refined
from dippm.network.featurizer import works

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]
LAYER_NORM_EPSILON = 1e-5
DENSE_NODES = 400
INPUT_LIMIT = 8.0
"""Standardised inputs are cut off here: a graph unlike any other must not drive the network anywhere."""


def forward(
    weights: Weights,
    nodes: Array,
    kinds: npt.NDArray[np.int64],
    edges: npt.NDArray[np.int64],
    statics: Array,
    *,
    blocks: int,
    with_edges: bool = True,
) -> tuple[Array, Array]:
    """One graph: ([n, operator columns], [graph columns]).

    Nodes [n, node columns] and statics [static columns] are standardised; kinds [n]; edges [2, e] are sorted
    by destination.
    """
    x = np.concatenate([nodes, weights["kinds.weight"][kinds]], axis=1)
    embedded, alike = _embed(weights, x, edges if with_edges else edges[:, :0], blocks)
    hidden = _dense(weights, "operator_block", np.concatenate([embedded, x[alike.first]], axis=1))
    operators = _linear(weights, "operator_out", hidden)[alike.of]
    counted = embedded[alike.of[works(kinds)]]
    pooled = counted.mean(axis=0) if len(counted) else np.zeros(embedded.shape[1], dtype=np.float32)
    y = np.concatenate([pooled, statics])[None, :]
    for index in range(blocks):
        y = _dense(weights, f"dense.{index}", y)
    return operators, _linear(weights, "graph_out", y)[0]


def standardise(x: Array, mean: Array, scale: Array) -> Array:
    """(x - mean) / scale, cut off at `INPUT_LIMIT`."""
    clipped: Array = np.clip((x - mean) / scale, -INPUT_LIMIT, INPUT_LIMIT)
    return clipped


def _embed(weights: Weights, x: Array, edges: npt.NDArray[np.int64], blocks: int) -> tuple[Array, Alike]:
    """The GraphSAGE blocks (Hamilton et al. 2017, mean aggregator): lin_l(mean of neighbours) + lin_r(self).

    Rows of the operators that stand for all others [n_classes, hidden], and which stands for each.
    """
    if len(x) > DENSE_NODES and edges.shape[1]:
        return _embed_classes(weights, x, neighbours_of(len(x), edges), blocks)
    mean = neighbours(len(x), edges)
    for index in range(blocks):
        x = _sage(weights, index, x, mean(x))
    return x, each_alone(len(x))


def _embed_classes(weights: Weights, x: Array, around: list[list[int]], blocks: int) -> tuple[Array, Alike]:
    """The same, operators that are alike computed once."""
    before = by_rows(x)
    x = x[before.first]
    for index in range(blocks):
        after = refined(before, around)
        x = _sage(weights, index, x[before.of[after.first]], _means(x, before, [around[i] for i in after.first]))
        before = after
    return x, before


def _means(x: Array, classes: Alike, around: Sequence[Sequence[int]]) -> Array:
    """Mean row of some operators' neighbours (by operator), zeros where there is none; `x` has a row for each class."""
    degrees = np.array([len(near) for near in around], dtype=np.int64)
    starts, some = np.cumsum(degrees) - degrees, degrees > 0
    out = np.zeros((len(around), x.shape[1]), dtype=np.float32)
    rows = x[classes.of[[n for near in around for n in near]]]
    out[some] = np.add.reduceat(rows, starts[some], axis=0) / degrees[some].astype(np.float32)[:, None]
    return out


def _sage(weights: Weights, index: int, x: Array, mean: Array) -> Array:
    """One block: rows of operators and of their neighbours' means in, [n, hidden] out."""
    name = f"sage.{index}"
    y = mean @ weights[f"{name}.conv.lin_l.weight"].T
    y += weights[f"{name}.conv.lin_l.bias"]
    y += x @ weights[f"{name}.conv.lin_r.weight"].T
    y = np.maximum(_layer_norm(weights, f"{name}.norm", y), 0.0)
    return x + y if x.shape[1] == y.shape[1] else y


def neighbours(count: int, edges: npt.NDArray[np.int64]) -> Callable[[Array], Array]:
    """The mean over in-neighbours of a graph of `count` nodes, as a function of their rows: a dense matrix.

    It is faster than gathering until a few hundred nodes. Edges [2, e] are sorted by destination.
    """
    if edges.shape[1] == 0:
        return np.zeros_like
    matrix = np.zeros((count, count), dtype=np.float32)
    matrix[edges[1], edges[0]] = 1.0
    matrix /= np.maximum(1.0, matrix.sum(axis=1, keepdims=True))
    return lambda x: matrix @ x


def _dense(weights: Weights, name: str, x: Array) -> Array:
    y: Array = np.maximum(_layer_norm(weights, f"{name}.norm", _linear(weights, f"{name}.linear", x)), 0.0)
    return y


def _linear(weights: Weights, name: str, x: Array) -> Array:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _layer_norm(weights: Weights, name: str, x: Array) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    centred = x - mean
    variance = np.square(centred).mean(axis=-1, keepdims=True)
    y: Array = np.divide(centred, np.sqrt(variance + LAYER_NORM_EPSILON), out=centred)
    y *= weights[f"{name}.weight"]
    y += weights[f"{name}.bias"]
    return y
