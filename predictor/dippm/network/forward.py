"""The forward pass of PMGNS in NumPy: the same numbers as `dippm.network.model`, without importing PyTorch.

A prediction is one pass over a few hundred nodes; importing PyTorch and PyTorch Geometric for it takes several
seconds, the pass itself milliseconds. Names of weights are those of the module's `state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

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
    embedded = _embed(weights, x, edges if with_edges else edges[:, :0], blocks)
    hidden = _dense(weights, "operator_block", np.concatenate([embedded, x], axis=1))
    operators = _linear(weights, "operator_out", hidden)
    pooled = embedded.mean(axis=0) if len(embedded) else np.zeros(embedded.shape[1], dtype=np.float32)
    y = np.concatenate([pooled, statics])[None, :]
    for index in range(blocks):
        y = _dense(weights, f"dense.{index}", y)
    return operators, _linear(weights, "graph_out", y)[0]


def standardise(x: Array, mean: Array, scale: Array) -> Array:
    """(x - mean) / scale, cut off at `INPUT_LIMIT`."""
    clipped: Array = np.clip((x - mean) / scale, -INPUT_LIMIT, INPUT_LIMIT)
    return clipped


def _embed(weights: Weights, x: Array, edges: npt.NDArray[np.int64], blocks: int) -> Array:
    """The GraphSAGE blocks (Hamilton et al. 2017, mean aggregator): lin_l(mean of neighbours) + lin_r(self)."""
    mean = neighbours(len(x), edges)
    for index in range(blocks):
        name = f"sage.{index}"
        y = mean(x) @ weights[f"{name}.conv.lin_l.weight"].T
        y += weights[f"{name}.conv.lin_l.bias"]
        y += x @ weights[f"{name}.conv.lin_r.weight"].T
        y = np.maximum(_layer_norm(weights, f"{name}.norm", y), 0.0)
        x = x + y if x.shape[1] == y.shape[1] else y
    return x


def neighbours(count: int, edges: npt.NDArray[np.int64]) -> Callable[[Array], Array]:
    """The mean over in-neighbours of a graph of `count` nodes, as a function of their rows.

    A dense matrix is faster than gathering until a few hundred nodes. Edges [2, e] are sorted by destination.
    """
    if edges.shape[1] == 0:
        return np.zeros_like
    if count > DENSE_NODES:
        return _SparseMean(count, edges)
    matrix = np.zeros((count, count), dtype=np.float32)
    matrix[edges[1], edges[0]] = 1.0
    matrix /= np.maximum(1.0, matrix.sum(axis=1, keepdims=True))
    return lambda x: matrix @ x


class _SparseMean:
    """Mean over each node's in-neighbours, zeros where it has none. Most nodes of a network have one or two."""

    def __init__(self, count: int, edges: npt.NDArray[np.int64]) -> None:
        sources, destinations = edges
        degrees = np.bincount(destinations, minlength=count)
        starts = np.cumsum(degrees) - degrees
        few, many = (np.flatnonzero(chosen) for chosen in ((degrees == 1) | (degrees == 2), degrees > 2))
        self._few, self._first, self._last = few, sources[starts[few]], sources[(starts + degrees - 1)[few]]
        self._many, self._sources = many, sources[degrees[destinations] > 2]
        self._starts = np.cumsum(degrees[many]) - degrees[many]
        self._degrees = degrees[many].astype(np.float32)[:, None]

    def __call__(self, x: Array) -> Array:
        """Rows of the nodes to rows of their neighbours' means."""
        out = np.zeros_like(x)
        out[self._few] = (x[self._first] + x[self._last]) / np.float32(2)  # of one neighbour: twice the same
        if len(self._many):
            out[self._many] = np.add.reduceat(x[self._sources], self._starts, axis=0) / self._degrees
        return out


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
