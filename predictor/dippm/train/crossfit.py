"""Cross-fitting: every case estimated by networks, tables and costs of other architectures, then the final bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dippm.network.bundle import Bundle
from dippm.network.compose import Composition, correct
from dippm.network.model import PMGNS
from dippm.train.bounds import bounds_of
from dippm.train.fit import (
    HeldBack,
    Prepared,
    assemble,
    fit_costs,
    hold_back,
    measured_kinds,
    residuals_of,
    shrink_of,
    statistics_of,
    table_of,
    with_residuals,
)
from dippm.train.graph_level import predict_graph_level, standardised_statics, train_graph_level
from dippm.train.networks import load_network
from dippm.train.split import FOLDS, folds, without_held_back_operators
from dippm.train.trainer import Scales, predict_operators

Index = npt.NDArray[np.int64]
Tick = Callable[[], None]


@dataclass(frozen=True)
class CrossFit:
    """Every case as it looks from the other architectures."""

    fold_of: Index
    held: tuple[HeldBack, ...]
    """By case, without the graph level."""
    measured: npt.NDArray[np.float32]
    """Log residuals of the compositions, [cases, graph columns]."""
    predicted: npt.NDArray[np.float32]
    """The graph level's, trained on the other folds."""

    def shrink(self, without: int | None = None) -> dict[str, float]:
        """How much of the graph level to apply, by what helped in the folds (one of them left aside)."""
        used = np.ones(len(self.fold_of), dtype=bool) if without is None else self.fold_of != without
        return shrink_of(self.measured[used], self.predicted[used])

    def corrected(self, index: int) -> Composition:
        """The held-back prediction of one case, graph level included."""
        held = self.held[index]
        estimates = with_residuals(held.estimates, self.predicted[index], self.shrink(without=int(self.fold_of[index])))
        return correct(held.composed, estimates)


def cross_fit(data: Prepared, work: Path, *, count: int = FOLDS, tick: Tick = lambda: None) -> CrossFit:
    """Steps 1 to 3 of `dippm.train.fit`, from the networks `without-K.pt` in `work`."""
    fold_of = folds(data.corpus.groups.tolist(), data.corpus.architectures.tolist(), count)
    held: dict[int, HeldBack] = {}
    networks: list[tuple[PMGNS, Scales]] = []
    for fold in range(count):
        model, scales = load_network(work / f"without-{fold}.pt")
        networks.append((model, scales))
        seen, unseen = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        known = replace(data, corpus=without_held_back_operators(data.corpus, unseen))
        table, kinds = table_of(known.corpus, seen), measured_kinds(known.corpus, seen)
        bundle = assemble(model, scales, table, fit_costs(known, seen), data.device, kinds)
        for h in hold_back(bundle, data, unseen, tick):
            held[h.index] = h
    ordered = tuple(held[g] for g in range(len(data.cases)))
    measured = residuals_of(data, ordered)
    predicted = np.zeros_like(measured)
    every = np.arange(len(data.cases))
    for fold, (model, scales) in enumerate(networks):
        pooled = predict_operators(model, data.corpus, scales, every)[1]
        statics = standardised_statics(data.corpus, scales)
        seen, unseen = fold_of != fold, fold_of == fold
        model = train_graph_level(model, pooled[seen], statics[seen], measured[seen])
        predicted[unseen] = predict_graph_level(model, pooled[unseen], statics[unseen])
    return CrossFit(fold_of, ordered, measured, predicted)


def final_bundle(data: Prepared, work: Path, fit: CrossFit, described: Mapping[str, Any]) -> Bundle:
    """Steps 4 and 5: the bundle of all cases, from `all.pt` in `work`."""
    model, scales = load_network(work / "all.pt")
    every = np.arange(len(data.cases))
    pooled = predict_operators(model, data.corpus, scales, every)[1]
    model = train_graph_level(model, pooled, standardised_statics(data.corpus, scales), fit.measured)
    table, costs = table_of(data.corpus, every), fit_costs(data, every)
    kinds = measured_kinds(data.corpus, every)
    bundle = assemble(model, scales, table, costs, data.device, kinds)
    known = hold_back(bundle, data, every)
    return assemble(
        model,
        scales,
        table,
        costs,
        data.device,
        kinds,
        graph_shrink=fit.shrink(),
        bounds=bounds_of(data, list(predictions_of(data, fit)), [h.composed for h in known]),
        statistics=statistics_of(data.cases),
        trained_on=described,
    )


def predictions_of(data: Prepared, fit: CrossFit) -> Sequence[Composition]:
    """Held-back predictions of all cases, in their order."""
    return [fit.corrected(g) for g in range(len(data.cases))]
