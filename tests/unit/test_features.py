"""Algorithm 1 and equation 1, against a golden file and by properties."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dippm.artifact import open_artifact
from dippm.features import NODE_FEATURES, OPERATORS, RECURRENT, node_features, operator_macs, static_features
from dippm.frontend import graph_from_module, load_graph
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm.network.workload import workloads
from dippm.signature import signature
from dippm.vocabulary import KINDS

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "frontend" / "resnet50.json"


def described(graph: ModelGraph) -> list[dict[str, object]]:
    """One line an operator: what it is called, what it is made of, and the columns of its features that are not 0."""
    rows = node_features(graph)
    return [
        {
            "signature": signature(graph, index),
            "scope": operator.scope[-1] if operator.scope else "",
            "relax": list(operator.relax),
            "features": {str(c): float(v) for c, v in enumerate(rows[index]) if v},
        }
        for index, operator in enumerate(graph.operators)
    ]


def test_resnet50_is_described_as_on_file() -> None:
    """IR to features. To write the file anew: `UPDATE_GOLDEN=1 pytest tests/unit/test_features.py`."""
    found = described(load_graph(open_artifact(ROOT / "examples" / "models" / "resnet50.onnx"), batch=2))
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.parent.mkdir(parents=True, exist_ok=True)
        GOLDEN.write_text("[\n" + ",\n".join(json.dumps(line) for line in found) + "\n]\n")
    assert found == json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("batch", [1, 16])
def test_resnet50_has_4_09_g_multiply_accumulates_an_image(batch: int) -> None:
    graph = load_graph(open_artifact(ROOT / "examples" / "models" / "resnet50.onnx"), batch=batch)
    static = static_features(graph)
    assert static.macs / batch == pytest.approx(4.09e9, rel=0.01)
    assert (static.batch, static.convs, static.denses, static.relus) == (batch, 53, 1, 49)
    assert static.as_array().tolist() == pytest.approx([static.macs, batch, 53, 1, 49], rel=1e-6)


class Products(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.depthwise = torch.nn.Conv2d(4, 4, 3, groups=4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.depthwise(self.up(x)).flatten(2)
        attention = torch.nn.functional.scaled_dot_product_attention(x, x, x)
        return y @ y.transpose(1, 2), torch.addmm(x[0, 0, 0], x[0, 0], x[0, 1]), attention


def test_each_kind_of_product_is_counted() -> None:
    graph = graph_from_module(Products().to("meta").eval(), [torch.empty(2, 8, 6, 6, device="meta")], batch=2)
    found = {o.kind: operator_macs(graph, o) for o in graph.operators if operator_macs(graph, o)}
    assert found == {
        "conv2d_transpose": 2 * 8 * 6 * 6 * (4 * 2 * 2),
        "conv2d": 2 * 4 * 10 * 10 * 9,
        "batch_matmul": 2 * 4 * 4 * 100,
        "linear": 6 * 6 * 6,
        "scaled_dot_product_attention": 2 * 8 * 6 * 6 * (6 + 6),
    }


@st.composite
def operators(draw: st.DrawFn) -> ModelGraph:
    """A graph of one operator of any kind, with any shape and attributes."""
    shape = tuple(draw(st.lists(st.integers(1, 64), max_size=6)))
    pairs = st.tuples(st.integers(0, 9), st.integers(0, 9))
    attributes = draw(st.dictionaries(st.sampled_from(["stride", "padding", "dilation", "kernel_size"]), pairs))
    operator = Operator(draw(st.sampled_from(KINDS)), "any", (0,), (1,), attributes)
    spec = TensorSpec(shape, "float32")
    values = (Value(spec, ValueKind.INPUT), Value(spec, ValueKind.RESULT, producer=0))
    return ModelGraph(values, (operator,), (0,), (1,), batch=1)


@pytest.mark.parametrize(("layer", "gates"), [(torch.nn.LSTM, 4), (torch.nn.GRU, 3), (torch.nn.RNN, 1)])
def test_recurrent_layers_count_at_every_step_whatever_the_door(
    layer: type[torch.nn.RNNBase], gates: int, tmp_path: Path
) -> None:
    module = layer(24, 32, num_layers=2, bidirectional=True, batch_first=True).eval()
    steps = 3 * 10
    wanted = steps * 2 * gates * 32 * ((24 + 32) + (64 + 32))
    inputs = torch.zeros(3, 10, 24)
    path = tmp_path / "recurrent.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (inputs,), str(path), dynamo=False)
    for graph in (graph_from_module(module, [inputs], batch=3), load_graph(open_artifact(path), batch=3)):
        recurrent = [i for i, o in enumerate(graph.operators) if o.kind in RECURRENT]
        assert static_features(graph).macs == wanted
        assert sum(workloads(graph)[i].macs for i in recurrent) == wanted


@given(operators())
def test_every_operator_has_exactly_one_slot_and_unknown_is_one(graph: ModelGraph) -> None:
    table = node_features(graph)
    assert table.shape == (1, NODE_FEATURES) == (1, 32)
    assert table.dtype == np.float32
    assert table[0, : len(OPERATORS)].sum() == 1.0
    assert np.isfinite(table).all()
    dims = graph.values[1].spec.shape[:4]
    assert table[0, 28 : 28 + len(dims)].tolist() == list(dims)
    assert not table[0, 28 + len(dims) :].any()
