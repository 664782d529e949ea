"""The PaddlePaddle door: what a program says without Paddle, the conversion's process, and whole models with Paddle.

The programs in tests/golden/frontend/paddle are made by the script beside them.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from dippm.artifact import Artifact, open_artifact
from dippm.case import Case, Runtime
from dippm.errors import ModelFormatError, ParseLimitExceeded, UnsafeModel, UnsupportedOperator
from dippm.features import static_features
from dippm.frontend import load_graph
from dippm.frontend.child import load_graph_in_child
from dippm.frontend.converter import CONVERTERS, PADDLE, as_onnx
from dippm.frontend.paddle_onnx import with_biases, without_identities
from dippm.frontend.paddle_program import check, checked_operators, parameters
from dippm.policy import DEFAULT_POLICY
from dippm.prediction import Basis
from dippm.runtimes import resolve
from dippm_operator.predict import Question, ask
from dippm_operator.resource import ModelFormat, ModelInput

PROGRAMS = Path(__file__).parents[1] / "golden" / "frontend" / "paddle"
BENCH = Path(__file__).parents[2] / "bench" / "models" / "paddle_models.py"
needs_paddle = pytest.mark.skipif(
    None in PADDLE.installed().values(),
    reason=f"PaddlePaddle is not installed: {PADDLE.install}, or name a Python that has it in {PADDLE.setting}",
)


@pytest.mark.parametrize("name", ["small.json", "small.pdmodel", "calls_python.pdmodel"])
def test_programs_are_known_by_content(name: str, tmp_path: Path) -> None:
    renamed = shutil.copy(PROGRAMS / name, tmp_path / "model.bin")
    for framework in ("auto", "paddle"):
        assert open_artifact(renamed, framework=framework).format == "paddle"
    with pytest.raises(ModelFormatError, match="is a PaddlePaddle inference model, not onnx"):
        open_artifact(renamed, framework="onnx")


def test_a_folder_is_its_program(tmp_path: Path) -> None:
    for name in ("small.json", "small.pdiparams", "small.pdmodel"):
        shutil.copy(PROGRAMS / name, tmp_path / name)
    (tmp_path / "config.json").write_text('{"Global": {"model_name": "small"}}')
    assert open_artifact(tmp_path).path == tmp_path / "small.json"
    (tmp_path / "small.json").unlink()
    folder = open_artifact(tmp_path, uri="s3://models/small")
    assert (folder.path, folder.uri) == (tmp_path / "small.pdmodel", "s3://models/small/small.pdmodel")
    shutil.copy(PROGRAMS / "small.json", tmp_path / "other.json")
    with pytest.raises(ModelFormatError, match=r"several PaddlePaddle models \(other.json, small.pdmodel\): name"):
        open_artifact(tmp_path)


def test_weights_alone_say_which_file_is_meant() -> None:
    with pytest.raises(ModelFormatError, match=r"weights only \(PaddlePaddle\): name the program"):
        open_artifact(PROGRAMS / "small.pdiparams")


def test_a_program_states_its_parameters() -> None:
    operators = checked_operators((PROGRAMS / "small.json").read_bytes(), "small.json")
    found = parameters(operators, "small.json")
    assert sorted(tuple(dims) for _, dims in found.values()) == [
        (4,),
        (8,),
        (8,),
        (8,),
        (8,),
        (8,),
        (8, 3, 3, 3),
        (8, 4),
    ]
    assert {element for element, _ in found.values()} == {"FLOAT"}


def program(*operators: dict[str, Any]) -> bytes:
    region = {"#": "region_0", "blocks": [{"#": "block_0", "args": [], "ops": list(operators)}]}
    return json.dumps({"base_code": {"magic": "pir", "version": 4}, "program": {"regions": [region]}}).encode()


@pytest.mark.parametrize("name", ["3.relu_of_mine", "1.py_func", "1.run_program", "1.load_combine"])
def test_operators_with_code_of_their_own_are_refused_by_name(name: str) -> None:
    hidden = {"#": "1.if", "regions": [{"#": "region_1", "blocks": [{"#": "b", "ops": [{"#": name}]}]}]}
    with pytest.raises(UnsafeModel, match=name.partition(".")[2]):
        checked_operators(program(hidden), "model.json")


def test_other_dialects_and_other_json_are_refused() -> None:
    with pytest.raises(UnsupportedOperator, match=r"pd_dist\.reshard"):
        check("pd_dist", "reshard", "model.json")
    for text in (b"{", b"[]", b'{"base_code": {"magic": "pir"}, "program": {"regions": [3]}}', b'{"base_code": {}}'):
        with pytest.raises(ModelFormatError, match="damaged PaddlePaddle program"):
            checked_operators(text, "model.json")
    with pytest.raises(ModelFormatError, match="damaged PaddlePaddle program"):
        parameters([{"#": "p", "A": [0, 1, 1], "O": {}}], "model.json")


def test_its_own_runtime_was_never_measured() -> None:
    resolved = resolve(Runtime.AUTO, "paddle")
    assert (resolved.asked, resolved.predicted) == (Runtime.PADDLE, Runtime.GRAPH)


def test_what_is_missing_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = open_artifact(PROGRAMS / "small.json")
    monkeypatch.setenv(PADDLE.setting, "/nowhere/python")
    with pytest.raises(ModelFormatError, match="DIPPM_PADDLE_PYTHON names /nowhere/python, which cannot be run"):
        load_graph(artifact, batch=1)
    missing = dataclasses.replace(PADDLE, packages=("paddle-that-is-not",))
    monkeypatch.setitem(CONVERTERS, "paddle", missing)  # type: ignore[misc]
    monkeypatch.delenv(PADDLE.setting)
    with pytest.raises(ModelFormatError, match=r"needs paddle-that-is-not: pip install 'dippm\[paddle\]'"):
        load_graph_in_child(artifact, batch=1)


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"module": "dippm.errors"}, ModelFormatError, "cannot be converted to ONNX: AttributeError"),
        ({"module": "this"}, ModelFormatError, "cannot be converted to ONNX: AttributeError"),
        ({"limits": dataclasses.replace(PADDLE.limits, wall_seconds=0.05)}, ParseLimitExceeded, "wall clock"),
        ({"limits": dataclasses.replace(PADDLE.limits, file_size_bytes=-7)}, ParseLimitExceeded, "crashed .*exit"),
    ],
)
def test_the_converters_process_always_ends_in_a_sentence(
    changed: dict[str, Any], error: type[Exception], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = open_artifact(PROGRAMS / "small.json")
    here = dataclasses.replace(PADDLE, packages=("pip",), **changed)
    monkeypatch.setitem(CONVERTERS, "paddle", here)  # type: ignore[misc]
    monkeypatch.setenv(PADDLE.setting, sys.executable)
    with pytest.raises(error, match=says) as refused, as_onnx(artifact):
        pass
    assert "\n" not in str(refused.value)


def test_other_formats_are_left_alone(tmp_path: Path) -> None:
    artifact = Artifact(tmp_path / "model.onnx", "onnx", 1)
    with as_onnx(artifact) as (readable, notes):
        assert (readable, notes) == (artifact, ())


def test_a_bias_is_the_convolutions_again_and_identities_go() -> None:
    node, helper = onnx.helper.make_node, onnx.helper
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("Constant", [], ["shape"], value=helper.make_tensor("t", onnx.TensorProto.INT64, [4], [1, -1, 1, 1])),
        node("Identity", ["shape"], ["same"]),
        node("Reshape", ["b", "same"], ["r"]),
        node("Add", ["c", "r"], ["a"]),
        node("Identity", ["a"], ["dropped"]),
        node("Conv", ["dropped", "w2"], ["c2"]),
        node("Reshape", ["b", "same"], ["r2"]),
        node("Add", ["r2", "c2"], ["a2"]),  # one channel more: not this convolution's bias
        node("Identity", ["a2"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3, 8, 8]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    without_identities(graph)
    with_biases(graph, {"w": ("FLOAT", [8, 3, 3, 3]), "b": ("FLOAT", [8]), "w2": ("FLOAT", [9, 8, 1, 1])})
    assert [(n.op_type, list(n.input), list(n.output)) for n in graph.node if n.op_type != "Constant"] == [
        ("Conv", ["x", "w", "b"], ["a"]),
        ("Reshape", ["b", "shape"], ["r"]),
        ("Conv", ["a", "w2"], ["c2"]),
        ("Reshape", ["b", "shape"], ["r2"]),
        ("Add", ["r2", "c2"], ["a2"]),
        ("Identity", ["a2"], ["y"]),
    ]


@needs_paddle
def test_the_operator_sizes_it() -> None:
    inputs: tuple[ModelInput, ...] = ()
    case, path = Case(batch=4, device="H200"), PROGRAMS / "small.json"
    prediction = ask(Question(path, "s3://models/small.json", ModelFormat.PADDLE, inputs, case, DEFAULT_POLICY))
    assert (prediction.format, prediction.runtime, prediction.basis) == ("paddle", "paddle", Basis.PROXY)
    with pytest.raises(ModelFormatError, match="is a PaddlePaddle inference model, not onnx"):
        ask(Question(path, "s3://models/small.json", ModelFormat.ONNX, inputs, case, DEFAULT_POLICY))


@needs_paddle
def test_both_formats_give_one_graph_and_need_no_weights(tmp_path: Path) -> None:
    graphs = []
    for name in ("small.json", "small.pdmodel"):
        alone = shutil.copy(PROGRAMS / name, tmp_path / name)
        graphs.append(load_graph_in_child(open_artifact(alone), batch=3))
    assert [o.kind for o in graphs[0].operators] == [o.kind for o in graphs[1].operators]
    assert [o.kind for o in graphs[0].operators][:3] == ["conv2d", "batch_norm", "relu"]
    for graph in graphs:
        assert (graph.format, graph.batch) == ("paddle", 3)
        assert graph.values[graph.inputs[0]].spec.shape == (3, 3, 32, 32)
        assert static_features(graph).macs == 3 * (32 * 32 * 8 * 3 * 3 * 3 + 8 * 4)
        assert any("paddle2onnx" in note for note in graph.notes)


@needs_paddle
def test_python_in_a_program_is_refused_by_name() -> None:
    with pytest.raises(UnsafeModel, match=r"calls_python\.pdmodel has an operator that runs code of its own .*py_func"):
        load_graph_in_child(open_artifact(PROGRAMS / "calls_python.pdmodel"), batch=1)


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.write_text, (self.path, "sung"))


@needs_paddle
def test_a_pickle_that_is_called_a_program_is_not_unpickled(tmp_path: Path) -> None:
    """`paddle.load` would unpickle it."""
    canary, file = tmp_path / "canary", tmp_path / "model.pdmodel"
    file.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(ModelFormatError, match="damaged PaddlePaddle program"):
        load_graph(Artifact(file, "paddle", file.stat().st_size), batch=1)
    assert not canary.exists()


@needs_paddle
@pytest.mark.parametrize("name", ["small.json", "small.pdmodel"])
def test_a_truncated_program_is_said_to_be(name: str, tmp_path: Path) -> None:
    part = tmp_path / name
    part.write_bytes((PROGRAMS / name).read_bytes()[:5000])
    with pytest.raises(ModelFormatError, match="damaged PaddlePaddle program"):
        load_graph(open_artifact(part), batch=1)


@needs_paddle
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "gmacs"), [("squeezenet1_1", 0.35), ("shufflenet_v2_x1_0", 0.145)])
def test_a_model_of_its_zoo(name: str, gmacs: float, tmp_path: Path) -> None:
    """Multiply-accumulates as torchvision states them for its own."""
    subprocess.run([PADDLE.interpreter(), str(BENCH), "make", name, str(tmp_path)], check=True, capture_output=True)
    features = static_features(load_graph_in_child(open_artifact(tmp_path), batch=2))
    assert features.macs / 2e9 == pytest.approx(gmacs, rel=0.01)
