"""Weights alone: which constructor they are of, and that nothing but timm's and torchvision's own is ever built."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dippm.artifact import Artifact, open_artifact
from dippm.case import Runtime
from dippm.errors import InputShapeError, ModelFormatError
from dippm.features import static_features
from dippm.frontend import InputSpec, load_graph
from dippm.frontend.child import load_graph_in_child
from dippm.frontend.constructors import _arguments, _named
from dippm.runtimes import resolve

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: pip install 'dippm[timm]'"
)


def weights(path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    """A safetensors file of FP16 tensors whose data is a hole."""
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        nbytes = 2
        for dimension in shape:
            nbytes *= dimension
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def shapes_of(name: str, **arguments: Any) -> dict[str, tuple[int, ...]]:
    import timm
    import torch

    with torch.device("meta"):
        module = timm.create_model(name, pretrained=False, **arguments)
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def test_who_says_what_the_weights_are(tmp_path: Path) -> None:
    """The one who asks, then timm's config beside them, then their own metadata."""
    alone = weights(tmp_path / "a" / "weights.safetensors", {"w": (2, 2)})
    with pytest.raises(ModelFormatError, match=r"weights only .*--constructor timm:NAME or torchvision:NAME"):
        open_artifact(alone)
    asked = open_artifact(alone, constructor="torchvision:resnet18", framework="pytorch")
    assert (asked.format, asked.constructor) == ("safetensors", "torchvision:resnet18")
    for said, understood in (("resnet18", "timm:resnet18"), ("torchvision:vgg11", "torchvision:vgg11")):
        told = weights(tmp_path / "b" / "weights.safetensors", {"w": (2, 2)}, {"architecture": said})
        assert open_artifact(told).constructor == understood
    (tmp_path / "a" / "config.json").write_text(json.dumps({"architecture": "resnet50.a1_in1k", "num_classes": 10}))
    assert open_artifact(alone).constructor == "timm:resnet50"
    for framework in ("auto", "huggingface", "pytorch"):
        folder = open_artifact(tmp_path / "a", framework=framework)
        assert (folder.format, folder.path, folder.constructor) == ("safetensors", tmp_path / "a", "timm:resnet50")
    assert resolve(Runtime.AUTO, "safetensors").asked is Runtime.EAGER


def test_what_says_itself_what_it_is_takes_no_constructor(tmp_path: Path) -> None:
    model = Path(__file__).parents[2] / "examples" / "models" / "resnet50.onnx"
    with pytest.raises(ModelFormatError, match="is an ONNX model, which says itself what it is"):
        open_artifact(model, constructor="timm:resnet50")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architecture": "resnet50"}')
    assert open_artifact(tmp_path).format == "huggingface"
    with pytest.raises(ModelFormatError, match="which says itself what it is"):
        open_artifact(tmp_path, constructor="timm:resnet50")


@pytest.mark.parametrize("name", ["os:system", "resnet50", "timm:", "builtins:eval", "timm.models:resnet50"])
def test_no_other_library_is_imported(name: str, tmp_path: Path) -> None:
    file = weights(tmp_path / "weights.safetensors", {"w": (2, 2)})
    artifact = Artifact(file, "safetensors", file.stat().st_size, constructor=name)
    with pytest.raises(ModelFormatError, match="neither timm:NAME nor torchvision:NAME"):
        load_graph(artifact, batch=1)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("checkpoint_path", "/etc/passwd"), ("pretrained", True), ("act_layer", "os.system"), ("img_size", 1 << 40),
        ("cache_dir", "/tmp"), ("global_pool", "../avg"), ("depths", [2, {"x": 1}]),
    ],
)  # fmt: skip
def test_a_config_hands_on_sizes_and_switches_alone(argument: str, value: object) -> None:
    with pytest.raises(ModelFormatError, match=rf"model_args\.{argument}, which is not built"):
        _arguments({"architecture": "resnet50", "model_args": {argument: value}}, "config.json")


@needs_timm
@pytest.mark.parametrize("name", ["hf-hub:timm/resnet50", "local-dir:/tmp/x", "resnet5O", "../resnet50"])
def test_only_names_of_the_librarys_list_are_built(name: str) -> None:
    with pytest.raises(ModelFormatError, match="timm has no model"):
        _named(f"timm:{name}", "weights.safetensors")
    with pytest.raises(ModelFormatError, match="did you mean resnet50"):
        _named("timm:resnet5O", "weights.safetensors")
    for other in ("fasterrcnn_resnet50_fpn", "raft_large"):  # they fetch a backbone, or are no classifiers
        with pytest.raises(ModelFormatError, match="torchvision has no model"):
            _named(f"torchvision:{other}", "weights.safetensors")


