"""The data set: joining rows with graphs, packing and reading back, and what the published one holds."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dippm.case import Mode, Precision
from dippm.data import DataSet
from dippm.data.batches import TEMPLATE_BATCH, at_batch
from dippm.data.call_store import CallWriter, describe, replayed
from dippm.data.card import BEGIN, END, render
from dippm.data.footprints import doubling
from dippm.data.graph_store import GraphReader, GraphWriter
from dippm.data.join import align, align_decomposed, kind_of_call, matched_share, tokens_of_calls, tokens_of_graph
from dippm.data.pack import Graphs, call_of, pack, write
from dippm.data.reader import node_labels
from dippm.data.rows import MeasuredCall, OperatorRows
from dippm.data.symbols import Shapes, concrete, symbolic
from dippm.errors import DippmError
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm.measure.operators import argument_text
from dippm.zoo.declare import near_boundary

ROOT = Path(__file__).parents[2] / "datasets" / "h200-v1"


def chain(batch: int = TEMPLATE_BATCH) -> ModelGraph:
    """linear, relu, dropout over [batch, 4, 8]."""
    x = TensorSpec((batch, 4, 8), "float32")
    values = (
        Value(x, ValueKind.INPUT),
        Value(TensorSpec((8, 8), "float32"), ValueKind.PARAMETER),
        Value(x, ValueKind.RESULT, 0),
        Value(x, ValueKind.RESULT, 1),
        Value(x, ValueKind.RESULT, 2, alias_of=3),
    )
    operators = (
        Operator("linear", "aten.linear.default", (0, 1), (2,)),
        Operator("relu", "aten.relu.default", (2,), (3,)),
        Operator("dropout", "aten.dropout.default", (3,), (4,)),
    )
    return ModelGraph(values, operators, (0,), (4,), batch, "pt2")


def call(target: str, shape: tuple[int, ...], net: int = 0, peak: int = 0, inputs: int = 1) -> MeasuredCall:
    tensor = (shape, "float32", "")
    events = (peak, net - peak) if peak > net else (net,) if net else ()
    return MeasuredCall(f"aten.{target}", (tensor,) * inputs, "T", (tensor,), (-1,), net, peak, events)


EAGER = [call("linear.default", (2, 4, 8), 512, 2048, 2), call("relu.default", (2, 4, 8), 512, 512)]
DECOMPOSED = [
    call("t.default", (8, 8)),
    call("view.default", (8, 8)),
    call("addmm.default", (8, 8), 512, 1024, 3),
    call("view.default", (2, 4, 8)),
    call("relu.default", (2, 4, 8), 512, 512),
    call("detach.default", (2, 4, 8)),
]


def test_rows_find_their_nodes_in_order() -> None:
    graph = at_batch(chain(), 2)
    assert align(tokens_of_calls(EAGER), tokens_of_graph(graph)) == [0, 1]
    with_more = [call("isinf.default", (2, 4, 8)), *EAGER]
    assert align(tokens_of_calls(with_more), tokens_of_graph(graph)) == [-1, 0, 1]
    assert matched_share(with_more, [-1, 0, 1]) == pytest.approx(2 / 3)


def test_views_of_any_spelling_match_by_their_shape() -> None:
    assert align([("reshape", (4,)), ("relu", (4,))], [("flatten", (4,)), ("relu", (4,))]) == [0, 1]
    assert align([("add", (4,)), ("relu", (4,))], [("flatten", (4,)), ("relu", (4,))]) == [-1, 1]
    assert align([("add", (4,)), ("relu", (4,))], [("multiply", (4,)), ("relu", (4,))]) == [-1, 1]


def test_decomposed_calls_become_parts_of_the_frameworks_call() -> None:
    assert align_decomposed(DECOMPOSED, at_batch(chain(), 2)) == [0, 0, 0, 0, 1, 1]


def test_kinds_are_those_of_the_graph() -> None:
    assert kind_of_call(call("convolution.default", (1, 2, 3, 4))) == "conv2d"
    assert kind_of_call(call("_scaled_dot_product_cudnn_attention.default", (1,))) == "scaled_dot_product_attention"
    assert kind_of_call(call("relu_.default", (1,))) == "relu"
    assert kind_of_call(call("of_tomorrow.default", (1,))) == "unknown"


def test_a_template_scales_with_the_batch_alone() -> None:
    graph = at_batch(chain(), 5)
    assert graph.batch == 5
    assert [v.spec.shape for v in graph.values] == [(5, 4, 8), (8, 8), (5, 4, 8), (5, 4, 8), (5, 4, 8)]
    with pytest.raises(ValueError, match=r"a template graph has a batch of \(61,"):
        at_batch(graph, 3)


CASE = "abc-b2-fp32-inference-eager-default"
RUN = dict.fromkeys(("driver", "cuda", "cudnn", "torch", "timm", "transformers", "python", "host", "kernel"), "x")
RUNS = [
    {"provenance": {**RUN, "run": run, "gpu": gpu, "gpu_uuid": run, "started": "now"}}
    for run, gpu in (("first", "NVIDIA H200"), ("second", "NVIDIA H200"), ("third", "NVIDIA H100"))
]


def listed() -> dict[str, dict[str, Any]]:
    network = {"architecture": "chain", "source": "handwritten", "model": "chain", "kwargs": {}, "inputs": []}
    case = {
        "id": CASE, "network": network, "family": "f", "super_family": "s", "batch": 2, "precision": "fp32",
        "mode": "inference", "runtime": "eager", "allocator": "default",
    }  # fmt: skip
    return {CASE: case}


def row(run: str, status: str = "ok", **labels: Any) -> dict[str, Any]:
    calls = [[c.target, c.inputs, c.arguments, c.outputs, c.views, c.net_bytes, c.peak_bytes, c.events] for c in EAGER]
    operators = {
        "calls": calls, "sequence": [0, 1, 1], "freed_bytes": [0, 0, 512], "kernel_us": [3.5, 1.0, 1.0],
        "kernels": [2, 1, 1],
    }  # fmt: skip
    measured = {"operators": operators, "allocated_mib": 3.0} if status == "ok" else {}
    return {
        "case": CASE, "purpose": "labels", "status": status, "reason": "", "timed": True, "run": run, "cases_before": 0,
        **measured, **labels,
    }  # fmt: skip


def stored() -> Graphs:
    return Graphs([(("abc", TEMPLATE_BATCH, "float32"), chain())])


def test_packing_and_reading_give_the_same_rows(tmp_path: Path) -> None:
    cap = {"case": CASE, "purpose": "min_cap", "status": "ok", "run": "first", "min_cap_steady_mib": 4.0}
    write(pack([*RUNS, row("first"), cap], listed(), stored()), tmp_path)

    data = DataSet(tmp_path)
    (found,) = data.cases()
    assert (found.id, found.allocated_mib, found.min_cap_steady_mib, found.context_fresh) == (CASE, 3.0, 4.0, True)
    assert found.energy_j is None
    assert found.case.device == "H200"
    graph = data.graph(found)
    assert graph == at_batch(chain(), 2)
    rows = data.operators(found)
    assert list(rows.calls) == [EAGER[0], EAGER[1], EAGER[1]]
    assert rows.node.tolist() == [0, 1, -1]
    labels = data.node_labels(found, graph)
    assert labels.measured.tolist() == [True, True, False]
    assert labels.workspace_bytes.tolist() == [1536, 0, -1]
    assert labels.kernel_us[:2].tolist() == [3.5, 1.0]
    assert labels.kernels.tolist() == [2, 1, -1]
    assert labels.events == ((2048, -1536), (512,), None)


def test_the_first_row_with_labels_counts_and_others_are_repeats(tmp_path: Path) -> None:
    rows = [
        row("first", "failed"), row("third", allocated_mib=9.0), row("first", allocated_mib=4.0),
        row("second", allocated_mib=5.0), row("second", "failed"),
    ]  # fmt: skip
    write(pack([*RUNS, *rows], listed(), stored()), tmp_path)
    data = DataSet(tmp_path)
    assert [(c.allocated_mib, c.run) for c in data.cases(status=None)] == [(4.0, "first")]
    assert [(r["allocated_mib"], r["run"]) for r in data.rows("repeats")] == [(9.0, "third"), (5.0, "second")]


def test_a_timed_row_stands_before_an_earlier_one_of_memory_alone(tmp_path: Path) -> None:
    cap = {"case": CASE, "purpose": "min_cap", "status": "ok", "run": "first", "min_cap_steady_mib": 4.0}
    write(pack([*RUNS, row("first"), cap], listed(), stored()), tmp_path / "base")
    base = DataSet(tmp_path / "base")
    timed = row("second", allocated_mib=5.0, device_ms=2.0)
    write(pack([*RUNS, timed, row("second", device_ms=7.0)], listed(), Graphs([], base), base), tmp_path / "more")
    more = DataSet(tmp_path / "more")
    (case,) = more.cases()
    assert (case.run, case.allocated_mib, case.device_ms, case.min_cap_steady_mib) == ("second", 5.0, 2.0, 4.0)
    repeats = [(r["run"], r["allocated_mib"], r["device_ms"], r["min_cap_steady_mib"]) for r in more.rows("repeats")]
    assert repeats == [("first", 3.0, None, None), ("second", 3.0, 7.0, None)]


def test_rows_are_added_to_a_base(tmp_path: Path) -> None:
    write(pack([*RUNS, row("first")], listed(), stored()), tmp_path / "base")
    base = DataSet(tmp_path / "base")
    packed = pack([*RUNS, row("second", allocated_mib=5.0)], listed(), Graphs([], base), base)
    write(packed, tmp_path / "more")
    more = DataSet(tmp_path / "more")
    assert more.cases() == base.cases()
    assert more.operators(more.cases()[0]).calls == base.operators(base.cases()[0]).calls
    assert more.graph(more.cases()[0]) == base.graph(base.cases()[0])
    assert [r["run"] for r in more.rows("repeats")] == ["second"]
    once_more = pack([*RUNS, row("first"), row("second")], listed(), Graphs([], more), more)
    assert len(once_more.repeats) == 1


def test_a_storage_is_not_spelled_byte_by_byte() -> None:
    written = "T, 0\n 127\n 3\n[torch.storage.UntypedStorage(device=cuda:0) of size 3],0,[3]"
    assert call_of(["aten.set_", [], written, [], [], 0, 0, []]).arguments == "T,storage,0,[3]"
    assert argument_text(torch.zeros(2).untyped_storage()) == "storage"


def test_rows_of_onnx_runtime_have_a_table_of_their_own(tmp_path: Path) -> None:
    name = "abc-b2-fp16-inference-onnxruntime-default;batch_axis=fixed"
    ort = {"case": name, "purpose": "onnxruntime", "status": "ok", "run": "first", "provider_options": {"a": "1"}}
    packed = pack([*RUNS, row("first"), {**ort, "memory_mib": 7.0}, {**ort, "min_cap_mib": 5.0}], listed(), stored())
    write(packed, tmp_path)
    (found,) = DataSet(tmp_path).rows("onnxruntime")
    assert (found["id"], found["architecture"], found["batch"], found["precision"]) == (name, "chain", 2, "fp16")
    assert (found["memory_mib"], found["min_cap_mib"], found["provider_options"]) == (7.0, 5.0, '{"a": "1"}')
    with pytest.raises(ValueError, match="no case of the list is of this network"):
        pack([*RUNS, {**ort, "case": name.replace("abc", "def")}], listed(), stored())


def test_a_template_that_may_not_scale_is_told_until_it_is_made_again() -> None:
    chance = chain()
    values = (replace(chance.values[0], spec=TensorSpec((61, 4, 122), "float32")), *chance.values[1:])
    name = ("abc", TEMPLATE_BATCH, "float32")
    once = Graphs([(name, replace(chance, values=values))])
    again = Graphs([(name, replace(chance, values=values)), (("abc", 67, "float32"), replace(chance, batch=67))])
    assert (once.doubtful, again.doubtful) == ({"abc"}, set())
    assert again.names() == [("abc", 67, "float32")]


def test_calls_are_written_for_every_batch_and_precision() -> None:
    template = chain()
    for batch, dtype in ((1, "float32"), (4, "float16"), (8, "bfloat16")):
        tensors = tuple((v.spec.shape, dtype, "") for v in at_batch(template, batch).values[:3])
        view = (((batch * 4, 8), dtype, "nc"),)
        calls = [
            MeasuredCall("aten.linear.default", tensors[:2], "T,T", tensors[2:], (-1,), 0, 0, ()),
            MeasuredCall("aten.view.default", tensors[2:], f"T,[{batch * 4},8],dtype={dtype}", view, (0,), 0, 0, ()),
        ]
        written = [symbolic(c, Shapes(template, batch), dtype) for c in calls]
        assert written == [
            ("aten.linear.default", "F[B,4,8] F[8,8]", "T,T", "F[B,4,8]", "-1"),
            ("aten.view.default", "F[B,4,8]", "T,$0,dtype=$F", "F[B*4,8]:nc", "0"),
        ]
        assert [concrete(w, batch, dtype) for w in written] == [(c.inputs, c.arguments, c.outputs) for c in calls]


@given(st.lists(st.sampled_from([512, 700, 1024, 3000, 4096, -512, -700, -1024, -3000, -4096]), max_size=8))
def test_any_order_of_allocations_reads_back(events: list[int]) -> None:
    inputs, outputs = (((256,), "float16", ""),), (((256,), "float32", ""), ((256,), "float32", ""))
    order, sizes = describe(events, inputs, outputs)
    given_sizes = iter(sizes)
    assert replayed(order, inputs, outputs, lambda: next(given_sizes)) == tuple(events)


def test_parts_of_a_call_are_added_up() -> None:
    parts = (call("clone.default", (8,), 512, 512), call("bmm.default", (8,), 256, 1024))
    rows = OperatorRows(
        parts,
        np.array([0, 0], np.int32),
        np.zeros(2, np.int64),
        np.array([1, 2], np.float32),
        np.array([1, 3], np.int16),
    )
    labels = node_labels(rows, 1)
    assert labels.net_bytes.tolist() == [768]
    assert labels.workspace_bytes.tolist() == [512 + 1024 - 768]
    assert (labels.kernel_us.tolist(), labels.kernels.tolist()) == ([3.0], [4])


@pytest.fixture(scope="module")
def published() -> DataSet:
    return DataSet(ROOT)


def test_the_published_set_is_what_issue_and_card_promise(published: DataSet) -> None:
    cases = published.cases()
    labelled = [c for c in cases if c.footprint_mib is not None]
    assert len(labelled) >= 11_000
    assert len(labelled) >= 0.98 * len(cases)
    assert len({c.network for c in labelled}) >= 3_000
    assert len({c.architecture for c in labelled if c.source == "random"}) >= 1_500
    assert len({c.super_family for c in labelled}) >= 35
    assert sum(c.mode is Mode.AUTOGRAD for c in labelled) >= 0.05 * len(labelled)
    assert {c.precision for c in labelled} == set(Precision)
    assert sum((c.activations_mib or 0) > (c.allocated_mib or 0) / 2 for c in labelled) >= len(labelled) / 3
    doublings = Counter(doubling(c.footprint_mib or 0.0) for c in labelled)
    assert all(doublings[number] >= 1_000 for number in range(7))
    assert doublings[7] >= 100
    searched = [c.footprint_mib or 0.0 for c in labelled if c.min_cap_steady_mib is not None]
    assert len(searched) >= 1_500
    assert sum(map(near_boundary, searched)) >= 750
    assert len({c.id for c in cases}) == len(cases)
    assert sum(path.stat().st_size for path in ROOT.iterdir()) < 27 * 2**20


def test_published_rows_and_graphs_can_be_written_again_without_loss(published: DataSet, tmp_path: Path) -> None:
    cases = published.cases(joined=True)[::89]
    calls, graphs = CallWriter(), GraphWriter()
    names = sorted({name for name in published.stored_graphs() if name[0] in {c.network for c in cases}})
    for name in names:
        graphs.add(name, published.stored_graph(name))
    for case in cases:
        rows, dtype = published.operators(case), case.precision.float_dtype
        shapes = Shapes(published.stored_graph(next(n for n in names if n[0] == case.network)), case.batch)
        calls.add(case.id, case.network, calls.program(rows.calls, shapes, dtype), rows)
    calls.write(tmp_path)
    graphs.write(tmp_path)
    again, reader = DataSet(tmp_path), GraphReader(tmp_path)
    for case in cases:
        before, after = published.operators(case), again.rows_of(case.id, case.batch, case.precision.float_dtype)
        assert before.calls == after.calls
        for column in ("node", "freed_bytes", "kernel_us", "kernels"):
            assert np.array_equal(getattr(before, column), getattr(after, column)), column
    for name in names:
        graph = published.stored_graph(name)
        assert reader.graph(name) == graph
        assert reader.digest(name) == graph.digest


def test_at_least_98_percent_of_the_published_rows_are_matched(published: DataSet) -> None:
    shares = [c.matched_share for c in published.cases(joined=True) if c.mode is Mode.INFERENCE]
    assert None not in shares
    assert sum(s or 0 for s in shares) / len(shares) >= 0.98


def test_published_rows_and_graphs_speak_of_the_same_tensors(published: DataSet) -> None:
    cases = [c for c in published.cases(joined=True) if c.mode is Mode.INFERENCE][::97]
    for case in cases:
        graph, rows = published.graph(case), published.operators(case)
        for measured, node in zip(rows.calls, rows.node.tolist(), strict=True):
            if node >= 0:
                assert graph.values[graph.operators[node].outputs[0]].spec.shape == measured.outputs[0][0], case.id


def test_the_card_is_the_one_of_these_tables() -> None:
    text = (ROOT / "README.md").read_text()
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == render(ROOT)


KEEP_BIASES = ("levit", "tiny_vit")
"""The first pass of these leaves each layer's attention biases behind, spelled out: weights that no file holds."""


def test_published_graphs_hold_the_weights_that_were_measured(published: DataSet) -> None:
    for case in published.cases(joined=True)[::41]:
        if case.family in KEEP_BIASES:
            continue
        graph = published.graph(case)
        placed = sum(
            value.spec.nbytes
            for value in graph.values
            if value.alias_of is None and (value.kind.is_state or value.kind is ValueKind.INPUT)
        )
        assert case.weights_mib is not None
        assert placed / 2**20 == pytest.approx(case.weights_mib, rel=0.06, abs=3), case.id


def test_without_pyarrow_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "cases.parquet").write_bytes(b"")
    with pytest.raises(DippmError, match=r"pip install 'dippm\[train\]'"):
        DataSet(tmp_path).rows("cases")
