"""ONNX files exported at a fixed batch, given another one: they are what the same network is, exported at that batch.

`python tests/models/make_fixed_batch.py` writes the files of PyTorch's dynamo exporter, which needs onnxscript.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from dippm.artifact import open_artifact
from dippm.errors import InputShapeError
from dippm.features import operator_macs
from dippm.frontend import InputSpec, load_graph
from dippm.frontend.onnx.stored_rows import rows_alike
from dippm.frontend.respell import Place, cut_rescaled, place_after_reshape, resolved
from dippm.graph import ModelGraph

FILES = Path(__file__).parents[1] / "models" / "fixed_batch"


class Masked(nn.Module):
    """BERT's way: a mask with a row for each text is made in every pass, and token types are those of a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(100, 32), nn.Embedding(2, 32)
        self.register_buffer("kinds", torch.zeros(1, 64, dtype=torch.long), persistent=False)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, length = tokens.shape
        x = self.words(tokens) + self.types(self.kinds[:, :length].expand(batch, length))
        mask = torch.ones(batch, length, dtype=torch.bool)[:, None, None, :].expand(batch, 1, length, length)
        heads = [p(x).view(batch, length, 4, 8).transpose(1, 2) for p in (self.query, self.key, self.value)]
        y = functional.scaled_dot_product_attention(*heads, attn_mask=mask)
        return y.transpose(1, 2).reshape(batch, length, 32)


class Pooled(nn.Module):
    """ConvNeXt's way: channels last, pooled to one pixel, which is given other strides by `as_strided`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, 2), nn.LayerNorm(8), nn.Linear(8, 5)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.norm(self.pool(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


class Windows(nn.Module):
    """Swin's way: windows are counted with the pictures, each kind has its mask; a class token is put before them."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.token = nn.Linear(16, 48), nn.Parameter(torch.rand(1, 1, 16))
        self.register_buffer("mask", torch.rand(4, 17, 17))

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = x.view(b, 2, 4, 2, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 16)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        q, k, v = self.project(x).reshape(-1, 17, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)).view(b, 4, 2, 17, 17) + self.mask[None, :, None]
        x = (scores.view(-1, 2, 17, 17).softmax(-1) @ v).transpose(1, 2).reshape(-1, 17, 16)[:, 1:]
        x = x.view(b, 2, 2, 4, 4, 16).permute(0, 1, 3, 2, 4, 5).reshape(b, 8, 8, 16)
        return torch.roll(x, (-2, -2), (1, 2)).mean((1, 2))


class BatchSecond(nn.Module):
    """Recurrent layers and multi-head attention: tokens first, heads counted behind the texts."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.attention = nn.LSTM(16, 16, bidirectional=True), nn.MultiheadAttention(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(x.transpose(0, 1))
        x = self.attention(x, x, x, need_weights=False)[0]
        return x.mean(0)


class TwoWays(nn.Module):
    """Guided diffusion's way: a batch is joined with itself, and taken apart again; sizes are asked of another."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 3, 2, 1), nn.ConvTranspose2d(8, 8, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.cat([x, x]))
        y = functional.interpolate(self.up(y), size=x.shape[-2:], mode="nearest")
        with_it, without = y.chunk(2)
        return without + 2 * (with_it - without)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "masked": (Masked, lambda b: torch.ones(b, 24, dtype=torch.long)),
    "pooled": (Pooled, lambda b: torch.zeros(b, 3, 32, 32)),
    "windows": (Windows, lambda b: torch.zeros(b, 8, 8, 16)),
    "batch_second": (BatchSecond, lambda b: torch.zeros(b, 12, 16)),
    "two_ways": (TwoWays, lambda b: torch.zeros(b, 3, 16, 16)),
}


def export(module: nn.Module, inputs: tuple[Tensor, ...], *, dynamo: bool) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            program: Any = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
            return program.model_proto.SerializeToString()  # type: ignore[no-any-return]
        torch.onnx.export(module, inputs, buffer, dynamo=False)
    return buffer.getvalue()


def read(folder: Path, model: bytes | onnx.ModelProto, batch: int, *inputs: InputSpec) -> ModelGraph:
    file = folder / "model.onnx"
    file.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return load_graph(open_artifact(file), batch=batch, inputs=inputs or None)


def work(graph: ModelGraph) -> list[tuple[object, ...]]:
    """Operators with their work and what they put out; not expansions, which move nothing."""
    return [
        (o.kind, operator_macs(graph, o), *(graph.values[i].spec.shape for i in o.outputs))
        for o in graph.operators
        if o.kind != "expand"
    ]


