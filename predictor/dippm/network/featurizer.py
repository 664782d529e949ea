"""Graph and case in, arrays out: what the network sees.

Nodes carry the paper's 32 features (`dippm.features`, Algorithm 1) and, beside them, the operator's workload on a log
scale; the kind is an index of its own (an embedding), with `unknown` as a slot. Edges are the data flow, both ways,
past the operators that do nothing in evaluation (`NO_OPS`): one exporter writes them down, another leaves them out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dippm.case import Case, Mode, Precision, Runtime
from dippm.features import node_features, static_features
from dippm.graph import ModelGraph
from dippm.network.guess import guessed_workspaces
from dippm.network.roofline import on_tensor_cores, peak_flops, roofline_us
from dippm.network.rules import Rules, workspace_rules
from dippm.network.workload import Workload, workloads
from dippm.strides import Strides, is_channels_last, is_contiguous, strides_of
from dippm.vocabulary import INDEX

VERSION = 4
"""Raised whenever a column changes its meaning; a bundle of another version is refused."""

NO_OPS = frozenset({"dropout", "identity"})
"""Kinds that hand their input on in evaluation. They keep their rows, but no edge leads to them and no sum counts them:
what is said of a network's other operators does not depend on whether they are written down."""
_SEEN_AS = {"permute": "transpose", "flatten": "reshape"}
"""Views that exporters spell either way have one kind here, as they have one slot in Algorithm 1."""
PAPER_WIDTH = 32
_DTYPES = ("float32", "float16", "bfloat16", "int64")
_PRECISIONS = tuple(Precision)
_MODES = tuple(Mode)
_LOG_COLUMNS = (
    "macs", "bytes_in", "bytes_out", "bytes_weight", "elements_in", "elements_out", "m", "n", "k", "products",
    "channels_in", "channels_out", "positions_in", "positions_out", "kernel_h", "kernel_w", "stride_h", "stride_w",
    "dilation", "groups", "last", "bytes_moved", "roofline_us", "intensity", "flops_time", "output_tiles",
    "group_width", "group_width_out", "padding_h", "padding_w", "taps", "arguments",
)  # fmt: skip
_FLAG_COLUMNS = (
    "is_view", "in_place", "transposed", "depthwise", "pointwise", "tensor_cores", "m_div8", "n_div8", "k_div8",
    "k_div4", "channels_in_div8", "channels_out_div8", "last_div8", "no_input", "fits_l2", "rank_3", "rank_4",
    "narrow", "addend", "nearest", "bilinear", "bicubic", "antialias", "group_in_div4", "group_in_div8",
    "group_in_div16", "group_in_div32", "group_in_div64", "group_out_div4", "group_out_div8", "group_out_div16",
    "group_out_div32", "group_out_div64", "square_kernel", "dilated", "keeps_positions",
)  # fmt: skip
_LAYOUT_COLUMNS = (
    "first_contiguous", "first_channels_last", "first_innermost", "first_expanded", "second_contiguous",
    "result_contiguous", "result_channels_last",
)  # fmt: skip
NODE_COLUMNS: tuple[str, ...] = (
    *(f"paper_{i}" for i in range(PAPER_WIDTH)),
    *(f"log_{name}" for name in _LOG_COLUMNS),
    *_FLAG_COLUMNS,
    *(f"dtype_{name}" for name in _DTYPES),
    *(f"precision_{p.value}" for p in _PRECISIONS),
    *(f"mode_{m.value}" for m in _MODES),
    *_LAYOUT_COLUMNS,
    "log_rule_workspace",
    "has_rule_workspace",
)
_NOTHING = tuple(
    name not in ("first_channels_last", "first_expanded", "result_channels_last") for name in _LAYOUT_COLUMNS
)
"""Layout of operands that are not there."""
_OWN_WIDTH = len(NODE_COLUMNS) - PAPER_WIDTH - len(_LAYOUT_COLUMNS) - 2
_RUNTIMES = (Runtime.EAGER, Runtime.GRAPH, Runtime.TORCHSCRIPT)
STATIC_COLUMNS: tuple[str, ...] = (
    "log_macs", "log_batch", "log_convs", "log_denses", "log_relus", "log_operators", "log_roofline_ms",
    "log_weight_bytes", "log_largest_output",
    *(f"precision_{p.value}" for p in _PRECISIONS),
    *(f"mode_{m.value}" for m in _MODES),
    *(f"runtime_{r.value}" for r in _RUNTIMES),
)  # fmt: skip
L2_BYTES = 50 * 2**20
_NO_OP_INDICES = np.array(sorted(INDEX[kind] for kind in NO_OPS))