@needs_timm
def test_a_folder_of_timm(tmp_path: Path) -> None:
    """As on the Hugging Face hub: the config's classes and image, the files' dtype."""
    weights(tmp_path / "model.safetensors", shapes_of("resnet18", num_classes=10))
    config = {"architecture": "resnet18.a1_in1k", "num_classes": 10, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    graph = load_graph_in_child(open_artifact(tmp_path), batch=4)
    assert (graph.format, graph.batch, graph.stored_dtype) == ("safetensors", 4, "float16")
    assert graph.values[graph.inputs[0]].spec.shape == (4, 3, 160, 160)
    assert graph.values[graph.outputs[0]].spec.shape == (4, 10)
    assert any(o.scope for o in graph.operators)
    config = {"model_type": "timm_wrapper", **config}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_graph(open_artifact(tmp_path), batch=4) == graph


def test_what_is_hidden_from_transformers_is_there_for_timm(tmp_path: Path) -> None:
    """The process that readers are forked from hides torchvision and PIL, once it is idle, from transformers."""
    for name, code in (
        ("timm", "import torchvision, PIL\ndef list_models(): return ['net']"),
        ("torchvision", ""),
        ("PIL", ""),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    code = (
        "from dippm.frontend import constructors, pool\n"
        "pool.not_for_parsing(hidden=True)\n"
        "try:\n    import PIL\nexcept ImportError:\n    print('hidden')\n"
        "print(constructors._named('timm:net', 'w.safetensors')[1])\n"
    )
    path = {"PYTHONPATH": ":".join(p for p in (str(tmp_path), *sys.path) if p), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, check=True)
    assert done.stdout.split() == ["hidden", "net"]


@needs_timm
def test_weights_and_a_constructor(tmp_path: Path) -> None:
    file = weights(tmp_path / "weights.safetensors", shapes_of("resnet18", num_classes=7))
    graphs = [
        load_graph(open_artifact(file, constructor=f"{library}:resnet18"), batch=2)
        for library in ("timm", "torchvision")
    ]
    for graph in graphs:
        assert graph.values[graph.outputs[0]].spec.shape == (2, 7)
        assert static_features(graph).macs / 2e9 == pytest.approx(1.81, rel=0.01)
    small = load_graph(
        open_artifact(file, constructor="timm:resnet18"), batch=2, inputs=(InputSpec(None, (3, 64, 64)),)
    )
    assert static_features(small).macs * 12 == pytest.approx(static_features(graphs[0]).macs, rel=0.05)
    with pytest.raises(InputShapeError, match="one image of three dimensions"):
        load_graph(open_artifact(file, constructor="timm:resnet18"), batch=2, inputs=(InputSpec(None, (64,)),))
    with pytest.raises(InputShapeError, match=r"has no input 'pixels': it has x$"):
        load_graph(
            open_artifact(file, constructor="timm:resnet18"), batch=2, inputs=(InputSpec("pixels", (3, 64, 64)),)
        )


@needs_timm
def test_weights_of_another_constructor_are_said_to_be(tmp_path: Path) -> None:
    shapes = shapes_of("resnet18")
    file = weights(tmp_path / "weights.safetensors", shapes)
    said = r"is not the weights of timm:resnet34: the file has no layer1\.2\.conv1\.weight, the constructor has"
    with pytest.raises(ModelFormatError, match=said):
        load_graph(open_artifact(file, constructor="timm:resnet34"), batch=1)
    other = weights(tmp_path / "other.safetensors", {**shapes, "conv1.weight": (64, 1, 7, 7)})
    with pytest.raises(ModelFormatError, match=r"conv1\.weight of \[64, 1, 7, 7\].*1 of \d+ tensors differ"):
        load_graph(open_artifact(other, constructor="timm:resnet18"), batch=1)


@needs_timm
def test_a_constructor_that_computes_with_tensors(tmp_path: Path) -> None:
    """RegNet's widths come from a call that has no meta kernel."""
    file = weights(tmp_path / "weights.safetensors", shapes_of_regnet())
    graph = load_graph(open_artifact(file, constructor="timm:regnety_002"), batch=1)
    assert static_features(graph).macs / 1e9 == pytest.approx(0.2, rel=0.05)


def shapes_of_regnet() -> dict[str, tuple[int, ...]]:
    import timm

    return {name: tuple(t.shape) for name, t in timm.create_model("regnety_002").state_dict().items()}
