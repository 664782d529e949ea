"""TorchScript files, traced and scripted."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from dippm.artifact import open_artifact
from dippm.errors import InputShapeError, ModelFormatError, UnsupportedOperator
from dippm.features import static_features
from dippm.frontend import InputSpec, load_graph
from dippm.frontend.exported_program import graph_of_module
from dippm.graph import ModelGraph

VGG16 = Path(__file__).parents[2] / "examples" / "models" / "vgg16.pt"
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(self.norm(x))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleList([Block(), Block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if x.size(0) > 2:
            x = torch.sigmoid(x)
        for block in self.blocks:
            x = block(block(x))
        left, right = x.chunk(2, 1)
        return (left + right).view(x.size(0), -1)


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool(x.sum() > 0):
            return x + 1
        return x


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs)) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        if self.skip is not None:
            x = self.skip(x)
        y += x
        return nn.functional.relu(y)


class Containers(nn.Module):
    """Lists, dictionaries, an assertion, a raise and an early return, all decided by shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Conv2d(3, 4, 1) for _ in range(3)])
        self.gates = nn.ModuleDict({"a": nn.ReLU(), "b": nn.Sigmoid()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4:
            raise ValueError("four dimensions")
        named = {"x": x}
        found = [x]
        for number, head in enumerate(self.heads):
            if number % 2 == 0:
                found.insert(0, head(x))
            else:
                found.extend([head(x)])
        for _, gate in self.gates.items():
            x = gate(x)
        named["y"] = torch.cat(found[:-1], 1)
        assert named["y"].size(1) > 3, f"channels: {x.shape}"
        if "z" in named:
            return named["z"]
        height, width = x.shape[-2:]
        return nn.functional.interpolate(named["y"], size=(height * 2, width * 2))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(x)[0]


class Sorting(nn.Module):
    """Python's sort is not followed; passing over it would take the wrong branch."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        names = ["b", "a"]
        names.sort()
        return x + 1 if names[0] == "a" else x


def scripted(path: Path, module: nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(module.eval()), str(path))
    return path


def load(path: Path, batch: int, *shapes: tuple[int, ...]) -> ModelGraph:
    inputs = tuple(InputSpec(None, s) for s in shapes)
    return load_graph(open_artifact(path), batch=batch, inputs=inputs or None)


def test_the_papers_vgg16() -> None:
    graph = load(VGG16, 32, (3, 224, 224))
    assert graph.format == "torchscript"
    assert graph.values[graph.outputs[0]].spec.shape == (32, 1000)
    assert sum(graph.values[i].spec.numel for i in graph.parameter_ids) == 138_357_544
    static = static_features(graph)
    assert (static.convs, static.denses, static.relus) == (13, 3, 15)
    assert static.macs / 32 == pytest.approx(15.47e9, rel=0.01)
    assert graph.operators[0].scope == ("", "features", "features.0")
    relu = next(o for o in graph.operators if o.kind == "relu")
    assert graph.values[relu.outputs[0]].alias_of == relu.inputs[0]


def test_branches_and_loops_go_as_the_shapes_say(tmp_path: Path) -> None:
    path = scripted(tmp_path / "m.pt", Branching())
    assert [o.kind for o in load(path, 2, (3, 8, 8)).operators].count("sigmoid") == 0
    graph = load(path, 4, (3, 8, 8))
    kinds = [o.kind for o in graph.operators]
    assert kinds == ["conv2d", "sigmoid", *["batch_norm", "relu"] * 4, "split", "add", "reshape"]
    norms = [o.scope for o in graph.operators if o.kind == "batch_norm"]
    assert norms[:2] == [("", "blocks.0", "blocks.0.norm"), ("", "blocks.0@1", "blocks.0.norm@1")]
    split = graph.operators[-3]
    assert [graph.storage(o) for o in split.outputs] == [graph.storage(split.inputs[0])] * 2


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        pytest.param(
            nn.Sequential(
                nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
            ),
            (3, 16, 16),
            id="cnn",
        ),
        pytest.param(
            nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), nn.GroupNorm(4, 8), nn.GELU(), nn.AvgPool2d(2),
                nn.InstanceNorm2d(8), nn.SiLU(), nn.Dropout(), nn.Upsample(scale_factor=2, mode="bilinear"),
                nn.ConvTranspose2d(8, 4, 2, 2), nn.PixelShuffle(2), nn.Softmax(1),
            ),
            (3, 16, 16),
            id="layers",
        ),
        pytest.param(nn.Sequential(Residual(3, 8), Residual(8, 8), nn.Flatten()), (3, 8, 8), id="residual"),
        pytest.param(Containers(), (3, 8, 8), id="containers"),
        pytest.param(Recurrent(), (5, 3), id="lstm"),
    ],
)  # fmt: skip
def test_a_scripted_module_is_the_module(tmp_path: Path, module: nn.Module, shape: tuple[int, ...]) -> None:
    graph = load(scripted(tmp_path / "m.pt", module), 4, shape)
    expected = graph_of_module(module.to("meta"), [torch.empty((4, *shape), device="meta")], batch=4)
    assert [o.kind for o in graph.operators] == [o.kind for o in expected.operators]
    assert [graph.values[o].spec for o in graph.outputs] == [expected.values[o].spec for o in expected.outputs]


def test_a_raise_that_is_reached_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputShapeError, match="four dimensions"):
        load(scripted(tmp_path / "m.pt", Containers()), 4, (3,))


@pytest.mark.parametrize(
    ("module", "shape"),
    [(Sorting(), (3,)), (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (5, 16))],
    ids=["sort", "fast path"],
)
def test_what_cannot_be_followed_is_one_sentence(tmp_path: Path, module: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedOperator, match=r"scripted .*torch\.jit\.trace or torch\.export") as refused:
        load(scripted(tmp_path / "m.pt", module), 4, shape)
    assert "\n" not in str(refused.value)


def test_shapes_are_asked_for() -> None:
    with pytest.raises(InputShapeError, match=r"--input 3,224,224"):
        load(VGG16, 32)
    with pytest.raises(InputShapeError, match=r"takes 1 inputs|no input 2"):
        load(VGG16, 32, (3, 224, 224), (3,))
    with pytest.raises(InputShapeError, match="do not go through the model") as refused:
        load(VGG16, 32, (4, 224, 224))
    assert "\n" not in str(refused.value)


def test_control_flow_on_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedOperator, match="reads the model's data"):
        load(scripted(tmp_path / "m.pt", DataDependent()), 2, (3,))


def test_a_truncated_file_is_one_sentence(tmp_path: Path) -> None:
    whole = VGG16.read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFormatError, match="truncated or damaged"):
        load(tmp_path / "half.pt", 2, (3, 224, 224))
