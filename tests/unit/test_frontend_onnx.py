"""ONNX files: shapes made static, weights never read, nonsense refused in one sentence."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dippm.artifact import open_artifact
from dippm.errors import DippmError, InputShapeError, ModelFormatError, UnsupportedOperator
from dippm.features import operator_macs
from dippm.frontend import InputSpec, graph_from_module, load_graph
from dippm.graph import ModelGraph, Operator, ValueKind
from dippm.signature import signature

MODELS = Path(__file__).parents[1] / "models"
RESNET50 = Path(__file__).parents[2] / "examples" / "models" / "resnet50.onnx"


def named(graph: ModelGraph, kind: str) -> list[Operator]:
    return [o for o in graph.operators if o.kind == kind]


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[int | str]]],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def load(path: Path, model: onnx.ModelProto | bytes, batch: int = 4, *inputs: InputSpec) -> ModelGraph:
    file = path / "model.onnx"
    file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return load_graph(open_artifact(file), batch=batch, inputs=inputs or None)


def test_resnet50_at_any_batch() -> None:
    for batch in (1, 32):
        graph = load_graph(open_artifact(RESNET50), batch=batch)
        assert graph.values[graph.outputs[0]].spec.shape == (batch, 1000)
        assert graph.values[graph.inputs[0]].spec.shape == (batch, 3, 224, 224)
        assert len(named(graph, "conv2d")) == 53
        assert len(named(graph, "linear")) == 1
        # 25,557,032 parameters and the running statistics of the batch norms, which the exporter folded away
        weights = sum(graph.values[i].spec.numel for i in graph.parameter_ids)
        assert weights == 25_557_032 + 2 * 26_560
        assert (len(named(graph, "batch_norm")), graph.restored) == (53, 53)
        assert graph.batch == batch


def test_resnet50_keeps_its_module_scopes() -> None:
    graph = load_graph(open_artifact(RESNET50), batch=1)
    assert named(graph, "conv2d")[1].scope == ("", "layer1", "layer1.0", "layer1.0.conv1")
    assert named(graph, "batch_norm")[1].scope == ("", "layer1", "layer1.0", "layer1.0.bn1")
    assert named(graph, "conv2d")[1].relax == ("relax.nn.conv2d",)


def test_weights_are_not_read(tmp_path: Path) -> None:
    big = np.zeros((2048, 2048), dtype=np.float32)
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": (1, ["b", 2048])}, ["y"], {"w": big})
    graph = load(tmp_path, model)
    (linear,) = graph.operators
    assert linear.kind == "linear"
    assert graph.values[linear.inputs[1]].kind is ValueKind.PARAMETER
    assert graph.values[linear.inputs[1]].spec.nbytes == big.nbytes


def test_a_bias_after_a_product_is_one_linear(tmp_path: Path) -> None:
    weights = {"w": np.zeros((8, 16), np.float32), "c": np.zeros(16, np.float32)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="/mlp/fc1/MatMul"),
        helper.make_node("Add", ["c", "h"], ["y"], name="/mlp/fc1/Add"),
    ]
    graph = load(tmp_path, model_of(nodes, {"x": (1, ["b", 5, 8])}, ["y"], weights))
    (linear,) = graph.operators
    assert (linear.kind, linear.scope) == ("linear", ("", "mlp", "mlp.fc1"))
    assert [graph.values[i].spec.shape for i in linear.inputs] == [(4, 5, 8), (16, 8), (16,)]
    assert linear.relax == ("relax.permute_dims", "relax.matmul", "relax.add")


def test_layer_norm_gelu_and_silu_written_out_are_one_operator_each(tmp_path: Path) -> None:
    one = np.ones(8, np.float32)
    scalar = {
        k: np.array(v, np.float32) for k, v in {"two": 2, "eps": 1e-5, "r": 2**0.5, "one": 1, "half": 0.5}.items()
    }
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1]),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Pow", ["d", "two"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["v"], axes=[-1]),
        helper.make_node("Add", ["v", "eps"], ["ve"]),
        helper.make_node("Sqrt", ["ve"], ["q"]),
        helper.make_node("Div", ["d", "q"], ["n"]),
        helper.make_node("Mul", ["n", "g"], ["ng"]),
        helper.make_node("Add", ["ng", "o"], ["ln"]),
        helper.make_node("Div", ["ln", "r"], ["e0"]),
        helper.make_node("Erf", ["e0"], ["e1"]),
        helper.make_node("Add", ["e1", "one"], ["e2"]),
        helper.make_node("Mul", ["ln", "e2"], ["e3"]),
        helper.make_node("Mul", ["e3", "half"], ["ge"]),
        helper.make_node("Sigmoid", ["ge"], ["sg"]),
        helper.make_node("Mul", ["ge", "sg"], ["y"]),
    ]
    graph = load(tmp_path, model_of(nodes, {"x": (1, ["b", 8])}, ["y"], {"g": one, "o": one, **scalar}))
    assert [o.kind for o in graph.operators] == ["layer_norm", "gelu", "silu"]
    assert [len(o.inputs) for o in graph.operators] == [3, 1, 1]
    assert graph.edges == ((0, 1), (1, 2))


def test_an_intermediate_that_the_model_puts_out_is_not_fused_away(tmp_path: Path) -> None:
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["x", "s"], ["y"])]
    graph = load(tmp_path, model_of(nodes, {"x": (1, ["b", 8])}, ["y", "s"]))
    assert [o.kind for o in graph.operators] == ["sigmoid", "multiply"]


def test_shape_arithmetic_is_computed(tmp_path: Path) -> None:
    weights = {"zero": np.array(0, np.int64), "rest": np.array([-1], np.int64)}
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axes"], ["u"]),
        helper.make_node("Concat", ["u", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights["axes"] = np.array([0], np.int64)
    graph = load(tmp_path, model_of(nodes, {"x": (1, ["b", 3, 4])}, ["y"], weights))
    (reshape,) = graph.operators
    assert graph.values[reshape.outputs[0]].spec.shape == (4, 12)
    assert graph.values[reshape.outputs[0]].alias_of == graph.inputs[0]


def test_a_class_token_whose_expansion_was_folded_is_expanded_to_the_batch_asked_for(tmp_path: Path) -> None:
    """What the dynamo exporter writes of a vision transformer at a batch of 1."""
    nodes = [
        helper.make_node("Concat", ["token", "x"], ["joined"], axis=1),
        helper.make_node("MatMul", ["joined", "w"], ["y"]),
    ]
    weights = {"token": np.zeros((1, 1, 8), np.float32), "w": np.zeros((8, 8), np.float32)}
    graph = load(tmp_path, model_of(nodes, {"x": (TensorProto.FLOAT, [1, 3, 8])}, ["y"], weights), batch=4)
    assert graph.values[graph.outputs[0]].spec.shape == (4, 4, 8)
    same = load(tmp_path, model_of(nodes, {"x": (TensorProto.FLOAT, [1, 3, 8])}, ["y"], weights), batch=1)
    assert same.values[same.outputs[0]].spec.shape == (1, 4, 8)


def test_a_fixed_batch_is_replaced_where_the_graph_allows_it(tmp_path: Path) -> None:
    weights = {"t": np.array([1, -1], np.int64)}
    model = model_of([helper.make_node("Reshape", ["x", "t"], ["y"])], {"x": (1, [1, 3, 4])}, ["y"], weights)
    graph = load(tmp_path, model, 8)
    assert graph.values[graph.outputs[0]].spec.shape == (8, 12)
    weights = {"t": np.array([3, -1], np.int64)}
    model = model_of([helper.make_node("Reshape", ["x", "t"], ["y"])], {"x": (1, [1, 3, 4])}, ["y"], weights)
    with pytest.raises(InputShapeError, match=r"fixed batch of 1 .* dynamic"):
        load(tmp_path, model, 8)


@pytest.mark.parametrize("name", ["bert", "gpt", "swin", "vit"])
def test_a_batch_that_the_dynamo_exporter_spelled_out_is_replaced_everywhere(name: str) -> None:
    """Heads and windows are counted with the pictures, and class tokens have a row for each."""
    path = open_artifact(MODELS / "dynamo" / f"{name}.onnx")
    own, other = load_graph(path, batch=4), load_graph(path, batch=8)
    assert [o.kind for o in own.operators] == [o.kind for o in other.operators]
    macs = [sum(operator_macs(g, o) for o in g.operators) for g in (own, other)]
    assert macs[1] == 2 * macs[0]
    sizes = [[g.values[i].spec.numel for o in g.operators for i in o.outputs] for g in (own, other)]
    assert all(b in (a, 2 * a) for a, b in zip(*sizes, strict=True))


@pytest.mark.parametrize("target", [[12, 7, 5], [12, 7, -1], [12, -1, 5]])
def test_heads_are_counted_with_the_pictures(tmp_path: Path, target: list[int]) -> None:
    weights = {"t": np.array(target, np.int64)}
    model = model_of([helper.make_node("Reshape", ["x", "t"], ["y"])], {"x": (1, [4, 3, 7, 5])}, ["y"], weights)
    with pytest.raises(InputShapeError, match="fixed batch of 4"):  # 24 heads in front: that is no batch of 8
        load(tmp_path, model, 8)
    weights["back"] = np.array([4, 3, 7, 5], np.int64)
    nodes = [helper.make_node("Reshape", ["x", "t"], ["h"]), helper.make_node("Reshape", ["h", "back"], ["y"])]
    graph = load(tmp_path, model_of(nodes, {"x": (1, [4, 3, 7, 5])}, ["y"], weights), 8)
    assert [graph.values[o.outputs[0]].spec.shape for o in graph.operators] == [(24, 7, 5), (8, 3, 7, 5)]


def test_missing_shapes_are_asked_for_by_name(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": (1, ["b", 3, "height", "width"])}, ["y"])
    with pytest.raises(InputShapeError, match=r"'x' .* is \(b, 3, height, width\).*--input x="):
        load(tmp_path, model)
    graph = load(tmp_path, model, 4, InputSpec("x", (3, 10, 20)))
    assert graph.values[graph.outputs[0]].spec.shape == (4, 3, 10, 20)
    with pytest.raises(InputShapeError, match="does not fit"):
        load(tmp_path, model, 4, InputSpec("x", (4, 10, 20)))
    with pytest.raises(InputShapeError, match="it has x"):
        load(tmp_path, model, 4, InputSpec("x", (3, 1, 1)), InputSpec("z", (1,)))
    with pytest.raises(InputShapeError, match="batch must be at least 1"):
        load(tmp_path, model, 0)


def test_truncation_anywhere_is_one_sentence(tmp_path: Path) -> None:
    whole = RESNET50.read_bytes()
    for length in range(1, len(whole) - 1, 997):
        with pytest.raises(DippmError) as refused:
            load(tmp_path, whole[:length])
        assert isinstance(refused.value, ModelFormatError), length
        assert "\n" not in str(refused.value)


def test_damage_anywhere_is_a_graph_or_one_sentence(tmp_path: Path) -> None:
    whole = bytearray(RESNET50.read_bytes())
    for position in range(10, len(whole), 1499):
        damaged = bytes(whole[:position]) + bytes([whole[position] ^ 0x5A]) + bytes(whole[position + 1 :])
        said = ""
        try:
            load(tmp_path, damaged)
        except DippmError as refused:
            said = str(refused)
        assert "\n" not in said


@pytest.mark.parametrize(
    ("node", "error", "says"),
    [
        (helper.make_node("Frobnicate", ["x"], ["y"]), UnsupportedOperator, "onnx.Frobnicate"),
        (helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft"), UnsupportedOperator, "soft::FusedConv"),
        (helper.make_node("NonZero", ["x"], ["y"]), UnsupportedOperator, "NonZero .*depends on the input's data"),
        (helper.make_node("Relu", ["absent"], ["y"]), ModelFormatError, "not valid ONNX.*absent"),
        (helper.make_node("MatMul", ["x", "x"], ["y"]), InputShapeError, "MatMul"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path: Path, node: onnx.NodeProto, error: type[DippmError], says: str) -> None:
    with pytest.raises(error, match=says):
        load(tmp_path, model_of([node], {"x": (1, ["b", 3, 4])}, ["y"]))


def test_nonsense_is_refused(tmp_path: Path) -> None:
    relu = helper.make_node("Relu", ["x"], ["y"])
    with pytest.raises(ModelFormatError, match="without operators"):
        load(tmp_path, model_of([], {"x": (1, ["b", 3])}, []))
    with pytest.raises(ModelFormatError, match="dimension of -3"):
        load(tmp_path, model_of([relu], {"x": (1, ["b", -3])}, ["y"]))
    with pytest.raises(ModelFormatError, match="dimension of 4611686018427387904"):
        load(tmp_path, model_of([relu], {"x": (1, ["b", 2**62])}, ["y"]))
    with pytest.raises(ModelFormatError, match="not valid ONNX"):
        load(tmp_path, model_of([relu, relu], {"x": (1, ["b", 3])}, ["y"]))
    tile = helper.make_node("Tile", ["x", "n"], ["y"])
    with pytest.raises(InputShapeError, match="too large to be meant"):
        load(tmp_path, model_of([tile], {"x": (1, ["b", 3])}, ["y"], {"n": np.array([2**30, 2**30], np.int64)}))


def test_a_graph_tells_whether_its_file_leaves_the_batch_open(tmp_path: Path) -> None:
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    opened, fixed = (load(tmp_path, model_of(relu, {"x": (1, [b, 3])}, ["y"])) for b in ("b", 4))
    assert (opened.open_batch, fixed.open_batch) == (True, False)
    assert ModelGraph.from_dict(opened.to_dict()) == opened


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    ("inputs", "is_open"),
    [
        ({"x": (1, ["b", 3]), "steps": (1, [1, 1])}, True),
        ({"x": (1, [0, 3]), "steps": (1, [0, 1])}, True),
        ({"scale": (1, []), "x": (1, ["sequence", 3])}, True),
        ({"x": (1, [4, 3]), "tokens": (1, ["n", 1])}, False),
        ({"x": (1, [1, 3]), "tokens": (1, [0, 1])}, False),
    ],
)  # fmt: skip
def test_the_batch_is_open_where_the_axis_that_was_bound_is(
    tmp_path: Path, inputs: dict[str, tuple[int, list[int | str]]], is_open: bool, batch: int
) -> None:
    graph = load(tmp_path, model_of([helper.make_node("Add", list(inputs), ["y"])], inputs, ["y"]), batch)
    assert graph.values[graph.outputs[0]].spec.shape == (batch, 3)
    assert graph.open_batch == is_open, "whatever the batch asked for"


def test_a_first_dimension_of_0_is_no_batch_that_a_file_fixes(tmp_path: Path) -> None:
    model = model_of([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": (1, [0, 3])}, ["y"])
    assert load(tmp_path, model, 2).open_batch
    fixed = model_of([helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], {"x": (1, [1, 3])}, ["y"])
    with pytest.raises(InputShapeError, match="fixed batch of 1"):
        load(tmp_path, fixed, 2)


def positions(producer: str) -> onnx.ModelProto:
    """An embedding of tokens and of positions, hidden where a position is below 2: as a module's forward makes it."""
    counted = numpy_helper.from_array(np.arange(5, dtype=np.int64).reshape(1, 5))
    nodes = [
        helper.make_node("Constant", [], ["/m/Constant_output_0"], name="/m/Constant", value=counted),
        helper.make_node("Mul", ["/m/Constant_output_0", "two"], ["/m/Mul_output_0"], name="/m/Mul"),
        helper.make_node("Greater", ["/m/Mul_output_0", "two"], ["/m/Greater_output_0"], name="/m/Greater"),
        helper.make_node("Gather", ["words", "x"], ["w"], name="/m/words/Gather"),
        helper.make_node("Gather", ["places", "/m/Constant_output_0"], ["p"], name="/m/places/Gather"),
        helper.make_node("Add", ["w", "p"], ["s"], name="/m/Add"),
        helper.make_node("Unsqueeze", ["/m/Greater_output_0", "last"], ["g"], name="/m/Unsqueeze"),
        helper.make_node("Where", ["g", "s", "zero"], ["h"], name="/m/Where"),
        helper.make_node("Gather", ["h", "/m/Constant_output_0"], ["y"], name="/m/Gather", axis=1),
    ]
    weights = {
        "two": np.array(2, np.int64), "last": np.array([2], np.int64), "zero": np.array(0, np.float32),
        "words": np.zeros((9, 4), np.float32), "places": np.zeros((5, 4), np.float32),
    }  # fmt: skip
    model = model_of(nodes, {"x": (TensorProto.INT64, ["b", 5])}, ["y"], weights)
    model.producer_name = producer
    return model


