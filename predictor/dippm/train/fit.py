"""From trained networks to a bundle: tables, costs, the graph level and the calibration.

The graph level learns what is left over after composing, so it must be shown compositions by networks that had not
seen the case; so must the calibration. Steps:

1. each fold's cases are estimated by the network trained without the fold, with tables and costs of the other folds;
2. they are composed (memory replayed, clocks walked) and held against the labels;
3. the graph level is trained on the log residuals, cross-fitted, and used as far as it helped;
4. bounds are set from the scores that remain;
5. the bundle is the network, tables, costs and graph level of all cases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dippm.network import lookup
from dippm.network.bundle import Bundle, applied_residuals, read_bundle
from dippm.network.compose import Composition, compose, correct
from dippm.network.costs import EnergyCost, HostCost, kind_counts
from dippm.network.featurizer import featurize
from dippm.network.model import GRAPH_COLUMNS, OPERATOR_COLUMNS, PMGNS
from dippm.network.schema import Schema
from dippm.train.corpus import Corpus
from dippm.train.costs import fit_energy, fit_gap_us, fit_host
from dippm.train.labels import TARGETS, MeasuredCase
from dippm.train.trainer import Scales
from dippm.vocabulary import KINDS

LEAST_GAIN = 0.03
"""The graph level is used for a target where it took so much off the error of held-back cases; less is chance."""

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """The measured cases beside their corpus (same order)."""

    cases: Sequence[MeasuredCase]
    corpus: Corpus
    device: str


@dataclass(frozen=True)
class Costs:
    """Fitted costs."""

    gap_us: float
    host: HostCost
    energy: EnergyCost


def fit_costs(data: Prepared, of: Index) -> Costs:
    """Costs from some of the cases: those whose operators, time and energy were all measured."""
    corpus = data.corpus
    sums, counts, device = [], [], []
    kinds, host = [], []
    terms, latency, energy = [], [], []
    for g in of:
        labels, here = data.cases[g].labels, corpus.nodes_of(int(g))
        us, runs = corpus.kernel_us[here].astype(np.float64), corpus.kernels[here]
        if math.isfinite(labels.host_ms):
            kinds.append(kind_counts(corpus.kinds[here].astype(np.int64)))
            host.append(labels.host_ms)
        if not np.isfinite(us).all() or not math.isfinite(labels.device_ms):
            continue
        sums.append(float(us.sum()))
        counts.append(int(runs.sum()))
        device.append(labels.device_ms)
        if math.isfinite(labels.energy_j) and math.isfinite(labels.latency_ms):
            terms.append([*corpus.energy_terms[g], us.sum() * 1e-6])
            latency.append(labels.latency_ms / 1e3)
            energy.append(labels.energy_j)
    return Costs(
        gap_us=fit_gap_us(sums, counts, device),
        host=fit_host(np.array(kinds), np.array(host)),
        energy=fit_energy(np.array(terms), np.array(latency), np.array(energy)),
    )


def table_of(corpus: Corpus, of: Index) -> lookup.Table:
    """Measured operators of some of the cases, by signature. Views are left out: they cost nothing."""
    nodes = nodes_of(corpus, of)
    nodes = nodes[(corpus.workspace_bytes[nodes] >= 0) & ~corpus.is_view[nodes]]
    return lookup.build(
        corpus.keys[nodes],
        corpus.workspace_class[nodes],
        corpus.workspace_bytes[nodes],
        corpus.kernel_us[nodes],
        corpus.kernels[nodes],
    )


def measured_kinds(corpus: Corpus, of: Index) -> tuple[str, ...]:
    """Kinds of which some of the cases hold a measured workspace."""
    nodes = nodes_of(corpus, of)
    return tuple(KINDS[i] for i in np.unique(corpus.kinds[nodes[corpus.workspace_class[nodes] >= 0]]))


def nodes_of(corpus: Corpus, of: Index) -> Index:
    """Nodes of some of the cases."""
    return np.concatenate([np.arange(corpus.node_start[g], corpus.node_start[g + 1]) for g in of])


def assemble(
    model: PMGNS,
    scales: Scales,
    table: lookup.Table,
    costs: Costs,
    device: str,
    kinds: tuple[str, ...] = KINDS,
    **described: Any,
) -> Bundle:
    """A bundle without graph level and bounds, unless `described` brings them."""
    schema = Schema(
        device=device,
        hyper=asdict(model.hyper),
        operator_columns=OPERATOR_COLUMNS,
        graph_columns=GRAPH_COLUMNS,
        graph_shrink=described.pop("graph_shrink", {}),
        measured_kinds=kinds,
        gap_us=costs.gap_us,
        host_pass_us=costs.host.pass_us,
        static_w=costs.energy.static_w,
        energy=dict(costs.energy.coefficients),
        bounds=described.pop("bounds", {}),
        **described,
    )
    return Bundle(
        schema=schema,
        weights={name: tensor.detach().cpu().numpy().astype(np.float32) for name, tensor in model.state_dict().items()},
        node_mean=scales.node_mean,
        node_scale=scales.node_scale,
        static_mean=scales.static_mean,
        static_scale=scales.static_scale,
        table=table,
        kind_us=costs.host.kind_us,
    )


@dataclass(frozen=True, slots=True)
class HeldBack:
    """One case as a bundle that never saw its architecture estimated it."""

    known_share: float
    composed: Composition
    looked_up: Composition
    """The same with all that was measured anywhere looked up."""

    def corrected(self, predicted: npt.NDArray[np.float32], shrink: Mapping[str, float]) -> Composition:
        """The composition with the graph level's residuals [graph columns] applied."""
        values = dict(zip(GRAPH_COLUMNS, predicted.tolist(), strict=True))
        return correct(self.composed, applied_residuals(values, shrink, self.known_share))


