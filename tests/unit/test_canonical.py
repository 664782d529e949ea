"""One canonical graph: the same network from `.pt2`, TorchScript and ONNX comes to the same figures.

Small networks in the manner of well-known ones are exported in the test itself. The networks of timm and transformers
are exported where those are installed, by both exporters of ONNX.
"""

from __future__ import annotations

import importlib.util
import io
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dippm.artifact import open_artifact
from dippm.case import Case, Precision, Runtime
from dippm.errors import ModelFormatError
from dippm.folding import as_loaded, fold_batch_norms, fold_constants
from dippm.frontend import InputSpec, graph_from_module, load_graph
from dippm.frontend.converter import PADDLE, TENSORFLOW
from dippm.graph import ModelGraph
from dippm.prediction import Prediction
from dippm.predictor import predict_graph

BATCH = 4
MODELS = Path(__file__).parents[1] / "models"
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


class ResNetBlock(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.downsample = nn.Sequential(nn.Conv2d(width, 2 * width, 1, 2, bias=False), nn.BatchNorm2d(2 * width))
        self.act2 = nn.ReLU(inplace=True)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.norm(self.stem(x))))
        shortcut = self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        x = self.act2(x + shortcut)
        return self.fc(self.gap(x).flatten(1))  # type: ignore[no-any-return]


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 64, 3, padding=1),
            nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(inplace=True),
            nn.AvgPool2d(16),
        )  # fmt: skip
        self.classifier = nn.Linear(128 * 49, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """MobileNetV3: expansion, depthwise, squeeze and excitation, projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(inplace=True))
        self.expand = nn.Sequential(nn.Conv2d(16, 64, 1, bias=False), nn.BatchNorm2d(64), nn.Hardswish(inplace=True))
        self.depthwise = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), nn.BatchNorm2d(64), nn.SiLU(inplace=True)
        )
        self.squeeze = nn.Conv2d(64, 16, 1)
        self.excite = nn.Conv2d(16, 64, 1)
        self.gate = nn.Hardsigmoid()
        self.project = nn.Sequential(nn.Conv2d(64, 16, 1, bias=False), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = x
        x = self.depthwise(self.expand(x))
        scale = x.mean((2, 3), keepdim=True)
        x = x * self.gate(self.excite(functional.relu(self.squeeze(scale))))
        return self.project(x) + shortcut  # type: ignore[no-any-return]


class DenseLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(3, 32, 5, 2, 2)
        self.norms = nn.ModuleList(nn.BatchNorm2d(64 + 16 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(64 + 16 * i, 16, 3, padding=1, bias=False) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x), self.other(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(functional.relu(norm(torch.cat(features, 1)))))
        return functional.avg_pool2d(torch.cat(features, 1), 2)


class SelfAttention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.qkv, self.proj = nn.Linear(192, 576), nn.Linear(192, 192)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 3, 64).permute(2, 0, 3, 1, 4).unbind(0)
        x = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """One block of a vision transformer, or of GPT where it is causal."""

    def __init__(self, causal: bool = False, gelu: str = "none") -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(192), nn.LayerNorm(192)
        self.attention = SelfAttention(causal)
        self.mlp = nn.Sequential(nn.Linear(192, 768), nn.GELU(approximate=gelu), nn.Linear(768, 192))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class MaskedAttention(nn.Module):
    """BERT's: a boolean mask from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, 128)
        self.query, self.key, self.value = nn.Linear(128, 128), nn.Linear(128, 128), nn.Linear(128, 128)
        self.norm = nn.LayerNorm(128)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids)
        b, n, c = x.shape
        q, k, v = (f(x).view(b, n, 2, 64).transpose(1, 2) for f in (self.query, self.key, self.value))
        shown = (mask > 0)[:, None, None, :].expand(b, 1, n, n)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=shown)
        return self.norm(x + y.transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return]


