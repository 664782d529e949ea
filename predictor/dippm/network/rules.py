"""Workspaces that follow from a rule: of every kind where nothing better is known, of attention always."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dippm.case import Case
from dippm.graph import ModelGraph
from dippm.network.attention import KIND, attention_workspace
from dippm.network.strides import Strides
from dippm.network.workload import Workload
from dippm.replay.workspace import workspace_bytes

GATES: Mapping[str, int] = {"lstm": 4, "gru": 3, "rnn": 1}
ALWAYS = frozenset({KIND, *GATES})
"""Kinds whose rule is taken although their workspace was measured: which kernel PyTorch picks for attention is no
matter of statistics, and of recurrent layers too few are measured (of 36 held-back cases the network was 25 % off, the
rule 16 %)."""


def workspace_rules(
    graph: ModelGraph, case: Case, work: Sequence[Workload], strides: Sequence[Strides]
) -> tuple[int, ...]:
    """Workspace of each operator by rule, bytes; that of `dippm.replay.workspace` where there is no better one here."""
    out = []
    for operator, w, otherwise in zip(graph.operators, work, workspace_bytes(graph), strict=True):
        if operator.kind == KIND and len(operator.inputs) >= 3:
            out.append(attention_workspace(graph, operator, strides, case.runtime))
        elif (gates := GATES.get(operator.kind)) is not None:
            # cuDNN packs the weights anew and keeps the gates of all steps, of inputs and of states.
            out.append(w.bytes_weight + 2 * gates * w.bytes_out)
        else:
            out.append(otherwise)
    return tuple(out)
