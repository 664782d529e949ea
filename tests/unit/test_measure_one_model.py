"""`dippm measure --model` where no GPU is needed: what it refuses, how a file is run, what it prints."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dippm.artifact import open_artifact
from dippm.case import Case
from dippm.cli.entry import main
from dippm.errors import ModelFormatError, UnknownDevice, UnsafeModel
from dippm.frontend import load_graph, parse_input
from dippm.measure import one_model
from dippm.measure.one_model import Measured, example, loaded_by_torch, measure_file, to_dict, to_text
from dippm.measure.runtimes import torchscript_forward
from dippm.predictor import predict_graph
from dippm.zoo.planning import LiveBytes

pytestmark = pytest.mark.filterwarnings(r"ignore:`torch\.jit:DeprecationWarning")
CPU = torch.device("cpu")


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(torch.relu(self.conv(x)).mean((2, 3)), self.head.weight, self.head.bias)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network as a `.pt2` and as TorchScript, at batch 4."""
    folder, model, x = tmp_path_factory.mktemp("models"), Small().eval(), torch.randn(4, 3, 16, 16)
    torch.export.save(torch.export.export(model, (x,)), folder / "small.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(model, x), folder / "small.pt")  # type: ignore[no-untyped-call]
    torch.save(model.state_dict(), folder / "weights.pth")
    return {"pt2": folder / "small.pt2", "torchscript": folder / "small.pt", "pickle": folder / "weights.pth"}


@pytest.mark.parametrize("kind", ["pt2", "torchscript"])
def test_a_file_is_run_at_the_inputs_of_its_graph(kind: str, files: dict[str, Path]) -> None:
    artifact = open_artifact(files[kind])
    graph = load_graph(artifact, batch=4, inputs=None if kind == "pt2" else (parse_input("3,16,16"),))
    inputs = example(graph, CPU)
    assert [tuple(x.shape) for x in inputs] == [(4, 3, 16, 16)]
    assert loaded_by_torch(artifact, CPU)(*inputs).shape == (4, 4)


def test_a_pickle_is_refused_before_a_gpu_is_asked_for_anything(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsafeModel, match=r"export it with .*torch\.export"):
        measure_file(path, batch=4)


def test_a_state_dict_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(ModelFormatError, match="holds weights only"):
        measure_file(files["pickle"], batch=4)


def test_an_onnx_file_wants_its_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = replace(open_artifact(Path("examples/models/resnet50.onnx").resolve()), uri="resnet50.onnx")
    monkeypatch.setattr(one_model, "find_spec", lambda name: None)
    with pytest.raises(one_model.MissingRuntime, match=r"is an ONNX model.* pip install onnxruntime-gpu"):
        one_model.check_runtime(artifact)
    with pytest.raises(ModelFormatError, match="which is not run here: export it to ONNX"):
        one_model.check_runtime(replace(artifact, format="huggingface"))


def test_without_a_gpu_one_sentence(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(one_model, "find_spec", lambda name: True)
    assert main(["measure", "--model", "examples/models/resnet50.onnx", "--batch", "2"]) == 2
    assert re.search(r"dippm: (no NVIDIA GPU answers here|.* nvidia-ml-py: pip install)", capsys.readouterr().err)
    monkeypatch.setattr(one_model, "require_gpu", lambda: None)
    assert main(["measure", "--model", str(files["pt2"]), "--batch", "4"]) == 2
    assert re.search(r"dippm: PyTorch 2\.\S+ is a build without CUDA, or finds no GPU: ", capsys.readouterr().err)


def no_gpu() -> None:
    raise UnknownDevice("the GPU was asked for")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.onnx", "none.onnx cannot be read: No such file"),
        ("letter.onnx", "is no model that is known here"),
        ("small.pkl", "pickled PyTorch object"),
        ("cut.onnx", "cut.onnx"),
        ("resnet50.onnx", "the GPU was asked for"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_before_a_gpu_is_asked_for(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Path("examples/models/resnet50.onnx").read_bytes()
    (tmp_path / "letter.onnx").write_bytes(b"hello, this is no model at all")
    (tmp_path / "small.pkl").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "cut.onnx").write_bytes(good[:20_000])
    (tmp_path / "resnet50.onnx").write_bytes(good)
    monkeypatch.setattr(one_model, "require_gpu", no_gpu)
    monkeypatch.setattr("dippm.measure.command.require_gpu", no_gpu)
    monkeypatch.setattr(one_model, "find_spec", lambda name: True)
    assert main(["measure", "--model", str(tmp_path / name), "--batch", "2"]) == 2
    captured = capsys.readouterr().err
    assert said in captured
    assert len(captured.splitlines()) == 1


def test_a_list_of_cases_is_read_before_a_gpu_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dippm.measure.command.require_gpu", no_gpu)
    (tmp_path / "letter").write_text("hello\n")
    for name, said in (("none", "cannot be read (No such file or directory)"), ("letter", "is no list of cases")):
        assert main(["measure", str(tmp_path / name), "--out", str(tmp_path / "rows.gz")]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["graph", "extract", "none.jsonl", "g.gz"], "none.jsonl cannot be read (No such file or directory)"),
        (["graph", "pack", "none.jsonl", "r.gz", "--graphs", "g.gz", "--out", "o"], "none.jsonl cannot be read"),
        (["graph", "list", "/nowhere/list.jsonl", "--paper"], "/nowhere/list.jsonl cannot be read or written"),
        (["graph", "list", "l.jsonl", "--known", "/nowhere"], "/nowhere holds no cases.parquet"),
    ],
)
def test_a_missing_file_of_the_pipeline_is_one_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr().err
    assert said in captured
    assert len(captured.splitlines()) == 1


def test_a_list_or_a_model_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure"]) == 2
    assert "wants a list of cases and --out ROWS, or one file: --model FILE" in capsys.readouterr().err


def test_measured_and_predicted_stand_side_by_side(files: dict[str, Path]) -> None:
    graph = load_graph(open_artifact(files["pt2"]), batch=4)
    prediction = predict_graph(graph, Case(4, device="H200"))
    labels = {"memory_mib": 2 * prediction.memory_mib, "latency_ms": prediction.latency_ms}
    found = Measured(labels, prediction, "H200", "graph", ("a note",))
    lines = to_text(found).splitlines()
    assert next(line for line in lines if line.startswith("memory_mib")).split()[-2:] == ["-50.0", "%"]
    assert next(line for line in lines if line.startswith("latency_ms")).split()[-2:] == ["+0.0", "%"]
    body = json.loads(json.dumps(to_dict(found)))
    assert body["predicted"]["memory_mib"] == prediction.memory_mib
    assert body["measured"] == labels
    assert to_dict(replace(found, prediction=None))["predicted"] is None


class Holding(torch.nn.Module):
    """Its local `first` lives until the function returns; in a graph it dies where it is read last."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.relu(x)
        second = torch.cat([first, first], 1)
        third = torch.cat([second, second], 1)
        second = torch.relu(third)
        return second.mean(1)


def test_torchscript_frees_where_an_exported_graph_does() -> None:
    """Bytes of storages alive after each operator, at their peak, of the first passes and the later ones."""
    x = (torch.randn(2, 8, 64, 64),)

    def peak(run: Callable[..., object]) -> int:
        live = LiveBytes(x)
        with torch.inference_mode(), live:
            out = run(*x)
        del out
        return live.peak

    model = Holding().eval()
    exported = peak(torch.export.export(model, x).module())
    eager = peak(model)
    scripted = torchscript_forward(model, x)
    assert [peak(scripted) for _ in range(4)] == [exported] * 4
    assert eager > exported


def test_torchscript_is_what_was_traced_and_the_module_lets_go() -> None:
    model, x = Small().eval(), torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
    forward = torchscript_forward(model, (x,))
    with torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(forward(x), expected)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert isinstance(forward, torch.jit.ScriptModule)