class OwnAttention(nn.Module):
    """Attention that the model's own Python computes: two products and a softmax, run one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(64, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(x).reshape(b, 3, 2, 32, h * w).permute(1, 0, 2, 4, 3).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * 32**-0.5
        return (scores.softmax(dim=-1) @ v).permute(0, 1, 3, 2).reshape(b, c, h, w)


class ConvNextBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 96, 4, 4)
        self.conv = nn.Conv2d(96, 96, 7, padding=3, groups=96)
        self.norm = nn.LayerNorm(96)
        self.fc1, self.act, self.fc2 = nn.Linear(96, 384), nn.GELU(), nn.Linear(384, 96)
        self.gamma = nn.Parameter(torch.ones(96))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shortcut = x
        x = self.fc2(self.act(self.fc1(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        return (x * self.gamma).permute(0, 3, 1, 2) + shortcut  # type: ignore[no-any-return]


class ShiftedWindow(nn.Module):
    """Swin: a roll both ways, and windows by views, permutations and copies."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(96), nn.Linear(96, 96)

    def forward(self, x: Tensor) -> Tensor:
        b, h, w, c = x.shape
        y = torch.roll(self.norm(x), shifts=(-3, -3), dims=(1, 2))
        y = y.view(b, h // 7, 7, w // 7, 7, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 49, c)
        y = self.proj(y)
        y = y.view(b, h // 7, w // 7, 7, 7, c).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return x + torch.roll(y, shifts=(3, 3), dims=(1, 2))


class Pooling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) - x  # type: ignore[no-any-return]


class PoolFormerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 4, 2)
        self.norm, self.mixer = nn.GroupNorm(1, 64), Pooling()
        self.up = nn.ConvTranspose2d(64, 32, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.mixer(self.norm(x))
        return self.up(x)  # type: ignore[no-any-return]


class SuperResolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 48, 3, padding=1), nn.LeakyReLU(0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pixel_shuffle(self.act(self.conv(x)), 4)
        return functional.interpolate(x, scale_factor=2.0, mode="bilinear").clamp(0.0, 1.0)


IMAGE = (torch.zeros(BATCH, 3, 224, 224),)
TOKENS = (torch.zeros(BATCH, 196, 192),)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Sequence[Tensor]]] = {
    "resnet": (ResNetBlock, IMAGE),
    "vgg": (Vgg, IMAGE),
    "mobilenet": (InvertedResidual, IMAGE),
    "densenet": (DenseLayer, IMAGE),
    "vit": (Transformer, TOKENS),
    "gpt": (lambda: Transformer(causal=True, gelu="tanh"), TOKENS),
    "bert": (MaskedAttention, (torch.zeros(BATCH, 64, dtype=torch.long), torch.ones(BATCH, 64, dtype=torch.long))),
    "own attention": (OwnAttention, (torch.zeros(BATCH, 64, 28, 28),)),
    "convnext": (ConvNextBlock, IMAGE),
    "swin": (ShiftedWindow, (torch.zeros(BATCH, 56, 56, 96),)),
    "poolformer": (PoolFormerBlock, IMAGE),
    "super-resolution": (SuperResolution, (torch.zeros(BATCH, 3, 64, 64),)),
}

HELD_BY_NAME = frozenset({"own attention", "super-resolution"})
"""Networks whose peak is of tensors that local variables hold: of these files only a `.pt2` tells names."""


def module_of(build: Callable[[], nn.Module]) -> nn.Module:
    """A network whose weights all differ: exporters keep one of several that are equal."""
    torch.manual_seed(0)
    module = build().eval()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data += torch.rand_like(tensor) / 10
    return module


def through_onnx(module: nn.Module, inputs: Sequence[Tensor], folder: Path, opset: int = 17) -> ModelGraph:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, tuple(inputs), buffer, dynamo=False, opset_version=opset)
    path = folder / "model.onnx"
    path.write_bytes(buffer.getvalue())
    return load_graph(open_artifact(path), batch=BATCH)


def through_torchscript(module: nn.Module, inputs: Sequence[Tensor], folder: Path) -> ModelGraph:
    path = folder / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, tuple(inputs)).save(str(path))  # type: ignore[no-untyped-call]
    specs = tuple(InputSpec(None, tuple(t.shape[1:]), str(t.dtype)[6:]) for t in inputs)
    return load_graph(open_artifact(path), batch=BATCH, inputs=specs)


