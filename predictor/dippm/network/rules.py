"""Workspaces that follow from a rule: of every kind where nothing better is known, of some kinds always."""

from __future__ import annotations

from collections.abc import Sequence

from dippm.case import Case
from dippm.graph import ModelGraph
from dippm.network.attention import KIND, attention_workspace
from dippm.network.recurrent import GATES, recurrent_workspace
from dippm.network.strides import Strides
from dippm.network.workload import Workload
from dippm.replay.workspace import workspace_bytes

ALWAYS = frozenset({KIND, *GATES})
"""Kinds whose rule is taken although their workspace was measured: which kernel PyTorch picks for attention and which
buffers cuDNN asks for are no matter of statistics."""


def workspace_rules(
    graph: ModelGraph, case: Case, work: Sequence[Workload], strides: Sequence[Strides]
) -> tuple[int, ...]:
    """Workspace of each operator by rule, bytes; that of `dippm.replay.workspace` where there is no better one here."""
    out = []
    for operator, w, otherwise in zip(graph.operators, work, workspace_bytes(graph), strict=True):
        if operator.kind == KIND and len(operator.inputs) >= 3:
            out.append(attention_workspace(graph, operator, strides, case.runtime))
        elif operator.kind in GATES:
            out.append(recurrent_workspace(graph, operator, w, case.mode))
        else:
            out.append(otherwise)
    return tuple(out)
