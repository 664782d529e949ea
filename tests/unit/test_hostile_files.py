"""Files that are made to do harm: each is refused by name, in a moment, before anything of it is run or unpacked."""

from __future__ import annotations

import copy
import json
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.hugging_face import LLAMA_7B
from tests.unit.test_fetch_skim import write_onnx

from dippm.artifact import open_artifact
from dippm.errors import DippmError, ModelFormatError, UnsafeModel
from dippm.frontend import InputSpec, load_graph
from dippm.frontend.archive import check_archive

SHAPES = (InputSpec(None, (4,)),)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.relu(self.layer(x))
        return y


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sound file of each kind."""
    folder = tmp_path_factory.mktemp("models")
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, and files of it are still served
        torch.jit.trace(Net().eval(), torch.zeros(2, 4)).save(str(folder / "net.ts"))  # type: ignore[no-untyped-call]
    batch = torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(Net().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},)), folder / "net.pt2"
    )
    write_onnx(folder / "net.onnx", width=64)
    return folder


def rewritten(
    source: Path, to: Path, change: Callable[[str, bytes], bytes], *, compress: int = zipfile.ZIP_DEFLATED
) -> Path:
    """The same archive with members changed; what is changed is compressed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(to, "w") as new:
        for member in old.infolist():
            content = old.read(member)
            put = change(member.filename.partition("/")[2], content)
            new.writestr(member.filename, put, compress if put is not content else zipfile.ZIP_STORED)
    return to


def refusal(path: Path, kind: type[DippmError] = ModelFormatError) -> str:
    """The sentence with which a file is refused, within seconds."""
    started = time.process_time()
    with pytest.raises(kind) as refused:
        load_graph(open_artifact(path), batch=2, inputs=SHAPES if path.suffix == ".ts" else None)
    assert time.process_time() - started < 10
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "member"), [("net.ts", "constants.pkl"), ("net.pt2", "models/model.json"), ("net.pt2", "byteorder")]
)
def test_zip_bomb_is_not_unpacked(models: Path, tmp_path: Path, name: str, member: str) -> None:
    zeros = b"\0" * (64 << 20)
    bomb = rewritten(models / name, tmp_path / name, lambda n, content: zeros if n == member else content)
    assert bomb.stat().st_size < 200_000
    assert f"is a zip bomb: its member 'net/{member}' unpacks from 63 KiB to 64 MiB" in refusal(bomb)


def test_members_that_lie_over_each_other_are_no_archive(models: Path, tmp_path: Path) -> None:
    """The bomb without recursion (https://www.bamsoftware.com/hacks/zipbomb): many names for one piece of data."""
    path = tmp_path / "over.pt2"
    content = bytearray((models / "net.pt2").read_bytes())
    with zipfile.ZipFile(models / "net.pt2") as archive:
        start = archive.start_dir
    second = content.index(b"PK\x01\x02", start + 4)
    content[second + 42 : second + 46] = content[start + 42 : start + 46]
    path.write_bytes(content)
    assert "lies over another one" in refusal(path)