def priced(graph: ModelGraph, runtime: Runtime) -> Prediction:
    return predict_graph(graph, Case(batch=BATCH, precision=Precision.FP32, runtime=runtime, device="H200"))


def work(graph: ModelGraph) -> Counter[str]:
    """Operators by kind, without views and dropouts, which run nothing."""
    return Counter(
        o.kind for o in graph.operators if o.kind != "dropout" and graph.values[o.outputs[0]].alias_of is None
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_one_graph_whatever_its_door(name: str, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    module = module_of(build)
    wanted = graph_from_module(module, list(inputs), batch=BATCH)
    for found in (through_onnx(module, inputs, tmp_path), through_torchscript(module, inputs, tmp_path)):
        assert work(found) == work(wanted), found.format
        for runtime in (Runtime.GRAPH,) if name in HELD_BY_NAME else (Runtime.EAGER, Runtime.GRAPH):
            right, ours = priced(wanted, runtime), priced(found, runtime)
            for count in ("convs", "denses"):
                assert ours.static_features[count] == right.static_features[count]
            assert ours.static_features["macs"] == pytest.approx(right.static_features["macs"], rel=0.005)
            assert ours.allocated_mib == pytest.approx(right.allocated_mib, rel=0.02), (found.format, runtime)
            assert ours.device_ms == pytest.approx(right.device_ms, rel=0.05), (found.format, runtime)


@pytest.mark.parametrize("opset", [11, 14])
def test_older_opsets_spell_it_differently_and_mean_the_same(opset: int, tmp_path: Path) -> None:
    for build, inputs in (NETWORKS["convnext"], NETWORKS["poolformer"]):
        module = module_of(build)
        assert work(through_onnx(module, inputs, tmp_path, opset)) == work(
            graph_from_module(module, list(inputs), batch=BATCH)
        )


def test_folded_batch_norms_are_put_back_and_the_output_says_so(tmp_path: Path) -> None:
    module = module_of(ResNetBlock)
    graph = through_onnx(module, IMAGE, tmp_path)
    assert graph.restored == 4
    norms = [o.scope[-1] for o in graph.operators if o.kind == "batch_norm"]
    assert sorted(norms) == ["bn1", "bn2", "downsample.1", "stem_bn"]
    assert any("4 batch norms that the exporter folded" in note for note in priced(graph, Runtime.EAGER).notes)
    folded = priced(graph, Runtime.ONNXRUNTIME)
    assert any("4 batch norms folded into the convolutions" in note for note in folded.notes)
    without, count = fold_batch_norms(graph)  # in one runtime: ONNX Runtime's own times are measured ones
    assert count == 4
    assert not any(operator.kind == "batch_norm" for operator in without.operators)
    # PyTorch adds a convolution's bias in a kernel of its own, which costs about what a norm does.
    assert priced(without, Runtime.GRAPH).device_ms < 1.1 * priced(graph, Runtime.GRAPH).device_ms


def test_a_runtime_that_folds_is_priced_the_same_from_every_door(tmp_path: Path) -> None:
    module = module_of(ResNetBlock)
    from_onnx = priced(through_onnx(module, IMAGE, tmp_path), Runtime.ONNXRUNTIME)
    from_torch = priced(graph_from_module(module, list(IMAGE), batch=BATCH), Runtime.ONNXRUNTIME)
    assert from_onnx.allocated_mib == pytest.approx(from_torch.allocated_mib, rel=0.001)
    assert from_onnx.device_ms == pytest.approx(from_torch.device_ms, rel=0.001)


def test_a_runtime_that_folds_computes_what_hangs_on_no_input_once() -> None:
    class Positions(nn.Module):
        """NFNet's weights and T5's positions are worked on in every pass; so is a mask of the input."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.places = nn.Conv2d(3, 8, 3), nn.Embedding(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.conv.weight - self.conv.weight.mean((1, 2, 3), keepdim=True)
            places = self.places(torch.arange(6)).view(1, 6, 8).expand(4, 6, 8).transpose(1, 2)
            x = functional.conv2d(x, weight, self.conv.bias)
            return x.flatten(2)[:, :, :6] + places + torch.rand(8, 6)

    graph = graph_from_module(Positions().eval(), [torch.zeros(BATCH, 3, 8, 8)], batch=BATCH)
    folded, norms = as_loaded(graph)
    assert norms == 0
    assert [o.kind for o in folded.operators] == ["conv2d", "flatten", "slice", "add", "full", "add"]
    assert [v.producer is None for v in folded.values].count(True) == len(folded.values) - 6
    kept = {folded.values[i].spec.shape for i in folded.parameter_ids}
    assert kept == {(8, 3, 3, 3), (8,), (4, 8, 6)}, "the embedding's table is gone, what was looked up of it is held"
    for index, operator in enumerate(folded.operators):
        assert all(folded.values[i].producer == index for i in operator.outputs)
    assert fold_constants(folded) is folded
    opened = replace(graph, open_batch=True)
    assert fold_constants(opened) is opened, "the expansion may hang on the shape of an input"


def test_folding_takes_a_norm_in_where_it_alone_reads_the_convolution() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 8, 3)
            self.norm, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.conv(x))
            y = self.other(x)
            return self.norm2(y)[:, :, 1:] + y[:, :, 1:]

    graph = graph_from_module(Two().eval(), [torch.zeros(BATCH, 3, 32, 32)], batch=BATCH)
    folded, count = fold_batch_norms(graph)
    assert count == 1
    kinds = [o.kind for o in folded.operators]
    assert kinds[:3] == ["conv2d", "conv2d", "batch_norm"]
    assert [folded.values[i].spec.shape for i in folded.operators[0].inputs] == [(4, 3, 32, 32), (8, 3, 3, 3), (8,)]
    assert folded.operators[1].inputs[0] == folded.operators[0].outputs[0]
    assert len(folded.parameter_ids) == len(graph.parameter_ids) - 4 + 1
    for index, operator in enumerate(folded.operators):
        assert all(folded.values[o].producer == index for o in operator.outputs)
    assert fold_batch_norms(folded)[1] == 0


def test_a_file_that_tells_nothing_says_which_network_was_priced(tmp_path: Path) -> None:
    import onnx

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module_of(Vgg), tuple(IMAGE), buffer, dynamo=False)
    model = onnx.load_from_string(buffer.getvalue())
    path = tmp_path / "model.onnx"
    assert not load_graph(_saved(model, path), batch=BATCH).notes, "PyTorch names weights that nothing was folded into"
    model.producer_name = "somebody"
    (note,) = load_graph(_saved(model, path), batch=BATCH).notes
    assert "3 convolutions have a bias" in note
    assert "priced as it stands in the file" in note


def _saved(model: Any, path: Path) -> Any:
    path.write_bytes(model.SerializeToString())
    return open_artifact(path)


def test_attention_of_the_model_s_own_python_stays_as_eager_runs_it(tmp_path: Path) -> None:
    graph = through_onnx(module_of(OwnAttention), NETWORKS["own attention"][1], tmp_path)
    assert work(graph)["batch_matmul"] == 2
    assert not work(graph)["scaled_dot_product_attention"]


@pytest.mark.parametrize("length", [16, 300], ids=["computed", "too large to be computed"])
def test_causal_attention_and_its_scale_are_told_apart(length: int, tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = x.unbind(1)
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)

    graph = through_onnx(Scaled().eval(), [torch.zeros(BATCH, 3, 2, length, 64)], tmp_path)
    (attention,) = [o for o in graph.operators if o.kind == "scaled_dot_product_attention"]
    assert attention.attributes["is_causal"] is True
    assert attention.attributes["scale"] == pytest.approx(0.5)
    assert len(attention.inputs) == 3


def test_a_mask_of_another_triangle_is_a_mask(tmp_path: Path) -> None:
    class Banded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q, k, v = x.unbind(1)
            return functional.scaled_dot_product_attention(q, k, v, torch.ones(300, 300).tril(1) != 0)

    graph = through_onnx(Banded().eval(), [torch.zeros(BATCH, 3, 2, 300, 64)], tmp_path)
    (attention,) = [o for o in graph.operators if o.kind == "scaled_dot_product_attention"]
    assert "is_causal" not in attention.attributes
    assert len(attention.inputs) == 4


DYNAMO = sorted((MODELS / "dynamo").glob("*.onnx"))


@pytest.mark.parametrize("path", DYNAMO, ids=lambda path: path.stem)
def test_the_dynamo_exporter_s_file_comes_to_the_same_graph(path: Path) -> None:
    """The files are made by tests/models/make_dynamo.py."""
    build, inputs = NETWORKS[path.stem]
    wanted = graph_from_module(module_of(build), list(inputs), batch=BATCH)
    found = load_graph(open_artifact(path), batch=BATCH)
    assert _copies_alike(work(found)) == _copies_alike(work(wanted))
    for runtime in (Runtime.EAGER, Runtime.GRAPH):
        right, ours = priced(wanted, runtime), priced(found, runtime)
        for count in ("convs", "denses"):
            assert ours.static_features[count] == right.static_features[count]
        assert ours.static_features["macs"] == pytest.approx(right.static_features["macs"], rel=0.005)
        assert ours.allocated_mib == pytest.approx(right.allocated_mib, rel=0.02), runtime
        assert ours.device_ms == pytest.approx(right.device_ms, rel=0.05), runtime


def _copies_alike(kinds: Counter[str]) -> Counter[str]:
    """A reshape that copies is a clone and a view in that exporter's files: one kernel either way."""
    return Counter({"copied": kinds["copy"] + kinds["reshape"]}) + Counter(
        {k: n for k, n in kinds.items() if k not in ("copy", "reshape")}
    )


def _bench(script: str) -> ModuleType:
    name = f"bench_{script}"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[2] / "bench" / f"{script}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


doors, twins = _bench("doors"), _bench("twins")


@pytest.mark.parametrize("name", doors.ARCHITECTURES)
def test_well_known_architectures_through_every_door(name: str, tmp_path: Path) -> None:
    for needed in ("onnxscript", "transformers" if name in doors.LANGUAGE_MODELS else "timm"):
        pytest.importorskip(needed, reason=f"needs {needed}: pip install timm transformers onnxscript")
    first: Any = None
    for door, found in doors.compare(name, tmp_path):
        first = first or found
        if (name, door) not in doors.SHORT:
            assert doors.within(found, first), f"{name} {door}: {doors.off(found, first)}"


def _agree(name: str, path: Path) -> None:
    """A network of another framework against PyTorch's of the same layers, as exported programs."""
    graphs = (
        graph_from_module(
            twins.TWINS[name]().to("meta").eval(), [torch.zeros(IMAGE[0].shape, device="meta")], batch=BATCH
        ),
        load_graph(open_artifact(path), batch=BATCH),
    )
    right, ours = (priced(graph, Runtime.GRAPH) for graph in graphs)
    assert [o.kind for o in graphs[1].operators if o.kind.startswith(("conv", "linear"))] == [
        o.kind for o in graphs[0].operators if o.kind.startswith(("conv", "linear"))
    ]
    assert ours.static_features["macs"] == pytest.approx(right.static_features["macs"], rel=0.005)
    assert ours.allocated_mib == pytest.approx(right.allocated_mib, rel=0.02)
    assert ours.device_ms == pytest.approx(right.device_ms, rel=0.05)


@pytest.mark.parametrize("name", ["keras/mobilenetv2", "paddle/mobilenet_v2"])
def test_what_a_converter_wrote_is_the_network_that_pytorch_has(name: str) -> None:
    """The files are made by tests/models/make_converted.py."""
    _agree(name, MODELS / "converted" / f"{name.replace('/', '_')}.onnx")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", twins.TWINS)
def test_other_frameworks_files_are_the_networks_that_pytorch_has(name: str, tmp_path: Path) -> None:
    converter = TENSORFLOW if name.startswith("keras") else PADDLE
    try:
        installed = all(converter.installed().values())
    except ModelFormatError:
        installed = False
    if not installed:
        pytest.skip(f"needs {converter.name}: {converter.install}, or set {converter.setting}")
    _agree(name, twins.made(name, tmp_path))