@dataclass(frozen=True)
class Featurized:
    """One case as arrays (not yet standardised)."""

    work: tuple[Workload, ...]
    nodes: npt.NDArray[np.float32]
    """[n_operators, len(NODE_COLUMNS)]."""
    kinds: npt.NDArray[np.int64]
    """[n_operators], indices into `dippm.vocabulary.KINDS`."""
    rules: Rules
    """Workspace of each operator by the rule of its kind."""
    edges: npt.NDArray[np.int64]
    """[2, n_edges]: source, destination; data flow past `NO_OPS` and its reverse, sorted by destination."""
    statics: npt.NDArray[np.float32]
    """[len(STATIC_COLUMNS)]."""

    @cached_property
    def log_roofline(self) -> npt.NDArray[np.float64]:
        """log of `roofline_us`, [n_operators]: what the kernel times are residuals over."""
        return self.nodes[:, _ROOFLINE_COLUMN].astype(np.float64)


_ROOFLINE_COLUMN = NODE_COLUMNS.index("log_roofline_us")


def featurize(graph: ModelGraph, case: Case, work: tuple[Workload, ...] | None = None) -> Featurized:
    """Arrays of a graph that is already cast to the case's precision; `work`: its `workloads`, where they are known."""
    work = work if work is not None else workloads(graph)
    paper = np.asarray(node_features(graph), dtype=np.float32).reshape(len(work), PAPER_WIDTH)
    strides = strides_of(graph)
    rules = workspace_rules(graph, case, work, strides)
    guesses = [
        copied if exact else guess
        for guess, exact, copied in zip(guessed_workspaces(graph), rules.exact, rules.copied, strict=True)
    ]
    nodes = np.concatenate([paper, _node_rows(work, case), _layout_rows(graph, strides), _rule_rows(guesses)], axis=1)
    return Featurized(
        work=work,
        nodes=nodes,
        rules=rules,
        kinds=np.array([INDEX.get(_SEEN_AS.get(w.kind, w.kind), 0) for w in work], dtype=np.int64),
        edges=both_ways(past_no_ops(graph)),
        statics=_static_row(graph, case, work),
    )


