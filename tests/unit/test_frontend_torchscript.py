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
