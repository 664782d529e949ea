"""TensorFlow's doors: what is refused before TensorFlow is imported, TFLite by TVM, SavedModel and Keras by tf2onnx.

The small models are in `tests/models/tensorflow` (`make.py` wrote them). What needs TensorFlow runs where it is
installed, or where DIPPM_TENSORFLOW_PYTHON names a Python that has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dippm.artifact import open_artifact
from dippm.case import Case
from dippm.errors import InputShapeError, ModelFormatError, ParseLimitExceeded, UnsafeModel, UnsupportedOperator
from dippm.features import static_features
from dippm.frontend import InputSpec, load_graph, tensorflow_safety
from dippm.frontend.child import load_graph_in_child
from dippm.frontend.converter import TENSORFLOW
from dippm.frontend.tensorflow_loops import put_layers_back
from dippm.frontend.tensorflow_patterns import put_together
from dippm.frontend.tensorflow_safety import (
    OPERATORS,
    check_config,
    check_operators,
    keras_config_of,
    operators_of,
    refuse,
)
from dippm.graph import ModelGraph
from dippm.predictor import predict_graph

MODELS = Path(__file__).parents[1] / "models" / "tensorflow"
CANARY = Path("/tmp/dippm-canary")
SMALL_MACS = 8 * (16 * 16 * 16 * 27 + 16 * 16 * 16 * 9 + 16 * 16 * 16 * 32 + 32 * 8)
"""Of `small` at batch 8: the stem, the depthwise and the pointwise convolution, the dense layer."""

tflite = pytest.mark.skipif(
    importlib.util.find_spec("tflite") is None,
    reason="needs tflite: pip install tflite",
)


def _has_tensorflow() -> bool:
    try:
        return all(TENSORFLOW.installed().values())
    except ModelFormatError:
        return False


tensorflow = pytest.mark.skipif(
    not _has_tensorflow(), reason="needs TensorFlow: pip install 'dippm[tensorflow]', or set DIPPM_TENSORFLOW_PYTHON"
)


def kinds(graph: ModelGraph) -> Counter[str]:
    return Counter(o.kind for o in graph.operators)


@tflite
def test_a_tflite_file_gives_the_canonical_network() -> None:
    graph = load_graph(open_artifact(MODELS / "small.tflite", framework="tensorflow"), batch=8)
    features = static_features(graph)
    assert (graph.format, graph.batch) == ("tflite", 8)
    assert (features.macs, features.convs, features.denses) == (SMALL_MACS, 3, 1)
    assert not kinds(graph)["permute"]  # images are taken as the network reads them, channels first
    assert [graph.values[o].spec.shape for o in graph.outputs] == [(8, 8)]
    depthwise = [o for o in graph.operators if o.kind == "conv2d"][1]
    assert depthwise.attributes["groups"] == 16
    assert graph.values[depthwise.inputs[0]].spec.shape == (8, 16, 16, 16)


@tflite
def test_a_tflite_file_is_predicted_as_a_proxy() -> None:
    graph = load_graph_in_child(open_artifact(MODELS / "small.tflite"), batch=8)
    prediction = predict_graph(graph, Case(batch=8))
    assert (prediction.runtime, prediction.basis.value) == ("tensorflow", "proxy")
    assert any("no rules of its own" in note for note in prediction.notes)


@tflite
def test_what_tflite_refuses() -> None:
    with pytest.raises(UnsupportedOperator, match=r"small_int8.tflite is quantised \(int8\).*without converter"):
        load_graph(open_artifact(MODELS / "small_int8.tflite"), batch=1)
    with pytest.raises(InputShapeError, match="does not fit"):
        load_graph(open_artifact(MODELS / "small.tflite"), batch=1, inputs=(InputSpec(None, (64, 64, 3)),))


@tflite
@pytest.mark.parametrize("end", [9, 600, 4000])
def test_a_damaged_tflite_file_is_one_sentence(tmp_path: Path, end: int) -> None:
    (tmp_path / "cut.tflite").write_bytes((MODELS / "small.tflite").read_bytes()[:end])
    with pytest.raises(ModelFormatError, match=r"cut.tflite"):
        load_graph(open_artifact(tmp_path / "cut.tflite"), batch=1)


def test_tflite_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelFormatError, match=r"small\.tflite is a TensorFlow Lite model, .*: pip install tflite$"):
        load_graph(open_artifact(MODELS / "small.tflite"), batch=1)


def test_a_lambda_layer_is_refused_before_tensorflow_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real child, in this Python, which needs no TensorFlow to refuse."""
    monkeypatch.setenv(TENSORFLOW.setting, sys.executable)
    CANARY.unlink(missing_ok=True)
    with pytest.raises(UnsafeModel, match=r"lambda.keras has a layer Lambda \('shout'\), which is Python code"):
        load_graph_in_child(open_artifact(MODELS / "lambda.keras"), batch=1)
    with pytest.raises(UnsafeModel, match=r"py_function.pb calls Python \(EagerPyFunc"):
        load_graph_in_child(open_artifact(MODELS / "py_function.pb"), batch=1)
    assert not CANARY.exists()


