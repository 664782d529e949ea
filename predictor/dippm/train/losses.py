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
    """Loss terms of a batch (scalars): kernel time of operators and of whole graphs, kernels, workspace.

    Masks instead of picked rows: the host never waits for the device to count them.
    """
    measured = torch.isfinite(target.kernel_us)
    kernel_us = torch.where(measured, target.kernel_us, torch.ones_like(target.kernel_us))
    runs = measured & (target.kernels > 0) & (kernel_us > 0)
    kernel_us = torch.where(runs, kernel_us, torch.ones_like(kernel_us))
    log_time = target.log_roofline + columns[:, TIME]
    share = _time_share(kernel_us, runs, target)
    residual = torch.where(runs, log_time - torch.log(kernel_us), torch.zeros_like(log_time))
    time = huber_loss(residual, torch.zeros_like(residual), reduction="none", delta=0.3)
    counts = torch.log(target.kernels.clamp(min=1).float())
    occurs = binary_cross_entropy_with_logits(columns[:, RUNS], runs.float(), reduction="none")
    return {
        "time": (time * share).sum() / share.sum().clamp(min=1),
        "graph_time": _graph_time(log_time, kernel_us, runs, target),
        "runs": _mean(occurs, measured),
        "kernels": _mean(huber_loss(columns[:, COUNT], counts, reduction="none"), runs),
        **_workspace(columns, target),
    }


def _mean(values: Tensor, of: Tensor) -> Tensor:
    """Mean over some entries; 0 where there are none."""
    return (values * of).sum() / of.sum().clamp(min=1)


def _time_share(kernel_us: Tensor, runs: Tensor, target: OperatorTargets) -> Tensor:
    """Weight of each operator: the root of its share of its graph's time, 1 for an average one, 0 where none runs."""
    us = kernel_us * runs
    total = torch.zeros(target.graphs, device=us.device).index_add(0, target.graph_of, us)
    count = torch.zeros_like(total).index_add(0, target.graph_of, runs.float())
    mean = total / count.clamp(min=1)
    return (us / mean.clamp(min=1e-6)[target.graph_of]).sqrt().clamp(0.1, 6.0) * runs


def _graph_time(log_time: Tensor, kernel_us: Tensor, runs: Tensor, target: OperatorTargets) -> Tensor:
    """Mean |log(sum of predicted times / sum of measured times)| over the graphs with measured times."""
    zero = torch.zeros(target.graphs, device=log_time.device)
    predicted = zero.index_add(0, target.graph_of, torch.exp(log_time.clamp(-4, 18)) * runs)
    measured = zero.index_add(0, target.graph_of, kernel_us * runs)
    timed = measured > 0
    one = torch.ones_like(zero)
    off = torch.log(torch.where(timed, predicted, one) / torch.where(timed, measured, one)).abs()
    return _mean(off, timed)


def _workspace(columns: Tensor, target: OperatorTargets) -> dict[str, Tensor]:
    known = (target.workspace_class >= 0) & ~target.is_view
    logits = columns[:, FIRST_CLASS : FIRST_CLASS + len(CLASSES)]
    weight = target.workspace_weight * known
    entropy = cross_entropy(logits, target.workspace_class.clamp(min=0).long(), reduction="none")
    ratio = known & (target.workspace_class == RATIO)
    off = huber_loss(columns[:, LOG_RATIO], target.workspace_log_ratio, reduction="none")
    return {
        "workspace": (entropy * weight).sum() / weight.sum().clamp(min=1e-6),
        "workspace_ratio": _mean(off, ratio),
    }