def test_much_that_grows_a_little_is_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dippm.frontend.archive.MAX_UNPACKED_BYTES", 1 << 20)
    monkeypatch.setattr("dippm.frontend.archive.MAX_MEMBERS", 30)
    with zipfile.ZipFile(tmp_path / "a.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"a/{number}", b"\0" * 100_000)
    with pytest.raises(ModelFormatError, match="unpacks to 1 MiB beside its weights"):
        check_archive(tmp_path / "a.pt2", "a")
    with zipfile.ZipFile(tmp_path / "a.pt2", "a") as archive:
        for number in range(20, 40):
            archive.writestr(f"a/{number}", b"")
    with pytest.raises(ModelFormatError, match="has 40 members"):
        check_archive(tmp_path / "a.pt2", "a")


def program_of(models: Path) -> Any:
    with zipfile.ZipFile(models / "net.pt2") as archive:
        return json.loads(archive.read("net/models/model.json"))


def with_program(models: Path, to: Path, text: str) -> Path:
    return rewritten(
        models / "net.pt2", to, lambda n, content: text.encode() if n == "models/model.json" else content,
        compress=zipfile.ZIP_STORED,
    )  # fmt: skip


@pytest.mark.parametrize("size", [1 << 62, -5, 1 << 33])
def test_sizes_that_cannot_be_are_named(models: Path, tmp_path: Path, size: int) -> None:
    program = program_of(models)
    for meta in program["graph_module"]["graph"]["tensor_values"].values():
        meta["sizes"][-1] = {"as_int": size}
    path = with_program(models, tmp_path / "net.pt2", json.dumps(program))
    assert f"has a dimension of {size}" in refusal(path)


def test_json_within_json_without_end(models: Path, tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    program = copy.deepcopy(program_of(models))
    program["graph_module"]["graph"]["extra"] = deep
    nested = "nested too deeply"
    assert nested in refusal(with_program(models, tmp_path / "a.pt2", json.dumps(program)))
    assert nested in refusal(with_program(models, tmp_path / "b.pt2", '{"a":' * 100_000 + "1" + "}" * 100_000))
    (tmp_path / "config.json").write_text('{"model_type":' + "[" * 100_000 + "]" * 100_000 + "}")
    assert nested in refusal(tmp_path / "config.json")


def field(number: int, content: bytes) -> bytes:
    length, size = len(content), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


@pytest.mark.parametrize("padding", [0, 20_000])
def test_graphs_within_graphs_without_end(tmp_path: Path, padding: int) -> None:
    graph = b"\0" * padding
    for _ in range(3000):
        graph = field(1, field(5, field(6, graph)))
    path = tmp_path / "nested.onnx"
    path.write_bytes(b"\x08\x09" + field(8, b"\x10\x11") + field(7, graph))
    assert "nests its graphs too deeply" in refusal(path)


@pytest.mark.parametrize("where", ["../../etc/passwd", "/etc/passwd", "weights/../../x", "C:\\x", "..\\x"])
@pytest.mark.parametrize("spelling", ["initializer", "constant"])
def test_data_outside_of_the_folder_is_refused_by_name(tmp_path: Path, where: str, spelling: str) -> None:
    refused = refusal(external(tmp_path / "m.onnx", where, spelling), UnsafeModel)
    assert f"weight 'w' in {where!r}, outside of its own folder" in refused


def test_data_beside_the_model_is_not_opened(tmp_path: Path) -> None:
    assert load_graph(open_artifact(external(tmp_path / "m.onnx", "w.bin", "initializer")), batch=2).operators


def external(path: Path, where: str, spelling: str) -> Path:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[8, 8], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=where)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 8]) for name in "xy")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if spelling == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=weight))
    graph = helper.make_graph(nodes, "g", [x], [y], [weight] if spelling == "initializer" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "double", "zero"]), st.integers(0, 255)),
    min_size=1, max_size=6,
)  # fmt: skip


def damaged(content: bytes, edits: list[tuple[float, str, int]]) -> bytes:
    for where, how, value in edits:
        at = int(where * max(len(content) - 1, 0))
        if how == "flip":
            content = content[:at] + bytes([content[at] ^ (value or 1)] if content else b"") + content[at + 1 :]
        elif how == "cut":
            content = content[:at]
        elif how == "double":
            content = content[: at + value] + content[at:]
        else:
            content = content[:at] + b"\0" * value + content[at + value :]
    return content


@pytest.mark.parametrize("name", ["net.onnx", "net.pt2", "net.ts"])
@given(edits=EDITS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_a_graph_or_one_sentence(
    models: Path, tmp_path: Path, name: str, edits: list[tuple[float, str, int]]
) -> None:
    path = tmp_path / name
    path.write_bytes(damaged((models / name).read_bytes(), edits))
    check(path)


@given(edits=EDITS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_inside_a_program_is_a_graph_or_one_sentence(
    models: Path, tmp_path: Path, edits: list[tuple[float, str, int]]
) -> None:
    """The archive is sound, its JSON is not."""
    text = damaged(json.dumps(program_of(models)).encode(), edits)
    check(with_program(models, tmp_path / "net.pt2", text.decode("latin-1")))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(key=st.sampled_from(sorted(LLAMA_7B)), value=JSON)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_config_is_a_graph_or_one_sentence(tmp_path: Path, key: str, value: Any) -> None:
    small = LLAMA_7B | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                        "num_key_value_heads": 2, "vocab_size": 100}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(small | {key: value}))
    check(tmp_path, (InputSpec("input_ids", (8,)),))


PLACES = st.lists(st.integers(0, 1 << 20), min_size=1, max_size=4)


@given(places=PLACES, value=st.integers(-(1 << 63), (1 << 63) - 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_number_in_an_onnx_graph_is_a_graph_or_one_sentence(
    models: Path, tmp_path: Path, places: list[int], value: int
) -> None:
    """Sound protobuf with numbers of somebody's choice in dimensions and attributes."""
    model = onnx.load(models / "net.onnx")
    for place in places:
        tensor = model.graph.initializer[place % len(model.graph.initializer)]
        tensor.dims[place % len(tensor.dims)] = value
        shape = (*model.graph.input, *model.graph.output)[place % 2].type.tensor_type.shape
        shape.dim[place % len(shape.dim)].dim_value = value
        node = model.graph.node[place % len(model.graph.node)]
        node.attribute.append(helper.make_attribute("axis", value))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    check(tmp_path / "m.onnx")


def check(path: Path, inputs: tuple[InputSpec, ...] | None = None) -> None:
    try:
        load_graph(open_artifact(path), batch=2, inputs=inputs or (SHAPES if path.suffix == ".ts" else None))
    except DippmError as error:
        sentence = str(error)
        assert "\n" not in sentence
        assert len(sentence) < 1000
    except MemoryError:
        pass  # the child says which limit it was
