"""What a user says of a model's inputs: shapes, and names that must be the model's own."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from dippm.artifact import open_artifact
from dippm.errors import InputShapeError
from dippm.frontend import InputSpec, load_graph, parse_input
from dippm.frontend.inputs import asked_by_name

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3,224,224", InputSpec(None, (3, 224, 224))),
        ("128:int64", InputSpec(None, (128,), "int64")),
        ("ids=128:int64", InputSpec("ids", (128,), "int64")),
        ("serving_default_image:0=16,16,3", InputSpec("serving_default_image:0", (16, 16, 3))),
        ("serving_default_ids:0=128:int32", InputSpec("serving_default_ids:0", (128,), "int32")),
        ("mask=", InputSpec("mask", ())),
    ],
)
def test_a_shape_has_a_name_before_it_and_a_dtype_after_it(text: str, expected: InputSpec) -> None:
    assert parse_input(text) == expected


@pytest.mark.parametrize("text", ["3,many", "x=3;4", "x:0,1", "0,3", "x=-1", "3,8,8:float99", "x=3:int"])
def test_what_is_no_shape_is_said(text: str) -> None:
    with pytest.raises(InputShapeError, match="input"):
        parse_input(text)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["wrong=3"], r"^m has no input 'wrong': it has ids, mask$"),
        (["ids=3", "wrong=4"], r"^m has no input 'wrong': it has ids, mask$"),
        (["3", "4", "5"], r"^m has no input 3: it has ids, mask$"),
        (["ids=3", "ids=4"], r"^input 'ids' of m is described twice: say each input once$"),
        (["mask=3", "4"], r"^input 'mask' of m is described twice"),
    ],
)
def test_only_the_models_own_names_are_taken(given: list[str], said: str) -> None:
    with pytest.raises(InputShapeError, match=said):
        asked_by_name(["ids", "mask"], tuple(map(parse_input, given)), "m")


def test_inputs_without_names_are_the_models_in_its_order() -> None:
    given = tuple(map(parse_input, ("3", "mask=4")))
    assert asked_by_name(["ids", "mask"], given, "m") == {"ids": given[0], "mask": given[1]}


class Net(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.relu(image)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network by three doors of PyTorch."""
    folder, x = tmp_path_factory.mktemp("models"), torch.zeros(2, 3, 8, 8)
    torch.export.save(torch.export.export(Net().eval(), (x,)), folder / "net.pt2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(Net().eval(), x), folder / "net.ts")  # type: ignore[no-untyped-call]
    torch.save(Net(), folder / "net.pth")
    return folder


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["net.pt2", "net.ts", "net.pth", "resnet50.onnx"])
def test_a_name_that_a_model_of_one_input_does_not_have_is_refused(files: Path, name: str) -> None:
    path = ROOT / "examples" / "models" / name if name.endswith("onnx") else files / name
    side = 224 if name.endswith("onnx") else 8
    own = "input" if name.endswith("onnx") else "image"
    artifact = open_artifact(path)
    for asked in (InputSpec(None, (3, side, side)), InputSpec(own, (3, side, side))):
        assert load_graph(artifact, batch=2, inputs=(asked,), trust_pickle=True).operators
    if name.endswith("pt2"):
        with pytest.raises(
            InputShapeError, match=r"input 'image' of .*net\.pt2 is float32 in the file, not int64: leave"
        ):
            load_graph(artifact, batch=2, inputs=(InputSpec("image", (3, 8, 8), "int64"),))
    with pytest.raises(InputShapeError, match=f"has no input 'nonsense': it has {own}$"):
        load_graph(artifact, batch=2, inputs=(InputSpec("nonsense", (3, side, side)),), trust_pickle=True)
