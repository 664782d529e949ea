"""Files that carry code, with a canary that sings when it runs: through every way in, and the one way on purpose."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dippm.artifact import open_artifact
from dippm.case import Case
from dippm.cli.entry import main
from dippm.errors import DippmError, ModelFormatError, UnsafeModel
from dippm.frontend import InputSpec, load_graph
from dippm.frontend.child import load_graph_in_child
from dippm.policy import DEFAULT_POLICY
from dippm_operator.predict import Question, ask
from dippm_operator.resource import InferenceJobSpec, ModelFormat, ModelInput

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
IMAGE = (3, 8, 8)


class Sings:
    """Writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (Path.write_text, (self.canary, "sung"))


class Net(nn.Module):
    """A module of this file, so that a pickle of it can be loaded here."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


class SingingNet(Net):
    """A module that is a model, and sings when it is loaded."""

    def __init__(self, canary: Path) -> None:
        super().__init__()
        self.canary = Sings(canary)


def raw_pickle(folder: Path, canary: Path) -> Path:
    file = folder / "model.pkl"
    file.write_bytes(pickle.dumps(Sings(canary)))
    return file


def saved_module(folder: Path, canary: Path) -> Path:
    file = folder / "model.pt"
    torch.save(SingingNet(canary), file)
    return file


def saved_weights(folder: Path, canary: Path) -> Path:
    file = folder / "pytorch_model.bin"
    torch.save({"weight": torch.zeros(2), "more": Sings(canary)}, file)
    return file


def scripted(folder: Path, canary: Path) -> Path:
    """A TorchScript archive whose pickles are Python's own."""
    plain, file = io.BytesIO(), folder / "model.pt"
    torch.jit.save(torch.jit.script(Net()), plain)  # type: ignore[no-untyped-call]
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.infolist():
            evil = entry.filename.endswith((".pkl",))
            target.writestr(entry.filename, pickle.dumps(Sings(canary), 2) if evil else source.read(entry))
    return file


def exported(folder: Path, canary: Path, change: Callable[[str, bytes, bytes], bytes]) -> Path:
    """A `.pt2` with each member as `change` (of name, content and the evil pickle) gives it."""
    plain, file = folder / "plain.pt2", folder / "model.pt2"
    evil = io.BytesIO()
    torch.save(Sings(canary), evil)
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(1, *IMAGE),)), plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w") as target:
        for entry in source.infolist():
            target.writestr(entry.filename, change(entry.filename, source.read(entry), evil.getvalue()))
    return file


def exported_with_pickled_weight(folder: Path, canary: Path) -> Path:
    def change(name: str, content: bytes, evil: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            body = json.loads(content)
            for payload in body["config"].values():
                payload["use_pickle"] = True
            return json.dumps(body).encode()
        return evil if "/data/weights/weight_" in name else content

    return exported(folder, canary, change)


def exported_with_pickled_example(folder: Path, canary: Path) -> Path:
    """The example inputs are a pickle in every `.pt2`; here a singing one."""
    return exported(folder, canary, lambda name, content, evil: evil if "sample_inputs" in name else content)


def remote_code(folder: Path, canary: Path) -> Path:
    body = {"model_type": "bert", "architectures": ["EvilModel"], "auto_map": {"AutoModel": "evil.EvilModel"}}
    return _repository(folder, canary, {**body, "trust_remote_code": True})


def remote_code_of_its_own_type(folder: Path, canary: Path) -> Path:
    return _repository(folder, canary, {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"}})


def _repository(folder: Path, canary: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(canary)!r}).write_text('sung')\n")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    return folder


FILES = {
    "a pickle": raw_pickle, "a pickled module": saved_module, "pickled weights": saved_weights,
    "a TorchScript archive with pickles of Python's": scripted,
    "a .pt2 with a pickled weight": exported_with_pickled_weight,
    "a repository with remote code": remote_code, "a repository of a type of its own": remote_code_of_its_own_type,
}  # fmt: skip


def in_process(file: Path) -> None:
    load_graph(open_artifact(file), batch=1, inputs=(InputSpec(None, IMAGE),))


def in_child(file: Path) -> None:
    load_graph_in_child(open_artifact(file), batch=1, inputs=(InputSpec(None, IMAGE),))


def operator(file: Path) -> None:
    ask(question(file, limited=True))


def size_command(file: Path) -> None:
    """`dippm size` of a file of the user's own, which it reads without a child."""
    ask(question(file, limited=False))


def question(file: Path, *, limited: bool) -> Question:
    inputs = (ModelInput(name="x", shape=IMAGE, dtype="float32"),)
    return Question(
        file, str(file), ModelFormat.AUTO, inputs, Case(batch=1, device="H200"), DEFAULT_POLICY, limited=limited
    )


@pytest.mark.parametrize("way", [in_process, in_child, operator, size_command])
@pytest.mark.parametrize("kind", FILES)
def test_no_way_in_runs_what_a_file_carries(kind: str, way: Callable[[Path], None], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = FILES[kind](tmp_path, canary)
    with pytest.raises(ModelFormatError) as refused:
        way(file)
    assert not canary.exists()
    assert "\n" not in str(refused.value)


def test_the_canaries_can_sing(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    for number, make in enumerate((raw_pickle, saved_module, saved_weights)):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = make(folder, folder / "canary")
        if make is raw_pickle:
            pickle.loads(file.read_bytes())
        else:
            torch.load(file, weights_only=False)
        assert (folder / "canary").exists()


def test_the_example_in_a_pt2_is_not_unpickled(tmp_path: Path) -> None:
    """It is a good model all the same, and read as one."""
    canary = tmp_path / "canary"
    file = exported_with_pickled_example(tmp_path, canary)
    for load in (load_graph, load_graph_in_child):
        assert len(load(open_artifact(file), batch=1).operators) == 2
    assert not canary.exists()


def test_the_command_line_refuses_a_pickle_with_two_lines_to_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    canary = tmp_path / "canary"
    file = saved_module(tmp_path, canary)
    assert main(["predict", str(file), "--batch", "1", "--input", "3,8,8"]) == 2
    said = capsys.readouterr().err
    assert "torch.export.export(model.eval(), (example,))" in said
    assert "torch.export.save(program, 'model.pt2')" in said
    assert not canary.exists()


def test_a_pickle_of_ones_own_is_loaded_when_it_is_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canary = tmp_path / "canary"
    file = saved_module(tmp_path, canary)
    arguments = ["predict", str(file), "--batch", "1", "--input", "3,8,8", "--device", "H200", "--json"]
    assert main([*arguments, "--trust-pickle"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["static_features"]["convs"] == 1
    assert canary.exists()


def test_trusting_a_pickle_makes_nothing_else_trusted(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = exported_with_pickled_weight(tmp_path, canary)
    with pytest.raises(UnsafeModel, match="pickled object"):
        load_graph(open_artifact(file), batch=1, trust_pickle=True)
    folder = tmp_path / "repository"
    folder.mkdir()
    with pytest.raises(DippmError, match="auto_map"):
        load_graph(open_artifact(remote_code(folder, canary)), batch=1, trust_pickle=True)
    assert not canary.exists()


def test_the_operator_cannot_ask_for_trust() -> None:
    """No field of the resource and no line of the operator's code; its way to a graph has no such parameter."""
    assert "rust" not in json.dumps(InferenceJobSpec.model_json_schema()["properties"])
    assert not [
        str(file)
        for file in (REPOSITORY / "operator").rglob("*.py")
        if "trust_pickle" in file.read_text(encoding="utf-8")
    ]
    assert "trust_pickle" not in load_graph_in_child.__annotations__