def works(kinds: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which operators are none of `NO_OPS`, [n], by their kinds' indices [n]."""
    return ~np.isin(kinds, _NO_OP_INDICES)


def past_no_ops(graph: ModelGraph) -> tuple[tuple[int, int], ...]:
    """Data-flow edges between the operators that do something, sorted; what reaches one through `NO_OPS` is direct."""
    idle = [operator.kind in NO_OPS for operator in graph.operators]
    if not any(idle):
        return graph.edges
    sources: dict[int, set[int]] = {index: set() for index in range(len(idle))}
    for source, destination in sorted(graph.edges, key=lambda edge: edge[1]):
        sources[destination] |= sources[source] if idle[source] else {source}
    return tuple(sorted((source, index) for index, found in sources.items() if not idle[index] for source in found))


def both_ways(edges: tuple[tuple[int, int], ...]) -> npt.NDArray[np.int64]:
    """Data-flow edges and their reverse as [2, 2 x n_edges], sorted by destination."""
    forward = np.array(edges, dtype=np.int64).reshape(-1, 2).T
    both = np.concatenate([forward, forward[::-1]], axis=1)
    return np.ascontiguousarray(both[:, np.lexsort((both[0], both[1]))])


def _node_rows(work: Sequence[Workload], case: Case) -> npt.NDArray[np.float32]:
    """Workload columns of each operator, [n, _OWN_WIDTH]."""
    if not work:
        return np.zeros((0, _OWN_WIDTH), dtype=np.float32)
    distinct = {id(w): w for w in work}  # equal layers share theirs (`workloads`)
    place = {name: row for row, name in enumerate(distinct)}
    logs = np.array([_magnitudes(w, case.precision) for w in distinct.values()], dtype=np.float64)
    roofline = logs[:, _LOG_COLUMNS.index("roofline_us")].copy()
    logs = np.log1p(logs)
    logs[:, _LOG_COLUMNS.index("roofline_us")] = np.log(roofline)
    flags = np.array([_flags(w, case.precision) for w in distinct.values()], dtype=np.float64)
    constant = [
        *(float(case.precision is precision) for precision in _PRECISIONS),
        *(float(case.mode is mode) for mode in _MODES),
    ]
    rows = np.concatenate([logs, flags, np.tile(constant, (len(distinct), 1))], axis=1)
    return rows.astype(np.float32)[[place[id(w)] for w in work]]


def _layout_rows(graph: ModelGraph, strides: Sequence[Strides]) -> npt.NDArray[np.float32]:
    """How the operands of each operator lie in memory, [n, len(_LAYOUT_COLUMNS)]."""
    shapes = [value.spec.shape for value in graph.values]
    rows = []
    for operator in graph.operators:
        first, second, result = _NOTHING[:4], _NOTHING[4:5], _NOTHING[5:]
        if operator.inputs:
            shape, given = shapes[operator.inputs[0]], strides[operator.inputs[0]]
            first = (
                is_contiguous(shape, given),
                is_channels_last(shape, given),
                not given or given[-1] == 1 or shape[-1] == 1,
                0 in given and any(s == 0 and n > 1 for s, n in zip(given, shape, strict=True)),
            )
        if len(operator.inputs) > 1:
            second = (is_contiguous(shapes[operator.inputs[1]], strides[operator.inputs[1]]),)
        if operator.outputs:
            shape, given = shapes[operator.outputs[0]], strides[operator.outputs[0]]
            result = is_contiguous(shape, given), is_channels_last(shape, given)
        rows.append(first + second + result)
    return np.array(rows, dtype=np.float32).reshape(-1, len(_LAYOUT_COLUMNS))


def _rule_rows(rules: Sequence[int]) -> npt.NDArray[np.float32]:
    """Workspace by rule: on a log scale, and whether there is one, [n, 2]."""
    return np.array([(math.log1p(r), float(r > 0)) for r in rules], dtype=np.float32).reshape(-1, 2)


def _magnitudes(w: Workload, precision: Precision) -> tuple[float, ...]:
    """By `_LOG_COLUMNS`, before the logarithm."""
    moved = w.bytes_moved
    tiles = w.products * -(-w.m // 128) * -(-w.n // 128)
    return (
        w.macs, w.bytes_in, w.bytes_out, w.bytes_weight, w.elements_in, w.elements_out, w.m, w.n, w.k, w.products,
        w.channels_in, w.channels_out, w.positions_in, w.positions_out, *w.kernel, *w.stride,
        w.dilation, w.groups, w.last, moved, roofline_us(w, precision), 2 * w.macs / moved if moved else 0.0,
        2e6 * w.macs / peak_flops(w, precision), tiles, w.channels_in // w.groups, w.channels_out // w.groups,
        *w.padding, w.kernel[0] * w.kernel[1], w.arguments,
    )  # fmt: skip


def _flags(w: Workload, precision: Precision) -> tuple[bool, ...]:
    """By `_FLAG_COLUMNS` and `_DTYPES`."""
    widths = (w.channels_in // w.groups, w.channels_out // w.groups)
    return (
        w.is_view, w.in_place, w.transposed, w.groups > 1 and w.groups == w.channels_in, w.kernel == (1, 1),
        on_tensor_cores(w, precision), w.m % 8 == 0, w.n % 8 == 0, w.k % 8 == 0, w.k % 4 == 0,
        w.channels_in % 8 == 0, w.channels_out % 8 == 0, w.last % 8 == 0, w.bytes_in == 0, w.bytes_moved < L2_BYTES,
        w.rank == 3, w.rank == 4, w.channels_in <= 4, bool(w.macs) and w.arguments == 3, "nearest" in w.target,
        "bilinear" in w.target, "bicubic" in w.target, "_aa" in w.target,
        *(width % multiple == 0 for width in widths for multiple in (4, 8, 16, 32, 64)),
        w.kernel[0] == w.kernel[1], w.dilation > 1, w.positions_in == w.positions_out,
        *(w.dtype == dtype for dtype in _DTYPES),
    )  # fmt: skip


def _static_row(graph: ModelGraph, case: Case, work: tuple[Workload, ...]) -> npt.NDArray[np.float32]:
    """The paper's five static features (equation 1) on a log scale, and the case beside them."""
    static = static_features(graph)
    weights = sum(graph.values[i].spec.nbytes for i in graph.parameter_ids)
    row = [
        *(math.log1p(v) for v in (static.macs, static.batch, static.convs, static.denses, static.relus)),
        math.log1p(sum(w.kind not in NO_OPS for w in work)),
        math.log(max(1e-6, sum(roofline_us(w, case.precision) for w in work if not w.is_view) / 1e3)),
        math.log1p(weights),
        math.log1p(max((w.bytes_out for w in work), default=0)),
        *(float(case.precision is precision) for precision in _PRECISIONS),
        *(float(case.mode is mode) for mode in _MODES),
        *(float(case.runtime is runtime) for runtime in _RUNTIMES),
    ]
    return np.array(row, dtype=np.float32)
