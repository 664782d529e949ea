"""Training of the graph level: log residuals from the pooled operators and the static features.

The GraphSAGE blocks stay as the operator level made them; with a few hundred cases the graph level would otherwise
learn the architectures by heart.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import huber_loss

from dippm.network.forward import standardise
from dippm.network.model import PMGNS
from dippm.train.corpus import Corpus
from dippm.train.trainer import Scales

LIMIT = 0.7
"""Residuals are cut off here (a factor of two): what is further off is a case gone wrong, not a lesson."""


def train_graph_level(
    model: PMGNS,
    pooled: npt.NDArray[np.float32],
    statics: npt.NDArray[np.float32],
    residuals: npt.NDArray[np.float32],
    *,
    epochs: int = 150,
    learning_rate: float = 3e-4,
    weight_decay: float = 0.1,
    seed: int = 0,
) -> PMGNS:
    """The model with its fully connected blocks trained to [cases, graph columns] residuals (NaN: not measured).

    `pooled` are the cases' mean embeddings [cases, hidden], `statics` their standardised static features.
    """
    torch.manual_seed(seed)
    inputs = torch.from_numpy(np.concatenate([pooled, statics], axis=1))
    target = torch.from_numpy(residuals)
    known = torch.isfinite(target)
    target = torch.where(known, target, torch.zeros_like(target)).clamp(-LIMIT, LIMIT)
    parameters = [*model.dense.parameters(), *model.graph_out.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for index in torch.split(torch.randperm(len(inputs)), 128):
            loss = _masked(_fully_connected(model, inputs[index]), target[index], known[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return model.eval()


def predict_graph_level(
    model: PMGNS, pooled: npt.NDArray[np.float32], statics: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """[cases, graph columns]."""
    with torch.no_grad():
        out: npt.NDArray[np.float32] = _fully_connected(
            model, torch.from_numpy(np.concatenate([pooled, statics], axis=1))
        ).numpy()
    return out


def standardised_statics(corpus: Corpus, scales: Scales) -> npt.NDArray[np.float32]:
    """Static features as the network sees them, [cases, static columns]."""
    return standardise(corpus.statics, scales.static_mean, scales.static_scale)


def _fully_connected(model: PMGNS, inputs: Tensor) -> Tensor:
    for block in model.dense:
        inputs = block(inputs)
    out: Tensor = model.graph_out(inputs)
    return out


def _masked(predicted: Tensor, target: Tensor, known: Tensor) -> Tensor:
    loss = huber_loss(predicted, target, reduction="none", delta=0.1)
    return (loss * known).sum() / known.sum().clamp(min=1)
