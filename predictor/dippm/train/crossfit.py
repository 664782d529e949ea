"""Cross-fitting: every case estimated by networks, tables and costs of other architectures, then the final bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dippm.network.bundle import Bundle, write_bundle
from dippm.network.compose import Composition
from dippm.train.bounds import bounds_of
from dippm.train.corpus import Corpus
from dippm.train.fit import (
    Batch,
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
)
from dippm.train.graph_level import predict_graph_level, standardised_statics, train_graph_level
from dippm.train.networks import load_network
from dippm.train.parallel import spread
from dippm.train.split import FOLDS, folds, without_held_back_operators
from dippm.train.trainer import Asked

Index = npt.NDArray[np.int64]
Show = Callable[[int, int], None]
CASES_A_BATCH = 32
GRAPH_LEVEL_CASES = 2000
"""The graph level is trained on so many cases, those with times first: its few columns need no more."""


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

    def predictions(self) -> list[Composition]:
        """The held-back predictions of all cases, graph level included."""
        shrinks = {fold: self.shrink(without=fold) for fold in np.unique(self.fold_of).tolist()}
        return [
            held.corrected(predicted, shrinks[int(fold)])
            for held, predicted, fold in zip(self.held, self.predicted, self.fold_of, strict=True)
        ]


def cross_fit(
    data: Prepared,
    work: Path,
    *,
    count: int = FOLDS,
    jobs: int = 1,
    device: str = "cpu",
    show: Show = lambda done, of: None,
) -> CrossFit:
    """Steps 1 to 3 of `dippm.train.fit`, from the networks `without-K.pt` and `all.pt` in `work`.

    Networks are asked on `device` in this process, cases are composed in others.
    """
    fold_of = folds(data.corpus.groups.tolist(), data.corpus.architectures.tolist(), count)
    pooled_of: list[tuple[Index, npt.NDArray[np.float32]]] = []
    every = np.arange(len(data.cases))
    write_bundle(_without_graph_level(data, work / "all.pt", every), work / "everything.safetensors")

    def batches() -> Iterator[Batch]:
        for fold in range(count):
            seen, unseen = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
            known = replace(data, corpus=without_held_back_operators(data.corpus, unseen))
            path = work / f"without-{fold}.safetensors"
            write_bundle(_without_graph_level(known, work / f"without-{fold}.pt", seen), path)
            model, scales = load_network(work / f"without-{fold}.pt")
            asked, nothing = Asked(model, data.corpus, scales, device), np.zeros((0, model.hyper.hidden), np.float32)
            pooled = [nothing]
            for start in range(0, len(unseen), CASES_A_BATCH):
                part = unseen[start : start + CASES_A_BATCH]
                columns, embedded = asked(part)
                pooled.append(embedded)
                cases = tuple(data.cases[g] for g in part)
                yield Batch(path, work / "everything.safetensors", cases, tuple(columns))
            pooled_of.append((unseen, np.concatenate(pooled)))

    order = np.concatenate([np.flatnonzero(fold_of == fold) for fold in range(count)])
    found: list[HeldBack] = []
    for part in spread(hold_back, batches(), jobs):
        found += part
        show(len(found), len(order))
    places = np.argsort(order)
    held = tuple(found[place] for place in places)
    measured = residuals_of(data, held)
    predicted = np.zeros_like(measured)
    for fold, (unseen, pooled) in enumerate(pooled_of):
        model, scales = load_network(work / f"without-{fold}.pt")
        chosen = chosen_for_graph_level(data.corpus, np.flatnonzero(fold_of != fold))
        statics = standardised_statics(data.corpus, scales)
        shown = Asked(model, data.corpus, scales, device)(chosen)[1]
        model = train_graph_level(model, shown, statics[chosen], measured[chosen])
        predicted[unseen] = predict_graph_level(model, pooled, statics[unseen])
    return CrossFit(fold_of, held, measured, predicted)


def chosen_for_graph_level(corpus: Corpus, of: Index) -> Index:
    """Some of the cases: those with kernel times, and others drawn by a fixed seed."""
    timed = np.array([bool(np.isfinite(corpus.kernel_us[corpus.nodes_of(int(g))]).any()) for g in of], dtype=bool)
    rest = np.random.default_rng(0).permutation(of[~timed])[: max(0, GRAPH_LEVEL_CASES - int(timed.sum()))]
    return np.sort(np.concatenate([of[timed], rest]))


def _without_graph_level(data: Prepared, network: Path, of: Index) -> Bundle:
    model, scales = load_network(network)
    kinds = measured_kinds(data.corpus, of)
    return assemble(model, scales, table_of(data.corpus, of), fit_costs(data, of), data.device, kinds)


def final_bundle(
    data: Prepared, work: Path, fit: CrossFit, described: Mapping[str, Any], *, device: str = "cpu"
) -> Bundle:
    """Steps 4 and 5: the bundle of all cases, from `all.pt` in `work`."""
    model, scales = load_network(work / "all.pt")
    every = np.arange(len(data.cases))
    chosen = chosen_for_graph_level(data.corpus, every)
    pooled = Asked(model, data.corpus, scales, device)(chosen)[1]
    statics = standardised_statics(data.corpus, scales)
    model = train_graph_level(model, pooled, statics[chosen], fit.measured[chosen])
    return assemble(
        model,
        scales,
        table_of(data.corpus, every),
        fit_costs(data, every),
        data.device,
        measured_kinds(data.corpus, every),
        graph_shrink=fit.shrink(),
        bounds=bounds_of(data, fit.predictions(), [held.looked_up for held in fit.held]),
        statistics=statistics_of(data.cases),
        trained_on=described,
    )