def keras_layer(name: str, **more: Any) -> dict[str, Any]:
    return {"module": "keras.layers", "class_name": name, "config": {"name": "one"}, "registered_name": None, **more}


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (keras_layer("Lambda"), "Python code"),
        (keras_layer("Dense", config={"activation": {"class_name": "__lambda__", "config": {}}}), "Python code"),
        (keras_layer("TFSMLayer"), "another program"),
        (keras_layer("TorchModuleWrapper"), "pickle"),
        (keras_layer("StringLookup"), "may read files"),
        (keras_layer("Mine", module="my_package.layers"), "custom object my_package.layers.Mine"),
        (keras_layer("Mine", module=None, registered_name="pack>Mine"), "custom object pack>Mine"),
        (keras_layer("get_file", module="keras.utils"), "custom object keras.utils.get_file"),
        (keras_layer("Model.from_config"), "not one of Keras's own"),
        ({"module": "builtins", "class_name": "function", "config": "evil"}, "function 'evil'"),
    ],
)  # fmt: skip
def test_configurations_that_name_code_are_refused(layer: dict[str, Any], says: str) -> None:
    config = {"class_name": "Sequential", "module": "keras", "config": {"layers": [keras_layer("Dense"), layer]}}
    with pytest.raises(UnsafeModel, match=says) as refused:
        check_config(config, "m.keras")
    assert str(refused.value).startswith("m.keras ")
    assert "\n" not in str(refused.value)


def test_kerass_own_layers_pass() -> None:
    own = keras_layer("LayerScale", module="keras.src.applications.convnext", registered_name="LayerScale")
    check_config({"class_name": "Functional", "config": {"layers": [keras_layer("Dense"), own]}}, "m.keras")
    assert keras_config_of(MODELS / "small.keras", "m").model["class_name"] == "Sequential"


def test_keras_archives_that_are_bombs_or_point_out_are_refused(tmp_path: Path) -> None:
    def archive(members: dict[str, bytes]) -> Path:
        with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return tmp_path / "m.keras"

    bomb = archive({"config.json": b" " * (65 << 20), "metadata.json": b"{}"})
    with pytest.raises(ModelFormatError, match="unpacks to more than 64 MiB"):
        refuse(bomb, "m.keras")
    outside = archive({"config.json": b"{}", "metadata.json": b"{}", "../../etc/cron.d/x": b""})
    with pytest.raises(UnsafeModel, match=r"'\.\./\.\./etc/cron.d/x' that points out"):
        refuse(outside, "m.keras")
    deep = json.loads("[" * 900 + "]" * 900)
    with pytest.raises(ModelFormatError, match="nested more than"):
        refuse(archive({"config.json": json.dumps({"class_name": "M", "config": deep}).encode()}), "m.keras")
    with pytest.raises(ModelFormatError, match="no JSON"):
        refuse(archive({"config.json": b"{", "metadata.json": b"{}"}), "m.keras")


def test_only_operators_of_the_list_are_let_through() -> None:
    with pytest.raises(UnsafeModel, match=r"m has operators that no inference graph needs \(ReadFile\)"):
        check_operators(frozenset({"MatMul", "ReadFile"}), "m")
    with pytest.raises(UnsafeModel, match=r"\(A0, A1, A2, A3, A4 and 5 more\)"):
        check_operators(frozenset(f"A{n}" for n in range(10)), "m")
    with pytest.raises(UnsafeModel) as refused:
        check_operators(frozenset({"x" * 100_000}), "m")
    assert len(str(refused.value)) < 400
    refuse(MODELS / "small_savedmodel", "m")
    graph = (MODELS / "small_savedmodel" / "saved_model.pb").read_bytes()
    assert "Conv2D" in operators_of(graph, "m")
    with pytest.raises(ModelFormatError, match="truncated"):
        operators_of(graph[:-9], "m")