def test_what_pytorch_computes_in_every_pass_is_an_operator(tmp_path: Path) -> None:
    graph = load(tmp_path, positions("pytorch"))
    made = ["arange", "embedding", "embedding", "add", "multiply", "compare", "where", "index"]
    assert sorted(o.kind for o in graph.operators if o.kind not in ("reshape", "unsqueeze")) == sorted(made)
    count = next(o for o in graph.operators if o.kind == "arange")
    assert count.scope == ("", "m")
    assert graph.values[count.outputs[0]].spec.shape == (5,)
    other = load(tmp_path, positions("somebody"))
    assert Counter(o.kind for o in other.operators) == {"embedding": 1, "add": 1, "where": 1, "index": 1}, (
        "a weight like any"
    )


@pytest.mark.parametrize(
    ("name", "entries", "made"),
    [
        ("/m/Constant_output_0", [0, 1, 2], True),
        ("/m/Constant_3_output_0", [[2, 3, 4]], True),  # PyTorch 2.13, dynamo=False: arange(3).unsqueeze(0) + 2
        ("/Constant_1_output_0", [0, 1, 2], True),  # in the forward of the model itself
        ("onnx::Gather_3", [0, 1, 2], False),  # the same: x[:, [0, 1, 2]]
        ("/m/Constant_output_0", [2, 3], False),  # the same: a shape, where a slice is assigned to
        ("/m/Constant_output_0", [0, 2, 4], False),
        ("/m/Constant_output_0", [[0, 1], [2, 3]], False),
    ],
)  # fmt: skip
def test_a_constant_that_counts_up_in_a_scope_is_made_by_arange(
    tmp_path: Path, name: str, entries: list[int], made: bool
) -> None:
    value = numpy_helper.from_array(np.array(entries, np.int64))
    nodes = [
        helper.make_node("Constant", [], [name], value=value),
        helper.make_node("Gather", ["x", name], ["y"], name="/m/Gather", axis=1),
    ]
    for producer in ("pytorch", "onnx.quantize"):
        model = model_of(nodes, {"x": (1, ["b", 5])}, ["y"])
        model.producer_name = producer
        kinds = {o.kind for o in load(tmp_path, model).operators}
        assert ("arange" in kinds) == (made and producer == "pytorch"), producer


