"""`dippm predict` from a file to its answer, and every bad input of a model file in one sentence.

The files are made here; the costs of operators are given, so that nothing depends on the weights that ship.
"""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import dippm
from dippm.case import Case
from dippm.cli import main
from dippm.errors import DippmError
from dippm.graph import ModelGraph
from dippm.network.bundle import Estimates
from dippm.network.calibration import UpperBound

MODELS = Path(__file__).parents[2] / "examples/models"
GOLDEN = Path(__file__).parents[1] / "golden/predict_json_keys.json"


class Given:
    """A bundle that says the same of every operator."""

    device = "H200"

    def estimate(self, graph: ModelGraph, case: Case, *, work: object, risk_percent: float) -> Estimates:
        count = len(graph.operators)
        bound = UpperBound(0.1, risk_percent, "known", 100)
        return Estimates(
            (0,) * count, (20.0,) * count, (1,) * count, (0.01,) * count, (10.0,) * count, 5.0, 1.0, 100.0, {},
            {"min_cap": bound, "reserved": bound}, 1.0,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def _given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dippm.network.bundle.load_bundle", Given)


def network(
    operator: str = "Relu", *, batch: int | str = "N", channels: int = 16, size: int | str = 32
) -> onnx.ModelProto:
    """Convolution, an operator, pooling and a fully connected layer."""
    weights = {
        "w": np.zeros((channels, 3, 3, 3), np.float32),
        "b": np.zeros(channels, np.float32),
        "fc": np.zeros((10, channels), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "fc"], ["y"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    return path


def test_json_has_exactly_the_keys_of_the_design(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(model), "--batch", "4", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert list(body) == golden["object"]
    assert all(list(c) == golden["candidate"] for c in body["candidates"])
    assert list(body["static_features"]) == golden["static_features"]
    assert {"load", "convert", "replay", "network", "total"} <= set(body["seconds"])
    assert body["static_features"] == {
        "macs": 4 * (16 * 32 * 32 * 27 + 160), "batch": 4, "convs": 1, "denses": 1, "relus": 1,
    }  # fmt: skip
    assert body["mig_profile"] == "1g.5gb"
    assert body["resource"] == "nvidia.com/mig-1g.5gb"
    assert body["device"] == "A100-SXM4-40GB"


def test_the_table_marks_the_chosen_profile(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(model), "--batch", "4", "--allow", "2g.10gb"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("* ")] == ["2g.10gb"]
    assert "nvidia.com/mig-2g.10gb" in out
    assert "note: memory is that of ONNX Runtime's arena" in out
    assert "no rules of its own" not in out


def test_a_model_too_large_for_every_profile_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(network(size=2048), path)
    assert main(["predict", str(path), "--batch", "256", "--json"]) == 0
    captured = capsys.readouterr()
    body = json.loads(captured.out)
    assert (body["mig_profile"], body["resource"]) == (None, None)
    assert "TooLargeForEveryProfile" in captured.err


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_call_of_the_papers_figure_5_unpacks_to_its_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(MODELS)
    out = dippm.predict(framework="pytorch", path="vgg16.pt", batch=32, input="3,224,224", device="A100")
    text = "Predicted Memory {0} MB, Energy {1} J, Latency {2} ms, MIG {3}".format(*out)  # noqa: UP030 word for word
    assert out.static_features["macs"] == pytest.approx(32 * 15.47e9, rel=0.01)
    assert out.weights_mib == pytest.approx(138_357_544 * 4 / 2**20, rel=0.01)
    memory, energy, latency = round(out.memory_mib), round(out.energy_j, 3), round(out.latency_ms, 3)
    assert text == f"Predicted Memory {memory} MB, Energy {energy} J, Latency {latency} ms, MIG {out.mig_profile}"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"batch": 0}, "batch must be a whole number"),
        ({"batch": True}, "batch must be a whole number"),
        ({"precision": "int3"}, "precision must be one of fp32, tf32, fp16, bf16, not 'int3'"),
        ({"runtime": "abacus"}, "runtime must be one of auto, eager"),
        ({"device": "A1000"}, "unknown device"),
    ],
)
def test_python_answers_a_bad_argument_with_a_sentence_for_the_user(
    model: Path, given: dict[str, object], said: str
) -> None:
    with pytest.raises(DippmError, match=said):
        dippm.predict(str(model), **({"batch": 1} | given))  # type: ignore[arg-type]


def as_onnx(made: onnx.ModelProto) -> bytes:
    return made.SerializeToString()


BAD: list[tuple[str, Callable[[], bytes], list[str], str]] = [
    ("no model at all", lambda: b"hello, I am a letter\n" * 9, [], "model.bin"),
    ("an empty file", lambda: b"", [], "empty"),
    ("a truncated ONNX", lambda: as_onnx(network(channels=64))[:-4000], [], "model.bin"),
    ("an operator that nobody knows", lambda: as_onnx(network("Frobnicate")), [], "Frobnicate"),
    ("a shape that the file leaves open", lambda: as_onnx(network(size="S")), [], "--input"),
    ("a shape that does not suit", lambda: as_onnx(network()), ["--input", "5,32,32"], "5"),
    ("a shape that is none", lambda: as_onnx(network()), ["--input", "3,many"], "3,many"),
    ("a digest of something else", lambda: as_onnx(network()), ["--digest", "sha256:" + "0" * 64], "sha256"),
    ("another framework's file", lambda: as_onnx(network()), ["--framework", "pytorch"], "pytorch"),
    ("a framework that nobody knows", lambda: as_onnx(network()), ["--framework", "abacus"], "abacus"),
    ("a pickle", lambda: pickle.dumps({"weights": [1, 2, 3]}), [], "export"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "more", "said"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_bad_file_is_one_sentence_and_exit_code_2(
    content: Callable[[], bytes], more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content())
    assert main(["predict", str(path), "--batch", "2", *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("dippm: ")


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty"), (None, "No such file"), (as_onnx(network()), "--batch 32")]
)
def test_a_wrong_file_is_said_before_the_batch(
    content: bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.bin"
    if content is not None:
        path.write_bytes(content)
    assert main(["predict", str(path)]) == 2
    assert said in capsys.readouterr().err


NETWORK = network(channels=2).SerializeToString()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, len(NETWORK) - 1), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(1, len(NETWORK)),
    st.booleans(),
)
def test_whatever_is_wrong_with_a_file_the_answer_is_a_prediction_or_a_sentence(
    changes: list[tuple[int, int]], length: int, cut: bool
) -> None:
    content = bytearray(NETWORK)
    for position, byte in changes:
        content[position] = byte
    with tempfile.TemporaryDirectory() as folder, patch("dippm.network.bundle.load_bundle", Given):
        path = Path(folder, "model.onnx")
        path.write_bytes(content[:length] if cut else content)
        said = "a prediction"
        try:
            dippm.predict(path, batch=2)
        except DippmError as error:
            said = str(error)
    assert len(said.splitlines()) == 1


def test_a_path_that_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path / "gone.onnx"), "--batch", "2"]) == 2
    assert "gone.onnx" in capsys.readouterr().err
