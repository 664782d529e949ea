"""What PMGNS is trained to: every operator's labels, and the sum that a graph's device time is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, huber_loss

from dippm.network.model import OPERATOR_COLUMNS
from dippm.network.workspace import CLASSES, RATIO

TIME, RUNS, COUNT, LOG_RATIO = (
    OPERATOR_COLUMNS.index(c) for c in ("log_time_residual", "kernels_logit", "log_kernels", "workspace_log_ratio")
)
FIRST_CLASS = OPERATOR_COLUMNS.index(f"workspace:{CLASSES[0]}")


@dataclass(frozen=True, slots=True)
class OperatorTargets:
    """Labels of a batch of nodes, [n] each."""

    log_roofline: Tensor
    kernel_us: Tensor
    """NaN where it was not measured."""
    kernels: Tensor
    workspace_class: Tensor
    """-1 where it was not measured."""
    workspace_log_ratio: Tensor
    workspace_weight: Tensor
    is_view: Tensor
    graph_of: Tensor
    graphs: int


def operator_losses(columns: Tensor, target: OperatorTargets) -> dict[str, Tensor]:
    """Loss terms of a batch (scalars): kernel time of operators and of whole graphs, kernels, workspace."""
    measured = torch.isfinite(target.kernel_us)
    runs = measured & (target.kernels > 0) & (target.kernel_us > 0)
    log_time = target.log_roofline + columns[:, TIME]
    share = _time_share(target, runs)
    residual = log_time[runs] - torch.log(target.kernel_us[runs])
    time = (
        huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=0.3) * share
    ).sum() / share.sum().clamp(min=1)
    counts = torch.log(target.kernels[runs].float())
    return {
        "time": time,
        "graph_time": _graph_time(log_time, target, runs),
        "runs": binary_cross_entropy_with_logits(columns[measured, RUNS], runs[measured].float())
        if measured.any()
        else columns.sum() * 0,
        "kernels": huber_loss(columns[runs, COUNT], counts) if runs.any() else columns.sum() * 0,
        **_workspace(columns, target),
    }


def _time_share(target: OperatorTargets, runs: Tensor) -> Tensor:
    """Weight of each running operator: the root of its share of its graph's time, 1 for an average one."""
    us = torch.where(runs, target.kernel_us, torch.zeros_like(target.kernel_us))
    total = torch.zeros(target.graphs, device=us.device).index_add(0, target.graph_of, us)
    count = torch.zeros_like(total).index_add(0, target.graph_of, runs.float())
    mean = total / count.clamp(min=1)
    return (us / mean.clamp(min=1e-6)[target.graph_of])[runs].sqrt().clamp(0.1, 6.0)


def _graph_time(log_time: Tensor, target: OperatorTargets, runs: Tensor) -> Tensor:
    """Mean |log(sum of predicted times / sum of measured times)| over the graphs with measured times."""
    zero = torch.zeros(target.graphs, device=log_time.device)
    predicted = zero.index_add(0, target.graph_of[runs], torch.exp(log_time[runs].clamp(-4, 18)))
    measured = zero.index_add(0, target.graph_of[runs], target.kernel_us[runs])
    timed = measured > 0
    if not timed.any():
        return log_time.sum() * 0
    return torch.log(predicted[timed] / measured[timed]).abs().mean()


def _workspace(columns: Tensor, target: OperatorTargets) -> dict[str, Tensor]:
    known = (target.workspace_class >= 0) & ~target.is_view
    zero = columns.sum() * 0
    if not known.any():
        return {"workspace": zero, "workspace_ratio": zero}
    logits = columns[known, FIRST_CLASS : FIRST_CLASS + len(CLASSES)]
    weight = target.workspace_weight[known]
    entropy = cross_entropy(logits, target.workspace_class[known].long(), reduction="none")
    ratio = known & (target.workspace_class == RATIO)
    return {
        "workspace": (entropy * weight).sum() / weight.sum(),
        "workspace_ratio": huber_loss(columns[ratio, LOG_RATIO], target.workspace_log_ratio[ratio])
        if ratio.any()
        else zero,
    }