@dataclass(frozen=True, slots=True)
class Batch:
    """Cases of one fold and what its network says of their operators, for a process of its own."""

    bundle: Path
    """Of the other folds."""
    everything: Path
    """Of all cases."""
    cases: tuple[MeasuredCase, ...]
    columns: tuple[npt.NDArray[np.float32], ...]


def hold_back(batch: Batch) -> list[HeldBack]:
    """Steps 1 and 2 for some cases of one fold."""
    bundle, everything = _bundle(batch.bundle), _bundle(batch.everything)
    nothing = np.zeros(len(GRAPH_COLUMNS), dtype=np.float32)
    out = []
    for measured, columns in zip(batch.cases, batch.columns, strict=True):
        graph, case = measured.source.graph(), measured.case
        features = featurize(graph, case)
        keys = lookup.operator_keys(graph, case)
        ours, theirs = (
            b.assemble(features, case, b.table.find(keys), columns, nothing) for b in (bundle, everything)
        )  # fmt: skip
        composed = compose(graph, case, ours)
        same = ours.workspace_bytes == theirs.workspace_bytes
        out.append(HeldBack(ours.known_share, composed, composed if same else compose(graph, case, theirs)))
    return out


@lru_cache(maxsize=2)
def _bundle(path: Path) -> Bundle:
    return read_bundle(path)


def residuals_of(data: Prepared, held: Sequence[HeldBack]) -> npt.NDArray[np.float32]:
    """log(measured / composed) by `GRAPH_COLUMNS`, [cases, columns]; NaN where it was not measured."""
    names = {"allocated": "allocated_bytes", "reserved": "reserved_bytes"}
    out = np.full((len(data.cases), len(GRAPH_COLUMNS)), np.nan, dtype=np.float32)
    for index, h in enumerate(held):
        for column, target in enumerate(GRAPH_COLUMNS):
            name = names.get(target, target)
            measured, composed = getattr(data.cases[index].labels, name), getattr(h.composed, name)
            if math.isfinite(measured) and measured > 0 and composed > 0:
                out[index, column] = math.log(measured / composed)
    return out


def shrink_of(measured: npt.NDArray[np.float32], predicted: npt.NDArray[np.float32]) -> dict[str, float]:
    """Share of each column's predicted residual that left the least absolute log error, on cross-fitted predictions."""
    out = {}
    for column, name in enumerate(GRAPH_COLUMNS):
        known = np.isfinite(measured[:, column])
        if not known.any():
            out[name] = 0.0
            continue
        y, x = measured[known, column], predicted[known, column]
        grid = (0.0, 0.25, 0.5, 0.75, 1.0)
        errors = [float(np.abs(y - share * x).mean()) for share in grid]
        best = int(np.argmin(errors))
        out[name] = grid[best] if errors[best] < (1 - LEAST_GAIN) * errors[0] else 0.0
    return out


def statistics_of(cases: Sequence[MeasuredCase]) -> dict[str, dict[str, float]]:
    """Count, median and range of each label."""
    out = {}
    for name in TARGETS:
        values = np.array([getattr(c.labels, name) for c in cases], dtype=np.float64)
        values = values[np.isfinite(values)]
        if len(values):
            out[name] = {
                "count": float(len(values)),
                "median": float(np.median(values)),
                "least": float(values.min()),
                "greatest": float(values.max()),
            }
    return out
