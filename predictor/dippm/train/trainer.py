"""Training of PMGNS on a corpus: seeded, resumable, on the CPU or a GPU."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dippm.network.forward import standardise
from dippm.network.model import PMGNS, Hyperparameters
from dippm.train.corpus import Corpus
from dippm.train.losses import OperatorTargets, operator_losses

WEIGHTS = {"time": 1.0, "graph_time": 0.5, "runs": 0.2, "kernels": 0.1, "workspace": 0.3, "workspace_ratio": 0.2}
"""Weight of each loss term."""
CLIP_NORM = 1.0
NODES_AT_ONCE = 16384
"""Nodes that a network looks at together where it is only asked."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train."""

    epochs: int = 120
    seconds: float | None = None
    """Where it is given, training ends after so long (or after `epochs`, whichever comes first): the learning rate
    falls by the time used, so that what there is at the end is a finished network."""
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    nodes_per_step: int = 8192
    """Whole graphs are put together until they have about so many operators."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises; afterwards it falls as a cosine."""
    unknown_share: float = 0.02
    """Share of operators whose kind is hidden in training, so that the slot `unknown` means something."""
    timed_repeats: int = 4
    """Cases whose operators were timed are seen so often in an epoch: few are, and all of the time is learned there."""
    seed: int = 0


@dataclass(frozen=True)
class Scales:
    """Mean and spread of the inputs, from the training cases alone."""

    node_mean: npt.NDArray[np.float32]
    node_scale: npt.NDArray[np.float32]
    static_mean: npt.NDArray[np.float32]
    static_scale: npt.NDArray[np.float32]

    @classmethod
    def of(cls, corpus: Corpus, cases: npt.NDArray[np.int64]) -> Scales:
        """Statistics over distinct node rows, and over cases; columns that never vary get scale 1."""
        used = np.unique(np.concatenate([corpus.row_of[corpus.nodes_of(int(g))] for g in cases]))
        rows, statics = corpus.rows[used], corpus.statics[cases]
        return cls(rows.mean(0), _spread(rows), statics.mean(0), _spread(statics))


