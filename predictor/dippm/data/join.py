"""Matches measured operator rows with the nodes of a graph: both are sequences of calls in the framework's order.

1. Each side is spelled as tokens: canonical kind and shape of the first output.
2. The longest common runs are aligned (`difflib`, no junk).
3. Between two aligned runs, views that are left are aligned by output shape alone (`view` against `flatten`).
4. Outside of inference mode the framework's calls arrive decomposed (`linear` as `t`, `view`, `addmm`, `view`):
   `align_decomposed` matches by elements instead of shapes, takes all matrix products for one kind, and counts what
   stands around a matched call as part of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from difflib import SequenceMatcher

from dippm.data.rows import MeasuredCall
from dippm.frontend.aten import KIND_BY_NAME, NOT_RUN, base_name
from dippm.graph import ModelGraph
from dippm.vocabulary import VIEWS

Token = tuple[str, tuple[int, ...]]
PRODUCTS = frozenset({"linear", "matmul", "batch_matmul"})
_NO_WORK = VIEWS | {"dropout", "copy", "full"}
_SAME_WORK = {**dict.fromkeys(PRODUCTS, "product"), "adaptive_avg_pool2d": "mean"}
_PREPARING = frozenset({"t", "transpose", "expand", "view", "_unsafe_view", "clone", "unsqueeze", "permute"})
_DECOMPOSED = {"cudnn_batch_norm": "batch_norm", "miopen_batch_norm": "batch_norm", "_cudnn_rnn": "lstm"}


def kind_of_call(call: MeasuredCall) -> str:
    """Canonical kind of a measured call; convolutions and products by the rank of what they are given."""
    name = base_name(call.target)
    ranks = [len(shape) for shape, _, _ in call.inputs[:2]]
    if name in ("convolution", "_convolution", "cudnn_convolution") and ranks:
        suffix = "_transpose" if ",True,[" in call.arguments else ""
        return f"conv{ranks[0] - 2}d{suffix}"
    if name == "matmul" and len(ranks) > 1 and min(ranks) > 2:
        return "batch_matmul"
    if name.startswith(("_scaled_dot_product", "_efficient_attention", "_flash_attention")):
        return "scaled_dot_product_attention"
    return _DECOMPOSED.get(name) or KIND_BY_NAME.get(name, "unknown")


def runs_something(call: MeasuredCall) -> bool:
    """Whether the call is one that a framework runs: checks and shape questions are left out."""
    return base_name(call.target) not in NOT_RUN and bool(call.outputs)


def tokens_of_graph(graph: ModelGraph) -> list[Token]:
    """One token per operator."""
    return [(o.kind, graph.values[o.outputs[0]].spec.shape) for o in graph.operators]


def tokens_of_calls(calls: Sequence[MeasuredCall]) -> list[Token]:
    """One token per measured row."""
    return [(kind_of_call(c), c.outputs[0][0] if c.outputs else ()) for c in calls]


def align(measured: Sequence[Token], nodes: Sequence[Token]) -> list[int]:
    """For each measured token the index of its node, or -1; indices that are not -1 only rise."""
    found = [-1] * len(measured)
    matcher = SequenceMatcher(None, measured, nodes, autojunk=False)
    left, right = 0, 0
    for block in matcher.get_matching_blocks():
        _align_loosely(measured, nodes, (left, block.a), (right, block.b), found)
        for offset in range(block.size):
            found[block.a + offset] = block.b + offset
        left, right = block.a + block.size, block.b + block.size
    return found


def align_decomposed(calls: Sequence[MeasuredCall], graph: ModelGraph) -> list[int]:
    """Step 4: for each measured row the index of the node that it is, or is a part of; -1 before the first match."""
    measured, nodes = tokens_of_calls(calls), tokens_of_graph(graph)
    rows = [i for i, token in enumerate(measured) if token[0] not in _NO_WORK]
    places = [i for i, token in enumerate(nodes) if token[0] not in _NO_WORK]
    whole = [-1] * len(measured)
    for row, place in longest_common(
        [_by_elements(measured[i]) for i in rows], [_by_elements(nodes[i]) for i in places]
    ):
        whole[rows[row]] = places[place]
    return _with_parts(calls, measured, whole)


def _with_parts(calls: Sequence[MeasuredCall], measured: Sequence[Token], whole: Sequence[int]) -> list[int]:
    """What prepares a matrix product belongs to it, anything else to the match before it (at the start: after it)."""
    found = list(whole)
    following = [-1] * len(found)
    upcoming = -1
    for row in range(len(found) - 1, -1, -1):
        following[row] = upcoming
        upcoming = row if whole[row] >= 0 else upcoming
    last = -1
    for row, node in enumerate(whole):
        if node >= 0:
            last = row
            continue
        after = following[row]
        prepares = after >= 0 and measured[after][0] in PRODUCTS and base_name(calls[row].target) in _PREPARING
        closes = last >= 0 and row == last + 1 and measured[last][0] in PRODUCTS and measured[row][0] == "reshape"
        belongs = after if (prepares and not closes) or last < 0 else last
        found[row] = whole[belongs] if belongs >= 0 else -1
    return found


def longest_common(left: Sequence[Token], right: Sequence[Token]) -> list[tuple[int, int]]:
    """Pairs of a longest common subsequence, in order."""
    lengths = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i in range(len(left) - 1, -1, -1):
        here, below, token = lengths[i], lengths[i + 1], left[i]
        for j in range(len(right) - 1, -1, -1):
            here[j] = below[j + 1] + 1 if token == right[j] else max(below[j], here[j + 1])
    pairs, i, j = [], 0, 0
    while i < len(left) and j < len(right):
        if left[i] == right[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif lengths[i + 1][j] >= lengths[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _by_elements(token: Token) -> Token:
    kind, shape = token
    return _SAME_WORK.get(kind, kind), (math.prod(shape),)


def _align_loosely(
    measured: Sequence[Token], nodes: Sequence[Token], rows: tuple[int, int], places: tuple[int, int], found: list[int]
) -> None:
    """Step 3, greedily and in order, inside one gap."""
    place = places[0]
    for row in range(*rows):
        kind, shape = measured[row]
        for candidate in range(place, places[1]):
            other, other_shape = nodes[candidate]
            if shape == other_shape and kind in VIEWS and other in VIEWS:
                found[row] = candidate
                place = candidate + 1
                break


def matched_share(calls: Sequence[MeasuredCall], found: Sequence[int]) -> float:
    """Share of the rows that run something and were matched."""
    rows = [index for index, call in enumerate(calls) if runs_something(call)]
    return sum(found[index] >= 0 for index in rows) / len(rows) if rows else 1.0