def test_a_chain_of_what_is_computed_may_be_as_long_as_a_file(tmp_path: Path) -> None:
    length = 3000  # three times what Python's stack holds
    nodes = [helper.make_node("Add", [f"v{i}", "c"], [f"v{i + 1}"]) for i in range(length)]
    nodes.append(helper.make_node("Add", ["x", f"v{length}"], ["y"]))
    weights = {"v0": np.ones(3, np.float32), "c": np.ones(3, np.float32)}
    model = model_of(nodes, {"x": (1, ["b", 3])}, ["y"], weights)
    model.producer_name = "pytorch"
    graph = load(tmp_path, model)
    assert len(named(graph, "add")) == length + 1
    assert set(graph.edges) == {(i, i + 1) for i in range(length)}, "each behind the one that it works on"


def test_a_large_table_of_whole_numbers_in_a_module_is_filled_in_every_pass(tmp_path: Path) -> None:
    def adds(name: str, dtype: type) -> ModelGraph:
        table = numpy_helper.from_array(np.ones((64, 64), dtype=dtype))
        nodes = [
            helper.make_node("Constant", [], [f"{name}_output_0"], name=name, value=table),
            helper.make_node("Add", ["x", f"{name}_output_0"], ["y"], name="/m/Add"),
        ]
        kind = TensorProto.INT64 if dtype is np.int64 else TensorProto.DOUBLE
        model = model_of(nodes, {"x": (kind, ["b", 64, 64])}, [])
        model.graph.output.append(helper.make_tensor_value_info("y", kind, None))
        model.producer_name = "pytorch"
        return load(tmp_path, model)

    assert [o.kind for o in adds("/m/Constant_3", np.int64).operators] == ["full", "add"]
    assert [o.kind for o in adds("/m/Constant_3", np.float64).operators] == ["add"], "a buffer, as masks are"
    assert [o.kind for o in adds("table", np.int64).operators] == ["add"], "nothing says that a module made it"


