"""`.pt2` files: loaded without weights, pickles or expressions; at the batch asked for."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dippm.artifact import open_artifact
from dippm.errors import InputShapeError, ModelFormatError, UnsafeModel, UnsupportedOperator
from dippm.frontend import InputSpec, graph_from_module, load_graph
from dippm.frontend.pickles import holds_weights_alone
from dippm.frontend.pt2_safety import check_expression


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.conv(x))
        x = nn.functional.adaptive_avg_pool2d(x, 4)
        return self.fc(x.reshape(x.shape[0], -1))


def saved(path: Path, module: nn.Module, shape: tuple[int, ...], *dynamic: int) -> Path:
    names = ("batch", "height", "width")
    dims = {d: torch.export.Dim(names[n]) for n, d in enumerate(dynamic)}
    program = torch.export.export(module.eval(), (torch.zeros(shape),), dynamic_shapes=(dims,) if dims else None)
    torch.export.save(program, path)
    return path


def load(path: Path, batch: int, *inputs: InputSpec) -> Any:
    return load_graph(open_artifact(path), batch=batch, inputs=inputs or None)


@pytest.mark.parametrize("dynamic", [(0,), ()])
def test_the_file_gives_the_graph_of_the_module_at_any_batch(tmp_path: Path, dynamic: tuple[int, ...]) -> None:
    path = saved(tmp_path / "net.pt2", Net(), (2, 3, 8, 8), *dynamic)
    for batch in (2, 7):
        graph = load(path, batch)
        module = Net().to("meta").eval()
        expected = graph_from_module(module, [torch.empty(batch, 3, 8, 8, device="meta")], batch=batch)
        assert graph.digest == expected.digest
        assert [o.scope for o in graph.operators] == [o.scope for o in expected.operators]
        assert graph.operators[0].source == expected.operators[0].source


def test_dynamic_dimensions_beside_the_batch_are_asked_for(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt2", Net(), (2, 3, 8, 8), 0, 2, 3)
    with pytest.raises(InputShapeError, match="--input x=3,8,8"):
        load(path, 4)
    graph = load(path, 4, InputSpec("x", (3, 20, 12)))
    assert graph.values[graph.operators[0].outputs[0]].spec.shape == (4, 8, 20, 12)
    with pytest.raises(InputShapeError, match="does not fit"):
        load(path, 4, InputSpec("x", (1, 20, 12)))


def test_a_batch_that_cannot_be_replaced_says_how_to_export(tmp_path: Path) -> None:
    class Stubborn(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(2, 3, 4)

    path = saved(tmp_path / "m.pt2", Stubborn(), (2, 3, 4))
    assert load(path, 2).outputs
    with pytest.raises(InputShapeError, match=r"fixed batch of 2 .*dynamic_shapes"):
        load(path, 8)


def tampered(path: Path, member: str, change: Callable[[dict[str, Any]], None]) -> Path:
    evil = path.with_name("evil.pt2")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(evil, "w") as target:
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith(member):
                body = json.loads(content)
                change(body)
                content = json.dumps(body).encode()
            target.writestr(entry.filename, content)
    return evil


def replace_expressions(body: Any, text: str) -> None:
    if isinstance(body, dict):
        if "expr_str" in body:
            body["expr_str"] = text
        for value in body.values():
            replace_expressions(value, text)
    elif isinstance(body, list):
        for value in body:
            replace_expressions(value, text)


def test_code_in_an_expression_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt2", Net(), (2, 3, 8, 8), 0)
    canary = tmp_path / "canary"
    code = f"__import__('os').system('touch {canary}')"
    evil = tampered(path, "models/model.json", lambda body: replace_expressions(body, code))
    with pytest.raises(UnsafeModel, match="would be run on loading") as refused:
        load(evil, 4)
    assert not canary.exists()
    assert "\n" not in str(refused.value)
    with pytest.raises(AttributeError):  # the reason for all this: PyTorch itself runs it, then stumbles
        torch.export.load(evil)
    assert canary.exists()


def test_a_pickled_payload_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt2", Net(), (2, 3, 8, 8))

    def pickled(body: dict[str, Any]) -> None:
        body["config"]["fc.weight"]["use_pickle"] = True

    with pytest.raises(UnsafeModel, match=r"fc.weight.*pickled"):
        load(tampered(path, "model_weights_config.json", pickled), 2)


def test_a_target_outside_aten_is_refused_by_name(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt2", Net(), (2, 3, 8, 8))

    def call(body: dict[str, Any]) -> None:
        body["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"

    with pytest.raises(UnsupportedOperator, match=r"torch\.hub\.load"):
        load(tampered(path, "models/model.json", call), 2)


def test_a_damaged_program_is_one_sentence(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt2", Net(), (2, 3, 8, 8))
    for key in ("graph", "signature"):
        with pytest.raises(ModelFormatError) as refused:
            load(tampered(path, "models/model.json", lambda body, key=key: body["graph_module"].pop(key)), 2)
        assert "\n" not in str(refused.value)


@given(st.text(alphabet="()'._abcdefos0123456789*+-[]{}lambda: ", max_size=30))
def test_only_arithmetic_passes(text: str) -> None:
    try:
        check_expression(text, "model.pt2")
    except UnsafeModel:
        return
    assert not set(text) & set('"_[]{}:')


@pytest.mark.parametrize(
    "text",
    [
        "s0",
        "2*s77 + 1",
        "Max(1, s0//2)",
        "Mod(s0, 16)",
        "((s0 - 1)//2) + 1",
        "u0",
        "True",
        "Mul(Integer(3), Symbol('s77', positive=True, integer=True))",
    ],
)
def test_what_exporters_write_passes(text: str) -> None:
    check_expression(text, "model.pt2")


def test_pickled_modules_are_refused_with_the_way_to_export(tmp_path: Path) -> None:
    torch.save(Net(), tmp_path / "whole.pth")
    with pytest.raises(UnsafeModel, match=r"torch\.export\.export\(model\.eval\(\)"):
        load(tmp_path / "whole.pth", 2, InputSpec(None, (3, 8, 8)))
    torch.save(Net().state_dict(), tmp_path / "weights.pth")
    checkpoint = {"state_dict": Net().state_dict(), "epoch": 3, "best": 0.5}
    said = r"weights only.*torch\.export\.save.*save_file.*--constructor"
    for name, body, zipped in (("new", Net().state_dict(), True), ("old", checkpoint, False), ("cp", checkpoint, True)):
        torch.save(body, tmp_path / f"{name}.pth", _use_new_zipfile_serialization=zipped)
        for trust in (False, True):
            with pytest.raises(ModelFormatError, match=said) as refused:
                load_graph(open_artifact(tmp_path / f"{name}.pth"), batch=2, trust_pickle=trust)
            assert not isinstance(refused.value, UnsafeModel)
    with pytest.raises(ModelFormatError, match=r"a constructor is for safetensors: save its weights with `safetensors"):
        open_artifact(tmp_path / "new.pth", constructor="timm:resnet18")


class Counts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.histc(torch.relu(x), 4)


def test_an_operator_that_is_not_known_is_named_with_its_file_and_torch_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "counts.pt2", Counts(), (2, 3))
    with pytest.raises(UnsupportedOperator, match=r"counts\.pt2: operator aten\.histc\.default is not supported"):
        load(path, 2)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    handler = logging.StreamHandler()  # the one that torch has by itself holds on to the standard error of its import
    logger.addHandler(handler)

    def refuses(*_: object) -> None:
        logger.error("failed while attempting to run meta")
        raise RuntimeError("k not in range for dimension")

    monkeypatch.setattr("dippm.frontend.doors._through", refuses)
    try:
        with pytest.raises(ModelFormatError, match="k not in range"):
            load(path, 2)
        assert capsys.readouterr().err == ""
        logger.error("heard again")
        assert "heard again" in capsys.readouterr().err
    finally:
        logger.removeHandler(handler)


def test_a_pickle_with_a_class_of_its_own_is_no_state_dict(tmp_path: Path) -> None:
    for number, body in enumerate((Net(), {"weights": Net().state_dict(), "net": Net()}, [1, 2])):
        for zipped in (True, False):
            torch.save(body, tmp_path / f"{number}.pth", _use_new_zipfile_serialization=zipped)
            assert not holds_weights_alone(tmp_path / f"{number}.pth")
    (tmp_path / "cut").write_bytes((tmp_path / "0.pth").read_bytes()[:300])
    assert not holds_weights_alone(tmp_path / "cut")


class Windows(nn.Module):
    """Folds the batch into the leading dimension and takes it out again, as windowed attention does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, c, h, w = x.shape
        windows = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
        n = windows.shape[0]
        windows = windows.reshape(n, 4, 2, c // 2).relu().reshape(n, 4, c)
        return windows.view(b, h // 2, w // 2, 2, 2, c).mean((1, 2))


def test_a_fixed_batch_inside_a_leading_dimension_is_replaced(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt2", Windows(), (1, 8, 4, 4))
    graph = load(path, 6)
    module = Windows().to("meta").eval()
    expected = graph_from_module(module, [torch.empty(6, 8, 4, 4, device="meta")], batch=6)
    assert graph.digest == expected.digest


def test_tied_weights_of_a_file_are_held_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(100, 16)
            self.head = nn.Linear(16, 100, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(ids))

    program = torch.export.export(Tied().eval(), (torch.zeros(2, 5, dtype=torch.long),))
    torch.export.save(program, tmp_path / "m.pt2")
    graph = load(tmp_path / "m.pt2", 2)
    assert sum(graph.values[i].spec.nbytes for i in graph.parameter_ids) == 100 * 16 * 4