@pytest.mark.parametrize("own", [1, 2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fixed_batch_is_replaced_as_if_it_had_been_exported_so(name: str, own: int, tmp_path: Path) -> None:
    build, inputs = NETWORKS[name]
    torch.manual_seed(0)
    module = build().eval()
    wanted = work(read(tmp_path, export(module, (inputs(6),), dynamo=False), 6))
    found = read(tmp_path, export(module, (inputs(own),), dynamo=False), 6)
    assert work(found) == wanted
    assert not found.notes, "every element is in the file"


@pytest.mark.parametrize("own", [1, 2, 3])
@pytest.mark.parametrize("name", ["pooled", "batch_second"])
def test_so_is_that_of_an_exported_program(name: str, own: int, tmp_path: Path) -> None:
    """Its recorded shapes are the file's own; the others spell the batch out where nothing is looked for."""
    build, inputs = NETWORKS[name]
    graphs = []
    for batch in (own, 6):
        path = tmp_path / f"{batch}.pt2"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(torch.export.export(build().eval(), (inputs(batch),), strict=False), path)
        graphs.append(load_graph(open_artifact(path), batch=6))
    assert work(graphs[0]) == work(graphs[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_dynamo_exporters_files_of_two_batches_are_one_network_at_a_third(name: str) -> None:
    graphs = [load_graph(open_artifact(FILES / f"{name}.{own}.onnx"), batch=6) for own in (2, 3, 6)]
    first, second, itself = map(work, graphs)
    assert first == second
    assert first == itself
    assert all(i not in graphs[0].notes for i in graphs[0].inputs)


ARCHITECTURES: dict[str, tuple[str, Callable[[], tuple[nn.Module, Callable[[int], Tensor]]]]] = {
    "convnext": ("timm", lambda: _timm("convnext_atto")),
    "vit": ("timm", lambda: _timm("vit_tiny_patch16_224", depth=2)),
    "swin": ("timm", lambda: _timm("swin_tiny_patch4_window7_224", depths=(2, 2), num_heads=(3, 6))),
    "bert": ("transformers", lambda: _bert()),
}


def _timm(name: str, **options: Any) -> tuple[nn.Module, Callable[[int], Tensor]]:
    import timm

    return timm.create_model(name, **options).eval(), lambda b: torch.zeros(b, 3, 224, 224)


def _bert() -> tuple[nn.Module, Callable[[int], Tensor]]:
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    return BertModel(BertConfig(vocab_size=200, **small)).eval(), lambda b: torch.ones(b, 32, dtype=torch.long)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_well_known_architectures_at_another_batch(name: str, tmp_path: Path) -> None:
    library, build = ARCHITECTURES[name]
    for needed in ("onnxscript", library):
        pytest.importorskip(needed, reason=f"needs {needed}: pip install timm transformers onnxscript")
    module, inputs = build()
    first, second, itself = (work(read(tmp_path, export(module, (inputs(b),), dynamo=True), 6)) for b in (2, 3, 6))
    assert first == second == itself


def model_of(
    nodes: Sequence[onnx.NodeProto], shape: list[int], weights: dict[str, np.ndarray], **more: list[int]
) -> onnx.ModelProto:
    """A model of one output `y` and inputs of fixed shapes; elements of large weights are left out."""
    inputs = {"x": shape, **more}
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(
        list(nodes), "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], tensors,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


ADD = [helper.make_node("Add", ["x", "w"], ["y"])]


def test_rows_that_differ_are_no_row_for_each_of_the_batch(tmp_path: Path) -> None:
    """A model without a batch has learned them, one a token."""
    learned = np.arange(12, dtype=np.float32).reshape(4, 3)
    with pytest.raises(InputShapeError, match=r"fixed batch of 4 .*'w' \(4, 3\) has a row for each .* they differ"):
        read(tmp_path, model_of(ADD, [4, 3], {"w": learned}), 8)
    alike = np.broadcast_to(learned[:1], learned.shape)
    graph = read(tmp_path, model_of(ADD, [4, 3], {"w": alike}), 8)
    assert graph.values[graph.outputs[0]].spec.shape == (8, 3)
    assert not graph.notes


def test_rows_of_a_large_weight_are_compared_in_its_file(tmp_path: Path) -> None:
    learned = np.random.default_rng(0).random((4, 3000), dtype=np.float32)
    with pytest.raises(InputShapeError, match="they differ"):
        read(tmp_path, model_of(ADD, [4, 3000], {"w": learned}), 8)
    alike = np.broadcast_to(learned[:1], learned.shape)
    graph = read(tmp_path, model_of(ADD, [4, 3000], {"w": alike}), 8)
    assert graph.values[graph.outputs[0]].spec.shape == (8, 3000)
    assert not graph.notes


def test_a_table_whose_elements_are_not_at_hand_is_refused_and_a_mask_taken(tmp_path: Path) -> None:
    table = model_of(ADD, [4, 3000], {"w": np.zeros((4, 3000), np.float32)})
    table.graph.initializer[0].ClearField("raw_data")
    with pytest.raises(InputShapeError, match="its elements are not in the file to compare them"):
        read(tmp_path, table, 8)
    mask = model_of(ADD, [4, 2, 90, 90], {"w": np.zeros((4, 1, 90, 90), np.float32)})
    mask.graph.initializer[0].ClearField("raw_data")
    graph = read(tmp_path, mask, 8)
    assert any("'w' (4, 1, 90, 90) was taken to be one row" in note for note in graph.notes)


def test_rows_in_a_file_with_holes_are_not_known(tmp_path: Path) -> None:
    """As a file is that was fetched without its weights."""
    whole = model_of(ADD, [4, 30000], {"w": np.ones((4, 30000), np.float32)}).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(whole)
    assert rows_alike(path, "w", (4, 30000), 0) is True
    assert rows_alike(path, "w", (4, 2, 15000), 1) is True
    assert rows_alike(path, "v", (4, 30000), 0) is None
    start = whole.index(np.ones(30000, np.float32).tobytes())
    with path.open("wb") as file:
        file.write(whole[:start])
        file.seek(480000, 1)
        file.write(whole[start + 480000 :])
    assert rows_alike(path, "w", (4, 30000), 0) is None


@pytest.mark.parametrize(
    ("nodes", "weights", "says"),
    [
        ([helper.make_node("Gather", ["x", "w"], ["y"])], {"w": np.array([0, 1])}, "Gather 'y' loses the batch"),
        (
            [helper.make_node("Slice", ["x", "w", "e"], ["y"])], {"w": np.array([1]), "e": np.array([3])},
            "Slice 'y' takes some of the batch",
        ),
        ([helper.make_node("Concat", ["x", "w"], ["y"], axis=0)], {"w": np.zeros((1, 6), np.float32)}, r"is \(5, 6\)"),
        ([helper.make_node("Reshape", ["x", "w"], ["y"])], {"w": np.array([6, 4])}, "Reshape 'y' to .* does not show"),
        ([helper.make_node("MatMul", ["w", "x"], ["y"])], {"w": np.zeros((3, 4), np.float32)}, "MatMul"),
    ],
)  # fmt: skip
def test_what_depends_on_the_batch_otherwise_is_refused_by_name(
    nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputShapeError, match=rf"fixed batch of 4 and cannot .* \(.*{says}"):
        read(tmp_path, model_of(nodes, [4, 6], weights), 8)
    assert read(tmp_path, model_of(nodes, [4, 6], weights), 4).operators, "at its own batch it says nothing of that"


def test_an_input_that_is_fixed_at_another_size_is_no_batch(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Add", ["x", "steps"], ["y"])], [4, 6], {}, steps=[1, 6])
    for batch in (4, 8, 1):
        graph = read(tmp_path, model, batch)
        assert [graph.values[i].spec.shape for i in (*graph.inputs, *graph.outputs)] == [(batch, 6), (1, 6), (batch, 6)]


def test_where_a_reshape_leaves_the_batch() -> None:
    """Sources and targets at the file's batch."""
    heads = place_after_reshape((2, 12, 7, 5), Place(0), (24, 7, 5), 2, None)
    assert heads == Place(0)
    assert place_after_reshape((24, 7, 5), Place(0), (2, 12, 7, 5), 2, None) == Place(0)
    assert place_after_reshape((7, 2, 12), Place(1), (7, 6, 4), 2, None) == Place(1), "heads behind the texts"
    assert place_after_reshape((7, 2, 12), Place(1), (14, 12), 2, None) == Place(0, 7), "texts within tokens"
    assert place_after_reshape((14, 12), Place(0, 7), (7, 2, 12), 2, None) == Place(1)
    assert place_after_reshape((4, 4, 3), Place(1), (4, 4, 3), 4, None) == Place(1), "heads as many as pictures"
    assert place_after_reshape((4, 6), Place(0), (6, 4), 4, None) is None, "pictures are cut across"
    assert place_after_reshape((1, 64, 8), Place(0), (64, 8), 1, None) == Place(0)
    assert place_after_reshape((64, 8), Place(0), (1, 64, 8), 1, None) == Place(0)
    assert place_after_reshape((7, 1, 12), Place(1), (7, 3, 4), 1, None) == Place(1)
    assert place_after_reshape((7, 1, 12), Place(1), (7, 4, 3, 1), 1, None) is None


def test_targets_and_cuts() -> None:
    assert resolved([0, -1], (8, 3, 4), zero_is_zero=False) == (8, 12)
    assert resolved([5, -1], (8, 3), zero_is_zero=False) is None
    assert resolved([0, 3], (0, 3), zero_is_zero=True) == (0, 3)
    assert cut_rescaled([0, 4], 4, Place(0), 4, 6) == [0, 6]
    assert cut_rescaled([4, 2**63 - 1], 8, Place(0, 2), 4, 6) == [6, 2**63 - 1]
    assert cut_rescaled([1, 4], 4, Place(0), 4, 6) is None
