"""Training of PMGNS on a corpus: seeded, resumable, on the CPU or a GPU."""

from __future__ import annotations

import math
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


@dataclass(frozen=True, slots=True)
class Settings:
    """How to train."""

    epochs: int = 120
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    nodes_per_step: int = 8192
    """Whole graphs are put together until they have about so many operators."""
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises; afterwards it falls as a cosine."""
    unknown_share: float = 0.02
    """Share of operators whose kind is hidden in training, so that the slot `unknown` means something."""
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
        self.labels = {
            name: torch.from_numpy(getattr(corpus, name)).to(device)
            for name in ("log_roofline", "kernel_us", "workspace_log_ratio", "is_view")
        }
        self.labels["kernels"] = torch.from_numpy(corpus.kernels.astype(np.int64)).to(device)
        self.labels["workspace_class"] = torch.from_numpy(corpus.workspace_class.astype(np.int64)).to(device)
        self.labels["workspace_weight"] = torch.from_numpy(_workspace_weight(corpus)).to(device)

    def batch(self, graphs: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, OperatorTargets]:
        """(nodes, kinds, edges, statics, graph_of, targets) of some graphs put together."""
        c = self.corpus
        nodes, edges, graph_of, offset = [], [], [], 0
        for position, g in enumerate(graphs):
            a, b = int(c.node_start[g]), int(c.node_start[g + 1])
            nodes.append(torch.arange(a, b, device=self.device))
            edges.append(self.edges[:, int(c.edge_start[g]) : int(c.edge_start[g + 1])] + offset)
            graph_of.append(torch.full((b - a,), position, device=self.device))
            offset += b - a
        index, of = torch.cat(nodes), torch.cat(graph_of)
        targets = OperatorTargets(
            **{name: tensor[index] for name, tensor in self.labels.items()}, graph_of=of, graphs=len(graphs)
        )
        picked = torch.tensor(list(graphs), device=self.device)
        return (
            self.rows[self.row_of[index]], self.kinds[index], torch.cat(edges, dim=1), self.statics[picked], of, targets
        )  # fmt: skip


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
    first = _resume(checkpoint, model, optimizer, hyper, settings)
    for epoch in range(first, settings.epochs):
        generator = np.random.default_rng((settings.seed, epoch))
        torch.manual_seed(settings.seed * 100003 + epoch)
        model.train()
        steps = batches(corpus, cases, settings.nodes_per_step, generator)
        sums: dict[str, Tensor] = {}
        for step, graphs in enumerate(steps):
            rate = settings.learning_rate * _schedule((epoch + step / len(steps)) / settings.epochs, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
            nodes, kinds, edges, _, _, targets = data.batch(graphs)
            hidden = torch.rand(len(kinds), device=kinds.device) < settings.unknown_share
            x, embedded = model.embed(nodes, kinds.masked_fill(hidden, 0), edges)
            losses = operator_losses(model.operators(x, embedded), targets)
            total = torch.stack([WEIGHTS[name] * value for name, value in losses.items()]).sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        if report is not None:
            report(epoch, {name: float(value) / len(steps) for name, value in sums.items()})
        _keep(checkpoint, model, optimizer, hyper, settings, epoch + 1)
    return model.eval(), scales


def predict_operators(
    model: PMGNS, corpus: Corpus, scales: Scales, cases: npt.NDArray[np.int64], *, device: str = "cpu"
) -> tuple[list[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """Operator columns of each case, and the pooled embedding of each case [cases, hidden]."""
    data = DeviceCorpus(corpus, scales, torch.device(device))
    model = model.eval().to(device)
    columns, pooled = [], []
    with torch.no_grad():
        for g in cases:
            nodes, kinds, edges, _, _, _ = data.batch([int(g)])
            x, embedded = model.embed(nodes, kinds, edges)
            columns.append(model.operators(x, embedded).cpu().numpy())
            pooled.append(embedded.mean(0).cpu().numpy())
    return columns, np.stack(pooled)


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
) -> None:
    if checkpoint is None:
        return
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    partial = checkpoint.with_suffix(".partial")
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "done": done, **_identity(hyper, settings)},
        partial,
    )
    partial.replace(checkpoint)


def _resume(
    checkpoint: Path | None, model: PMGNS, optimizer: torch.optim.Optimizer, hyper: Hyperparameters, settings: Settings
) -> int:
    """Epochs already done; a checkpoint of other settings is left aside."""
    if checkpoint is None or not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if {k: state[k] for k in ("hyper", "settings")} != _identity(hyper, settings):
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["done"])