@pytest.mark.parametrize(
    "name",
    [
        "DebugIdentity", "DebugNanCount", "DecodeProtoV2", "TensorSliceDataset", "InitializeTableFromTextFileV2",
        "Batch", "MutexLock", "ConsumeMutexLock", "ComputeAccidentalHits", "KafkaDataset", "RestoreSlice", "Save",
        "GetSessionHandle", "Timestamp", "XlaLaunch", "TPUExecute", "WriteRawProtoSummary", "Abort", "PyCallback",
    ],
)  # fmt: skip
def test_what_the_optimizer_would_run_must_not_reach_out(name: str) -> None:
    with pytest.raises(UnsafeModel, match=f"that no inference graph needs .{name}"):
        check_operators(frozenset({"MatMul", name}), "m")
    check_operators(frozenset({"MatMul", "SaveV2", "RestoreV2", "ReadVariableOp"}), "m")


def test_the_list_is_sorted_and_says_where_it_is_from() -> None:
    file = Path(tensorflow_safety.__file__).with_name("tensorflow_operators.txt")
    lines = file.read_text().splitlines()
    names = [line for line in lines if not line.startswith("#")]
    assert names == sorted(set(names))
    assert any("bench/tensorflow_operators.py" in line for line in lines[:3])
    reaching = re.compile(
        r".*(File(?!name)|Dataset|Iterator|Reader|Debug|Summary|Print|Proto|Remote|Rpc|Recv|Host|Queue|Py[A-Z]).*"
    )
    assert not list(filter(reaching.fullmatch, names))
    assert set(names) >= {"Conv2D", "MatMul", "StatefulPartitionedCall", "PartitionedCall", "ResourceGather", "While"}


@tensorflow
@pytest.mark.timeout(600)
def test_what_the_installed_tf2onnx_converts_is_in_the_list() -> None:
    code = (
        "import tf2onnx.tfonnx, json\n"
        "from tf2onnx.handler import tf_op\n"
        "from tensorflow.python.framework import op_def_registry\n"
        "names = {n for versions in tf_op._OPSETS.values() for one in versions for n in one}\n"
        "print(json.dumps(sorted(n for n in names if op_def_registry.get(n) is not None)))\n"
    )
    asked = subprocess.run([TENSORFLOW.interpreter(), "-c", code], capture_output=True, text=True, check=True)
    converted = set(json.loads(asked.stdout.splitlines()[-1]))
    assert len(converted) > 200
    pipelines = {name for name in converted if name.startswith(("Iterator", "FIFOQueue", "Queue"))}
    assert converted - pipelines <= OPERATORS


