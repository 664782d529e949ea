"""The workspace of recurrent layers against measured ones, an H200 under PyTorch 2.11 (`datasets/h200-v1`)."""

from __future__ import annotations

import pytest

from dippm.case import Mode
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm.network.recurrent import GATES, recurrent_workspace
from dippm.network.workload import workloads


def layer(
    kind: str, layers: int, both: bool, shape: tuple[int, int, int], width: int, dtype: str, *, onnx: bool = False
) -> ModelGraph:
    """One operator over [batch, steps, features] as PyTorch calls it, or over [steps, batch, features] as ONNX does."""
    batch, steps, features = shape
    rows, ways = GATES[kind] * width, 1 + both
    shapes: list[tuple[int, ...]] = [(batch, steps, features)]
    shapes += [(layers * ways, batch, width)] * (2 if kind == "lstm" else 1)
    if onnx:
        shapes = [(steps, batch, features), (ways, rows, features), (ways, rows, width), (ways, 2 * rows)]
    else:
        for number in range(layers):
            for _ in range(ways):
                shapes += [(rows, features if number == 0 else ways * width), (rows, width), (rows,), (rows,)]
    kinds = [ValueKind.INPUT] + [ValueKind.PARAMETER if len(s) < 3 or onnx else ValueKind.INPUT for s in shapes[1:]]
    values = [Value(TensorSpec(s, dtype), k) for s, k in zip(shapes, kinds, strict=True)]
    values.append(Value(TensorSpec((batch, steps, ways * width), dtype), ValueKind.RESULT, producer=0))
    operator = Operator(
        kind, f"onnx.{kind.upper()}" if onnx else f"aten.{kind}.input", tuple(range(len(shapes))), (len(shapes),),
        {} if onnx else {"batch_first": True, "bidirectional": both, "num_layers": layers, "has_biases": True},
    )  # fmt: skip
    return ModelGraph(tuple(values), (operator,), (0,), (len(shapes),), batch, format="pt2")


@pytest.mark.parametrize(
    ("kind", "layers", "both", "shape", "width", "dtype", "measured"),
    [
        ("lstm", 1, False, (512, 256, 256), 256, "float16", 481825024),
        ("lstm", 2, False, (3, 64, 512), 512, "float32", 36430112),
        ("lstm", 1, False, (128, 256, 128), 128, "float32", 395314432),
        ("lstm", 3, False, (512, 400, 128), 128, "bfloat16", 322185472),
        ("lstm", 2, False, (24, 128, 256), 256, "bfloat16", 32235968),
        ("lstm", 3, True, (128, 128, 1024), 1024, "bfloat16", 874611968),
        ("lstm", 1, True, (16384, 32, 192), 48, "float32", 3899105536),
        ("gru", 2, False, (512, 400, 768), 768, "bfloat16", 1600674048),
        ("gru", 1, True, (512, 400, 512), 512, "float32", 5916070144),
        ("gru", 3, True, (384, 64, 128), 128, "float32", 386534656),
    ],
)
def test_the_workspace_is_what_was_measured(
    kind: str, layers: int, both: bool, shape: tuple[int, int, int], width: int, dtype: str, measured: int
) -> None:
    graph = layer(kind, layers, both, shape, width, dtype)
    found = recurrent_workspace(graph, graph.operators[0], workloads(graph)[0], Mode.INFERENCE)
    assert found == pytest.approx(measured, rel=0.01)


def test_with_gradients_bfloat16_weights_are_packed_once() -> None:
    graph = layer("lstm", 2, False, (512, 128, 256), 256, "bfloat16")
    found = recurrent_workspace(graph, graph.operators[0], workloads(graph)[0], Mode.AUTOGRAD)
    assert found == pytest.approx(259002624, rel=0.001)


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("both", [False, True])
def test_an_onnx_file_s_layer_is_pytorch_s(kind: str, both: bool) -> None:
    sizes = [
        recurrent_workspace(graph, graph.operators[0], workloads(graph)[0], Mode.INFERENCE)
        for graph in (layer(kind, 1, both, (16, 20, 64), 96, "float32", onnx=onnx) for onnx in (False, True))
    ]
    assert sizes[0] == sizes[1]
