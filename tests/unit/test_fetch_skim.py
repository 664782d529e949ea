"""Only the graph is fetched: what a file with holes costs, and that the frontend reads it as it reads the whole."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from aiohttp import web
from aiohttp.test_utils import TestServer
from onnx import TensorProto, helper, numpy_helper

from dippm.artifact import open_artifact
from dippm.errors import ArtifactUnreachable, DigestMismatch
from dippm.frontend import load_graph
from dippm.frontend.inputs import InputSpec
from dippm_operator.fetch import LINK_LOCAL, ArtifactCache, Fetcher, FetchLimits

LIMITS = FetchLimits(blocked_networks=LINK_LOCAL, total_seconds=60)
LAYERS = 24


class Store:
    """Serves files with ranges, or without."""

    def __init__(self, folder: Path, *, ranges: bool) -> None:
        self.folder = folder
        self.ranges = ranges
        self.requests = 0
        application = web.Application(client_max_size=1)
        application.router.add_get("/{name}", self.get)
        self.server = TestServer(application)

    async def get(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        path = self.folder / request.match_info["name"]
        if self.ranges:
            return web.FileResponse(path)
        return web.Response(body=path.read_bytes(), headers={"ETag": f'"{path.stat().st_mtime_ns}"'})

    def url(self, name: str) -> str:
        return str(self.server.make_url(f"/{name}"))


@pytest.fixture(params=["ranges", "stream"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path, ranges=request.param == "ranges")
    await store.server.start_server()
    yield store
    await store.server.close()


@pytest.fixture
async def fetcher(tmp_path: Path) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000_000), LIMITS)
    yield fetcher
    await fetcher.close()


def write_onnx(path: Path, *, width: int) -> None:
    """A chain of MatMul and Relu with embedded weights, and a Reshape whose shape is a small initializer."""
    nodes, weights, name = [], [], "x"
    for layer in range(LAYERS):
        weights.append(numpy_helper.from_array(np.ones((width, width), np.float32), f"w{layer}"))
        nodes += [helper.make_node("MatMul", [name, f"w{layer}"], [f"m{layer}"], name=f"/layer{layer}/MatMul")]
        nodes += [helper.make_node("Relu", [f"m{layer}"], [f"r{layer}"])]
        name = f"r{layer}"
    weights.append(numpy_helper.from_array(np.array([0, 4, width // 4], np.int64), "shape"))
    nodes.append(helper.make_node("Reshape", [name, "shape"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4, width // 4])
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)


def small_module() -> tuple[torch.nn.Module, torch.Tensor]:
    layers = [torch.nn.Conv2d(3, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.Flatten(), torch.nn.Linear(64 * 36, 1000)]
    return torch.nn.Sequential(*layers).eval(), torch.zeros(2, 3, 8, 8)


def on_disk(path: Path) -> int:
    return path.stat().st_blocks * 512


async def test_onnx_weights_are_jumped_over_and_the_graph_is_the_same(
    store: Store, fetcher: Fetcher, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(path, width=512)
    size = path.stat().st_size
    async with fetcher.open(store.url("model.onnx")) as artifact:
        assert artifact.size_bytes == size == artifact.path.stat().st_size
        assert on_disk(artifact.path) < size / 10
        if store.ranges:
            assert artifact.fetched_bytes < 60_000
            assert artifact.content_digest == ""
        else:
            assert artifact.fetched_bytes == size
        got = load_graph(open_artifact(artifact.path), batch=3)
    assert got == load_graph(open_artifact(path), batch=3)


def varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def write_large_onnx(path: Path, *, layers: int, width: int) -> None:
    """As `write_onnx`, with weights that are holes: half a gigabyte that takes no room."""
    nodes = [helper.make_node("MatMul", [f"x{n}", f"w{n}"], [f"x{n + 1}"]) for n in range(layers)]
    ends = [helper.make_tensor_value_info(f"x{n}", TensorProto.FLOAT, ["batch", width]) for n in (0, layers)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    model.ClearField("graph")
    data = 4 * width * width
    heads = []
    for number in range(layers):
        tensor = TensorProto(name=f"w{number}", data_type=TensorProto.FLOAT, dims=[width, width])
        body = tensor.SerializeToString() + b"\x4a" + varint(data)
        heads.append(b"\x2a" + varint(len(body) + data) + body)
    small = graph.SerializeToString()
    with path.open("wb") as file:
        file.write(model.SerializeToString())
        file.write(b"\x3a" + varint(len(small) + sum(len(head) + data for head in heads)) + small)
        for head in heads:
            file.write(head)
            file.seek(data, 1)
        file.truncate()


async def test_half_a_gigabyte_of_embedded_weights_costs_under_two_megabytes(tmp_path: Path, fetcher: Fetcher) -> None:
    path = tmp_path / "large.onnx"
    write_large_onnx(path, layers=32, width=2048)
    assert path.stat().st_size > 500_000_000
    store = Store(tmp_path, ranges=True)
    await store.server.start_server()
    async with fetcher.open(store.url("large.onnx")) as artifact:
        assert artifact.size_bytes == path.stat().st_size
        assert 0 < artifact.fetched_bytes < 100_000
        graph = load_graph(open_artifact(artifact.path), batch=2)
    assert sum(graph.values[i].spec.shape[0] for i in graph.parameter_ids) == 32 * 2048
    await store.server.close()


async def test_exported_program_without_its_tensors(store: Store, fetcher: Fetcher, tmp_path: Path) -> None:
    module, x = small_module()
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(module, (x,)), path)
    async with fetcher.open(store.url("model.pt2")) as artifact:
        assert on_disk(artifact.path) < 150_000
        if store.ranges:
            assert artifact.fetched_bytes < 60_000
        assert load_graph(open_artifact(artifact.path), batch=2) == load_graph(open_artifact(path), batch=2)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
async def test_torchscript_without_its_tensors(store: Store, fetcher: Fetcher, tmp_path: Path) -> None:
    module, _ = small_module()
    path = tmp_path / "model.pt"
    with torch.no_grad():
        torch.jit.save(torch.jit.script(module), path)  # type: ignore[no-untyped-call]
    inputs = (InputSpec(None, (3, 8, 8), "float32"),)
    async with fetcher.open(store.url("model.pt")) as artifact:
        assert on_disk(artifact.path) < 150_000
        if store.ranges:
            assert artifact.fetched_bytes < 60_000
        got = load_graph(open_artifact(artifact.path), batch=2, inputs=inputs)
    assert got == load_graph(open_artifact(path), batch=2, inputs=inputs)


async def test_safetensors_costs_its_header(store: Store, fetcher: Fetcher, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({f"w{i}": np.ones((256, 256), np.float32) for i in range(16)}, tmp_path / "model.safetensors")
    header = (tmp_path / "model.safetensors").read_bytes()
    async with fetcher.open(store.url("model.safetensors")) as artifact:
        assert on_disk(artifact.path) < 20_000
        if store.ranges:
            assert artifact.fetched_bytes == 4096
        length = 8 + int.from_bytes(header[:8], "little")
        assert artifact.path.read_bytes()[:length] == header[:length]


async def test_digest_forces_the_whole_read_and_is_verified(store: Store, fetcher: Fetcher, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(path, width=512)
    size, digest = path.stat().st_size, "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    async with fetcher.open(store.url("model.onnx"), digest=digest) as artifact:
        assert artifact.content_digest == digest
        assert artifact.fetched_bytes >= size
        assert on_disk(artifact.path) < size / 10
    requests = store.requests
    async with fetcher.open(store.url("model.onnx"), digest=digest) as artifact:
        assert artifact.content_digest == digest
    if store.ranges:
        assert store.requests == requests + 1, "what was verified once is only asked for"
    with pytest.raises(DigestMismatch):
        async with fetcher.open(store.url("model.onnx"), digest="sha256:" + "0" * 64):
            pass


async def test_archive_with_a_digest_is_verified_whole(store: Store, fetcher: Fetcher, tmp_path: Path) -> None:
    module, x = small_module()
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(module, (x,)), path)
    digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    async with fetcher.open(store.url("model.pt2"), digest=digest) as artifact:
        assert artifact.content_digest == digest
        assert on_disk(artifact.path) < 150_000
        assert load_graph(open_artifact(artifact.path), batch=2) == load_graph(open_artifact(path), batch=2)


async def test_large_archive_without_ranges_passes_twice(
    tmp_path: Path, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dippm_operator.fetch.take.TAIL_BYTES", 64 * 1024)
    module, x = small_module()
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(module, (x,)), path)
    store = Store(tmp_path, ranges=False)
    await store.server.start_server()
    async with fetcher.open(store.url("model.pt2")) as artifact:
        assert artifact.fetched_bytes == 2 * path.stat().st_size
        assert load_graph(open_artifact(artifact.path), batch=2) == load_graph(open_artifact(path), batch=2)
    await store.server.close()


async def test_file_that_changes_between_two_parts_is_not_mixed(tmp_path: Path, fetcher: Fetcher) -> None:
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    write_onnx(old, width=512)
    write_onnx(new, width=256)
    served: list[str] = []

    async def get(request: web.Request) -> web.FileResponse:
        served.append(request.headers["Range"])
        return web.FileResponse(old if len(served) < 5 else new)

    application = web.Application()
    application.router.add_get("/m", get)
    server = TestServer(application)
    await server.start_server()
    with pytest.raises(ArtifactUnreachable, match="changed while it was read"):
        async with fetcher.open(str(server.make_url("/m"))):
            pass
    await server.close()
    assert [p for p in (tmp_path / "cache").rglob("*") if p.is_file()] == []


async def test_damaged_archive_reaches_the_frontend_as_it_is(store: Store, fetcher: Fetcher, tmp_path: Path) -> None:
    data = io.BytesIO()
    data.write(b"PK\x03\x04" + b"no directory" * 20_000)
    (tmp_path / "model.pt2").write_bytes(data.getvalue())
    async with fetcher.open(store.url("model.pt2")) as artifact:
        assert artifact.path.read_bytes()[:4096] == data.getvalue()[:4096]
        assert artifact.size_bytes == len(data.getvalue())


async def test_pickles_are_not_fetched_to_be_refused(tmp_path: Path, fetcher: Fetcher) -> None:
    (tmp_path / "model.pkl").write_bytes(b"\x80\x04" + bytes(3_000_000))
    store = Store(tmp_path, ranges=True)
    await store.server.start_server()
    async with fetcher.open(store.url("model.pkl")) as artifact:
        assert artifact.fetched_bytes == 4096
    await store.server.close()


async def test_limit_counts_what_is_kept_where_parts_are_read(tmp_path: Path) -> None:
    write_onnx(tmp_path / "model.onnx", width=512)
    store = Store(tmp_path, ranges=True)
    await store.server.start_server()
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000), replace(LIMITS, max_bytes=1_000_000))
    async with fetcher.open(store.url("model.onnx")) as artifact:
        assert artifact.size_bytes > 20_000_000
    await fetcher.close()
    await store.server.close()