def test_what_a_nested_model_was_compiled_with_is_checked_too() -> None:
    lookup = {"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}}
    inner = {
        "class_name": "Sequential",
        "module": "keras",
        "config": {"layers": []},
        "compile_config": {"loss": lookup},
    }
    with pytest.raises(UnsafeModel, match="StringLookup"):
        check_config({"class_name": "Sequential", "module": "keras", "config": {"layers": [inner]}}, "m")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    if TENSORFLOW.packages and _has_tensorflow() and TENSORFLOW.interpreter() == sys.executable:
        pytest.skip("TensorFlow is installed in this Python")
    monkeypatch.setenv(TENSORFLOW.setting, sys.executable)
    with pytest.raises(ModelFormatError, match=r"is a Keras model, which needs tensorflow.*dippm\[tensorflow\]"):
        load_graph(open_artifact(MODELS / "small.keras"), batch=1)


def test_a_layer_norm_that_is_written_out_is_put_together() -> None:
    """As Keras 3 writes it: x * inverse + (offset - mean * inverse)."""
    f32 = onnx.TensorProto.FLOAT
    node = helper.make_node
    weights = [helper.make_tensor(n, f32, [1, 1, 4], [1.0 + i for i in range(4)]) for n in ("gamma", "beta")]
    axes = helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [-1])
    epsilon = helper.make_tensor("epsilon", f32, [], [1e-6])
    nodes = [
        node("ReduceMean", ["x", "axes"], ["mean"]), node("Neg", ["mean"], ["negative"]),
        node("Sub", ["x", "mean"], ["centred"]), node("Mul", ["centred", "centred"], ["squared"]),
        node("ReduceMean", ["squared", "axes"], ["variance"]), node("Add", ["variance", "epsilon"], ["padded"]),
        node("Sqrt", ["padded"], ["root"]), node("Reciprocal", ["root"], ["deviation"]),
        node("Mul", ["deviation", "gamma"], ["inverse"]), node("Mul", ["x", "inverse"], ["scaled"]),
        node("Mul", ["negative", "inverse"], ["moved"]), node("Add", ["beta", "moved"], ["shift"]),
        node("Add", ["scaled", "shift"], ["y"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, f32, ["n", 3, 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [*weights, axes, epsilon])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    before = ReferenceEvaluator(model).run(None, {"x": (x := np.random.rand(2, 3, 4).astype(np.float32))})
    put_together(model)
    after = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(before[0], after[0], rtol=1e-4, atol=1e-5)
    assert [n.op_type for n in model.graph.node] == ["LayerNormalization"]
    assert sorted(t.name for t in model.graph.initializer) == ["beta_vector", "gamma_vector"]
    onnx.checker.check_model(model, full_check=True)


def test_a_layer_norm_over_channels_runs_with_channels_last() -> None:
    """As tf2onnx leaves ConvNeXt's: over dimension 1, turned back right after it."""
    f32, i64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    node = helper.make_node
    weights = [helper.make_tensor(n, f32, [1, 4, 1, 1], [1.0 + i for i in range(4)]) for n in ("gamma", "beta")]
    settings = [helper.make_tensor("axes", i64, [1], [1]), helper.make_tensor("to", i64, [4], [-1, 1, 2, 2])]
    epsilon = helper.make_tensor("epsilon", f32, [1, 1, 1, 1], [1e-6])
    nodes = [
        node("ReduceMean", ["x", "axes"], ["mean"]), node("Neg", ["mean"], ["negative"]),
        node("Reshape", ["mean", "to"], ["wide"]), node("Sub", ["x", "wide"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squared"]), node("ReduceMean", ["squared", "axes"], ["variance"]),
        node("Add", ["variance", "epsilon"], ["padded"]), node("Sqrt", ["padded"], ["root"]),
        node("Reciprocal", ["root"], ["deviation"]), node("Mul", ["deviation", "gamma"], ["inverse"]),
        node("Mul", ["x", "inverse"], ["scaled"]), node("Mul", ["negative", "inverse"], ["moved"]),
        node("Add", ["moved", "beta"], ["shift"]), node("Add", ["scaled", "shift"], ["normed"]),
        node("Transpose", ["normed"], ["y"], perm=[0, 2, 3, 1]), node("Shape", ["normed"], ["shape"]),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info(n, f32, ["n", *d]) for n, d in (("x", [4, 2, 2]), ("y", [2, 2, 4]))]
    shape = helper.make_tensor_value_info("shape", i64, [4])
    graph = helper.make_graph(nodes, "g", ends[:1], [ends[1], shape], [*weights, *settings, epsilon])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    before = ReferenceEvaluator(model).run(None, {"x": (x := np.random.rand(3, 4, 2, 2).astype(np.float32))})
    put_together(model)
    kinds = [n.op_type for n in model.graph.node]
    assert (kinds.count("Transpose"), kinds.count("LayerNormalization"), kinds.count("ReduceMean")) == (1, 1, 0)
    for was, now in zip(before, ReferenceEvaluator(model).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(was, now, rtol=1e-4, atol=1e-5)


@tensorflow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["small.keras", "small.h5", "small_savedmodel", "small_savedmodel/saved_model.pb"])
def test_every_format_gives_the_same_network(name: str) -> None:
    graph = load_graph(open_artifact(MODELS / name, framework="tensorflow"), batch=8)
    features = static_features(graph)
    assert (features.macs, features.convs, features.denses) == (SMALL_MACS, 3, 1)
    assert not kinds(graph)["permute"]
    assert kinds(graph)["batch_norm"] == 1
    assert [graph.values[o].spec.shape for o in graph.outputs] == [(8, 8)]


def saved_both_ways(name: str, folder: Path) -> tuple[ModelGraph, ModelGraph]:
    """The graphs of a network's `.keras` file and of its SavedModel, which TensorFlow writes."""
    script = Path(__file__).parents[2] / "bench" / "models" / "tensorflow_models.py"
    python = os.environ.get(TENSORFLOW.setting, sys.executable)
    for saved in ("keras", "savedmodel"):
        subprocess.run([python, str(script), "make", f"{name}/{saved}", str(folder)], check=True, capture_output=True)
    keras, saved_model = (
        load_graph(open_artifact(folder / file), batch=8) for file in (f"{name}.keras", f"{name}_savedmodel")
    )
    return keras, saved_model


@tensorflow
@pytest.mark.timeout(600)
def test_lstm_layers_are_one_operator_each_whatever_they_are_saved_as(tmp_path: Path) -> None:
    """A SavedModel's loops take their weights through the functions around them."""
    one, other = saved_both_ways("lstm", tmp_path)
    assert kinds(one)["lstm"] == kinds(other)["lstm"] == 2
    assert kinds(one) == kinds(other)
    # Two layers of 64 steps and 4 gates, each gate the product with the input and with the state; the classifier.
    assert static_features(one).macs == static_features(other).macs == 8 * (2 * 64 * 4 * 2 * 128 * 128 + 128 * 2)


@tensorflow
@pytest.mark.timeout(600)
def test_gru_and_plain_recurrent_layers_are_known_in_their_loops(tmp_path: Path) -> None:
    one, other = saved_both_ways("gru", tmp_path)
    assert kinds(one) == kinds(other)
    assert (kinds(one)["gru"], kinds(one)["rnn"]) == (3, 1)
    # 64 steps: two directions of 3 gates, 3 gates, 1; each the product with the input and with the state.
    steps = 64 * (2 * 3 * 64 * (128 + 64) + 3 * 2 * 128 * 128 + 2 * 128 * 128)
    assert static_features(one).macs == static_features(other).macs == 8 * (steps + 128 * 2)


def loop_model(activation: str) -> onnx.ModelProto:
    """What tf2onnx makes of Keras 3's GRU (`reset_after`): 5 steps of 4 features, 3 units."""
    weights = {"kernel": (4, 9), "recurrent": (3, 9), "bias": (2, 9)}
    body = [
        helper.make_node("Gather", ["x", "time"], ["xt"], axis=0),
        helper.make_node("Split", ["b"], ["b0", "b1"], axis=0, num_outputs=2),
        helper.make_node("Squeeze", ["b0", "zero"], ["bx"]), helper.make_node("Squeeze", ["b1", "zero"], ["bh"]),
        helper.make_node("MatMul", ["xt", "w"], ["xw"]), helper.make_node("Add", ["xw", "bx"], ["given"]),
        helper.make_node("Split", ["given"], ["xz", "xr", "xh"], axis=-1, num_outputs=3),
        helper.make_node("MatMul", ["h", "r"], ["hr"]), helper.make_node("Add", ["hr", "bh"], ["held"]),
        helper.make_node("Split", ["held"], ["hz", "hrr", "hh"], axis=-1, num_outputs=3),
        helper.make_node("Add", ["xz", "hz"], ["az"]), helper.make_node("Sigmoid", ["az"], ["z"]),
        helper.make_node("Add", ["xr", "hrr"], ["ar"]), helper.make_node("Sigmoid", ["ar"], ["reset"]),
        helper.make_node("Mul", ["reset", "hh"], ["inner"]), helper.make_node("Add", ["xh", "inner"], ["ah"]),
        helper.make_node(activation, ["ah"], ["new"]), helper.make_node("Sub", ["one", "z"], ["rest"]),
        helper.make_node("Mul", ["z", "h"], ["kept"]), helper.make_node("Mul", ["rest", "new"], ["taken"]),
        helper.make_node("Add", ["kept", "taken"], ["next"]), helper.make_node("Identity", ["next"], ["out"]),
        helper.make_node("Add", ["time", "unit"], ["later"]), helper.make_node("Less", ["later", "five"], ["going"]),
    ]  # fmt: skip
    f32, i64, flag = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    carried = [
        ("time", i64, []),
        ("h", f32, ["n", 3]),
        *((n, f32, list(s)) for n, s in zip("wrb", weights.values(), strict=True)),
    ]
    numbers = {"one": np.float32(1), "zero": np.array([0]), "unit": np.array(1), "five": np.array(5)}
    inner = helper.make_graph(
        body, "body",
        [helper.make_tensor_value_info("i", i64, []), helper.make_tensor_value_info("c", flag, []),
         *(helper.make_tensor_value_info(*each) for each in carried)],
        [helper.make_tensor_value_info("going", flag, []), helper.make_tensor_value_info("later", i64, []),
         *(helper.make_tensor_value_info(n, f32, None) for n in ("next", "w", "r", "b", "out"))],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in numbers.items()],
    )  # fmt: skip
    made = {n: np.random.default_rng(0).random(s, np.float32) for n, s in weights.items()}
    settings = {"most": np.array(5), "go": np.array(True), "start": np.array(0), "first": np.zeros((2, 3), np.float32)}
    loop = helper.make_node(
        "Loop", ["most", "go", "start", "first", *weights], ["", "last", "", "", "", "all"], name="layer", body=inner
    )
    graph = helper.make_graph(
        [loop, helper.make_node("Relu", ["all"], ["y"])], "g",
        [helper.make_tensor_value_info("x", f32, [5, 2, 4])],
        [helper.make_tensor_value_info("y", f32, [5, 2, 3]), helper.make_tensor_value_info("last", f32, [2, 3])],
        [numpy_helper.from_array(a, n) for n, a in (made | settings).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_a_loop_whose_step_computes_a_gru_is_one() -> None:
    model = loop_model("Tanh")
    before = ReferenceEvaluator(model).run(None, {"x": (x := np.random.rand(5, 2, 4).astype(np.float32))})
    made = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    put_layers_back(model)
    assert [n.op_type for n in model.graph.node] == ["GRU", "Squeeze", "Squeeze", "Relu"]
    as_onnx_has_them = {"W": made["kernel"].T[None], "R": made["recurrent"].T[None], "B": made["bias"].reshape(1, -1)}
    for tensor in model.graph.initializer:
        part = as_onnx_has_them.get(tensor.name.rpartition("/")[2])
        if part is not None:
            assert tuple(tensor.dims) == part.shape
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(part), tensor.name))
    for was, now in zip(before, ReferenceEvaluator(model).run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(was.reshape(now.shape), now, rtol=1e-4, atol=1e-5)  # it joins steps, not stacks


def test_a_loop_whose_step_computes_something_else_stays_a_loop() -> None:
    model = loop_model("Softsign")
    put_layers_back(model)
    assert [n.op_type for n in model.graph.node] == ["Loop", "Relu"]


@tensorflow
@pytest.mark.timeout(600)
def test_a_lambda_in_an_h5_file_is_refused() -> None:
    CANARY.unlink(missing_ok=True)
    with pytest.raises(UnsafeModel, match=r"lambda.h5 has a layer Lambda \('shout'\)"):
        load_graph_in_child(open_artifact(MODELS / "lambda.h5"), batch=1)
    assert not CANARY.exists()


@tensorflow
@pytest.mark.timeout(600)
def test_an_answer_that_is_too_long_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(TENSORFLOW, limits=replace(TENSORFLOW.limits, result_bytes=1 << 10))
    monkeypatch.setattr("dippm.frontend.converter.CONVERTERS", {"keras": short})
    with pytest.raises(ParseLimitExceeded, match=r"converting .*small.keras gave an ONNX model of more than 0 MiB"):
        load_graph_in_child(open_artifact(MODELS / "small.keras"), batch=1)


@tensorflow
@pytest.mark.timeout(600)
def test_a_conversion_that_takes_too_long_says_that_it_was_the_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = replace(TENSORFLOW, limits=replace(TENSORFLOW.limits, wall_seconds=0.2))
    monkeypatch.setattr("dippm.frontend.converter.CONVERTERS", {"keras": hasty})
    with pytest.raises(ParseLimitExceeded, match=r"converting .*small.keras took longer than 0.2 s"):
        load_graph_in_child(open_artifact(MODELS / "small.keras"), batch=1)