def _spread(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    spread = rows.std(axis=0)
    return np.where(spread > 1e-4, spread, 1.0).astype(np.float32)


class DeviceCorpus:
    """The corpus as tensors on a device, cut into batches of whole graphs."""

    def __init__(self, corpus: Corpus, scales: Scales, device: torch.device) -> None:
        self.corpus, self.device = corpus, device
        self.rows = torch.from_numpy(standardise(corpus.rows, scales.node_mean, scales.node_scale)).to(device)
        self.statics = torch.from_numpy(standardise(corpus.statics, scales.static_mean, scales.static_scale)).to(device)
        self.row_of = torch.from_numpy(corpus.row_of.astype(np.int64)).to(device)
        self.kinds = torch.from_numpy(corpus.kinds.astype(np.int64)).to(device)
        self.edges = torch.from_numpy(corpus.edges.astype(np.int64)).to(device)
        self.node_start = torch.from_numpy(corpus.node_start).to(device)
        self.edge_start = torch.from_numpy(corpus.edge_start).to(device)
        self.labels = {
            name: torch.from_numpy(getattr(corpus, name)).to(device)
            for name in ("log_roofline", "kernel_us", "workspace_log_ratio", "is_view")
        }
        self.labels["kernels"] = torch.from_numpy(corpus.kernels.astype(np.int64)).to(device)
        self.labels["workspace_class"] = torch.from_numpy(corpus.workspace_class.astype(np.int64)).to(device)
        self.labels["workspace_weight"] = torch.from_numpy(_workspace_weight(corpus)).to(device)

    def batch(self, graphs: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, OperatorTargets]:
        """(nodes, kinds, edges, statics, graph_of, targets) of some graphs put together."""
        picked = torch.tensor(list(graphs), device=self.device)
        index, of, first = self._spans(self.node_start, self.corpus.node_start, picked, graphs)
        edge_index, edge_of, _ = self._spans(self.edge_start, self.corpus.edge_start, picked, graphs)
        edges = self.edges[:, edge_index] + first[edge_of]
        targets = OperatorTargets(
            **{name: tensor[index] for name, tensor in self.labels.items()}, graph_of=of, graphs=len(graphs)
        )
        return self.rows[self.row_of[index]], self.kinds[index], edges, self.statics[picked], of, targets

    def _spans(
        self, start: Tensor, known: npt.NDArray[np.int64], picked: Tensor, graphs: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Places of some graphs' nodes or edges, which graph each is of, and where each graph begins among them.

        The host knows how many there are, so that it need not wait for the device to say so.
        """
        chosen = np.asarray(graphs)
        total = int((known[chosen + 1] - known[chosen]).sum())
        sizes = start[picked + 1] - start[picked]
        first = torch.cumsum(sizes, 0) - sizes
        of = torch.repeat_interleave(sizes, output_size=total)
        return torch.arange(total, device=self.device) + (start[picked] - first)[of], of, first


def _workspace_weight(corpus: Corpus) -> npt.NDArray[np.float32]:
    """Operators that touch much memory decide the peak: root of the size over the graph's largest, 0.05 at least."""
    weight = np.empty_like(corpus.reference_bytes)
    for g in range(len(corpus)):
        here = corpus.nodes_of(g)
        sizes = corpus.reference_bytes[here]
        weight[here] = 0.05 + np.sqrt(sizes / max(1.0, float(sizes.max(initial=1.0))))
    return weight


def batches(
    corpus: Corpus, cases: npt.NDArray[np.int64], nodes: int, generator: np.random.Generator
) -> list[list[int]]:
    """Cases in a random order, put together into lists of about so many nodes."""
    out: list[list[int]] = [[]]
    filled = 0
    for g in generator.permutation(cases):
        size = int(corpus.node_start[g + 1] - corpus.node_start[g])
        if out[-1] and filled + size > nodes:
            out.append([])
            filled = 0
        out[-1].append(int(g))
        filled += size
    return out


def train(
    corpus: Corpus,
    cases: npt.NDArray[np.int64],
    hyper: Hyperparameters,
    settings: Settings,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    start: PMGNS | None = None,
    scales: Scales | None = None,
    report: Callable[[int, dict[str, float]], None] | None = None,
) -> tuple[PMGNS, Scales]:
    """The operator level trained on some cases of the corpus: every epoch sees each case once.

    With a checkpoint path, the state is kept after each epoch and taken up again when the same call is made anew.
    `start` and its scales are the network to go on from (finetuning). `report` gets the epoch and its mean losses.
    """
    scales = scales or Scales.of(corpus, cases)
    if device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(settings.seed)
    model = (start or PMGNS(hyper)).to(device)
    data = DeviceCorpus(corpus, scales, torch.device(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    first, spent = _resume(checkpoint, model, optimizer, hyper, settings)
    clock = Clock(settings, spent)
    shown = _with_repeats(corpus, cases, settings.timed_repeats)
    for epoch in range(first, settings.epochs):
        generator = np.random.default_rng((settings.seed, epoch))
        torch.manual_seed(settings.seed * 100003 + epoch)
        model.train()
        steps = batches(corpus, shown, settings.nodes_per_step, generator)
        sums: dict[str, Tensor] = {}
        for step, graphs in enumerate(steps):
            progress = clock.progress(epoch + step / len(steps))
            if progress >= 1:
                steps = steps[: max(1, step)]
                break
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * _schedule(progress, settings.warmup)
            for name, value in _step(model, data, graphs, optimizer, settings).items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value
        if report is not None:
            report(epoch, {name: float(value) / len(steps) for name, value in sums.items()})
        _keep(checkpoint, model, optimizer, hyper, settings, epoch + 1, clock.spent)
        if clock.progress(epoch + 1) >= 1:
            break
    return model.eval(), scales


def _step(
    model: PMGNS, data: DeviceCorpus, graphs: Sequence[int], optimizer: torch.optim.Optimizer, settings: Settings
) -> dict[str, Tensor]:
    """One step of the optimizer on some graphs; the loss terms."""
    nodes, kinds, edges, _, _, targets = data.batch(graphs)
    hidden = torch.rand(len(kinds), device=kinds.device) < settings.unknown_share
    x, embedded = model.embed(nodes, kinds.masked_fill(hidden, 0), edges)
    losses = operator_losses(model.operators(x, embedded), targets)
    total = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    return {name: value.detach() for name, value in losses.items()}


class Clock:
    """How far training has come, by its epochs or by the seconds given to it, whichever is further."""

    def __init__(self, settings: Settings, spent: float = 0.0) -> None:
        self._settings, self._before, self._start = settings, spent, time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds of training so far, those before a stop included."""
        return self._before + time.monotonic() - self._start

    def progress(self, epochs: float) -> float:
        """0 at the start, 1 at the end."""
        seconds = self._settings.seconds
        return max(epochs / self._settings.epochs, 0.0 if seconds is None else self.spent / seconds)


def _with_repeats(corpus: Corpus, cases: npt.NDArray[np.int64], repeats: int) -> npt.NDArray[np.int64]:
    """The cases, those with kernel times as often as `repeats` says."""
    timed = np.array([bool(np.isfinite(corpus.kernel_us[corpus.nodes_of(int(g))]).any()) for g in cases], dtype=bool)
    if timed.all():
        return cases
    return np.concatenate([cases, np.repeat(cases[timed], repeats - 1)])


class Asked:
    """A trained network that is asked about cases of a corpus."""

    def __init__(self, model: PMGNS, corpus: Corpus, scales: Scales, device: str = "cpu") -> None:
        self._corpus, self._data = corpus, DeviceCorpus(corpus, scales, torch.device(device))
        self._model = copy.deepcopy(model).eval().to(device)

    def __call__(self, cases: npt.NDArray[np.int64]) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
        """Operator columns of each case, and the pooled embedding of each case [cases, hidden]."""
        columns: list[npt.NDArray[np.float32]] = []
        pooled = [np.zeros((0, self._model.hyper.hidden), dtype=np.float32)]
        start = self._corpus.node_start
        with torch.no_grad():
            for graphs in _in_order(self._corpus, cases, NODES_AT_ONCE):
                nodes, kinds, edges, _, of, _ = self._data.batch(graphs)
                x, embedded = self._model.embed(nodes, kinds, edges)
                sizes = [int(start[g + 1] - start[g]) for g in graphs]
                columns += np.split(self._model.operators(x, embedded).cpu().numpy(), np.cumsum(sizes)[:-1])
                pooled.append(self._model.pool(embedded, kinds, of, len(graphs)).cpu().numpy())
        return columns, np.concatenate(pooled)


def predict_operators(
    model: PMGNS, corpus: Corpus, scales: Scales, cases: npt.NDArray[np.int64]
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """What a network says of some cases: operator columns of each, and pooled embeddings [cases, hidden]."""
    return Asked(model, corpus, scales)(cases)


def _in_order(corpus: Corpus, cases: npt.NDArray[np.int64], nodes: int) -> list[list[int]]:
    out: list[list[int]] = []
    filled = nodes + 1
    for g in cases.tolist():
        size = int(corpus.node_start[g + 1] - corpus.node_start[g])
        if filled + size > nodes:
            out.append([])
            filled = 0
        out[-1].append(g)
        filled += size
    return out


def _schedule(progress: float, warmup: float) -> float:
    if progress < warmup:
        return max(0.02, progress / warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _identity(hyper: Hyperparameters, settings: Settings) -> dict[str, Any]:
    return {"hyper": asdict(hyper), "settings": asdict(settings)}


def _keep(
    checkpoint: Path | None,
    model: PMGNS,
    optimizer: torch.optim.Optimizer,
    hyper: Hyperparameters,
    settings: Settings,
    done: int,
    spent: float,
) -> None:
    if checkpoint is None:
        return
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done, "spent": spent}
    torch.save({**state, **_identity(hyper, settings)}, partial)
    partial.replace(checkpoint)


def _resume(
    checkpoint: Path | None, model: PMGNS, optimizer: torch.optim.Optimizer, hyper: Hyperparameters, settings: Settings
) -> tuple[int, float]:
    """Epochs already done and the seconds they took; a checkpoint of other settings is left aside."""
    if checkpoint is None or not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if {k: state[k] for k in ("hyper", "settings")} != _identity(hyper, settings):
        return 0, 0.0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["done"]), float(state["spent"])