def test_a_mask_that_alternates_does_not_count(tmp_path: Path) -> None:
    mask = numpy_helper.from_array(np.array([False, True, False, True]))
    nodes = [
        helper.make_node("Constant", [], ["/m/Constant_output_0"], name="/m/Constant", value=mask),
        helper.make_node("Where", ["/m/Constant_output_0", "x", "z"], ["y"], name="/m/Where"),
    ]
    model = model_of(nodes, {"x": (1, ["b", 4]), "z": (1, ["b", 4])}, ["y"])
    model.producer_name = "pytorch"
    assert [o.kind for o in load(tmp_path, model).operators] == ["where"]


def test_a_loop_is_refused_with_the_way_out(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("go", "on")]
    state = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 3]) for n in ("s", "t")]
    count = helper.make_tensor_value_info("i", TensorProto.INT64, [])
    calls = [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Tanh", ["s"], ["t"])]
    body = helper.make_graph(calls, "body", [count, ends[0], state[0]], [ends[1], state[1]])
    node = helper.make_node("Loop", ["n", "", "x"], ["y"], name="rnn", body=body)
    with pytest.raises(UnsupportedOperator, match=r"onnx.Loop 'rnn' is not supported: .*LSTM, GRU or RNN, or unrolled"):
        load(tmp_path, model_of([node], {"x": (1, ["b", 3])}, ["y"], {"n": np.array(64, np.int64)}))


def test_an_if_on_a_constant_takes_its_branch(tmp_path: Path) -> None:
    def branch(op: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info(f"{op}_out", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x"], [f"{op}_out"])], op, [], [info])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Tanh"))
    graph = load(tmp_path, model_of([node], {"x": (1, ["b", 3])}, ["y"], {"c": np.array(False)}))
    assert [o.kind for o in graph.operators] == ["tanh"]


def test_what_a_library_stumbles_over_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch, TVM and onnx raise anything on a file that is damaged in a way that nobody has seen yet."""

    def stumble(*args: object, **kwargs: object) -> None:
        raise KeyError("first line\nsecond line")

    monkeypatch.setattr("dippm.frontend.onnx.model.fold", stumble)
    with pytest.raises(ModelFormatError, match="cannot be read as an ONNX model: KeyError") as refused:
        load_graph(open_artifact(RESNET50), batch=1)
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value.__cause__, KeyError), "the cause is kept for whoever debugs it"


def test_an_operator_has_one_signature_whatever_its_door(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, padding=1)
            self.norm = torch.nn.LayerNorm(8)
            self.fc = torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
            x = torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
            return self.fc(self.norm(x)).softmax(-1)

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Net().eval(), (torch.zeros(1, 3, 32, 32),), buffer, dynamo=False, opset_version=17)
    from_onnx = load(tmp_path, buffer.getvalue(), 5)
    module = Net().to("meta").eval()
    from_torch = graph_from_module(module, [torch.empty(5, 3, 32, 32, device="meta")], batch=5)
    # this exporter spells the global pool as one, and everything else as PyTorch does
    assert [signature(from_onnx, i) for i in range(len(from_onnx.operators))] == [
        signature(from_torch, i) for i in range(len(from_torch.operators))
    ]


def test_a_norm_that_was_never_trained_leaves_a_convolution_without_bias(tmp_path: Path) -> None:
    """PyTorch's dynamo exporter folds it into the weight, and takes the bias of zeros out of the file."""
    weight = helper.make_tensor("conv.weight", TensorProto.FLOAT, [4, 3, 3, 3], [0.0] * 108)
    conv = helper.make_node("Conv", ["x", "conv.weight"], ["y"], name="node_Conv_1")
    for key, value in (
        ("pkg.onnxscript.rewriter.rule_name", "FuseBatchNormIntoConv"),
        ("pkg.torch.onnx.name_scopes", "['', 'norm', 'batch_norm']"),
    ):
        conv.metadata_props.add(key=key, value=value)
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", c, s, s]) for n, c, s in (("x", 3, 8), ("y", 4, 6))
    ]
    graph = helper.make_graph([conv], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], producer_name="pytorch")
    onnx.save(model, tmp_path / "m.onnx")
    found = load_graph(open_artifact(tmp_path / "m.onnx"), batch=2)
    assert [o.kind for o in found.operators] == ["conv2d", "batch_norm"]
    assert len(found.operators[0].inputs) == 2
