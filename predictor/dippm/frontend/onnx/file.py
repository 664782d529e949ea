"""An ONNX file without its weights: read, stripped and validated before anything believes it.

The protobuf is walked on the wire (onnx.proto3 gives the field numbers) and the data of large tensors is left out, so
that a file of gigabytes costs what its graph costs. External data is never opened. Weights become typed graph inputs.
"""

from __future__ import annotations

import mmap
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import checker, inliner

from dippm.errors import ModelFormatError, UnsafeModel, UnsupportedOperator
from dippm.frontend.inputs import MAX_DIM, MAX_NUMEL
from dippm.frontend.onnx.node import OnnxNode
from dippm.frontend.onnx.types import dtype_of
from dippm.frontend.onnx.wire import CHILDREN, STRIP_BYTES, TENSOR_DATA
from dippm.frontend.protobuf_wire import tag, varint
from dippm.graph import TensorSpec

MAX_GRAPH_BYTES = 512 << 20
"""Most bytes that the graph may have once its weights are left out."""
MAX_DEPTH = 100
"""Most messages inside each other; protobuf itself reads no more. A graph in a graph (If, Loop) takes four."""
DOMAINS = frozenset({"", "ai.onnx"})


@dataclass(frozen=True)
class OnnxFile:
    """A checked model whose weights are typed inputs."""

    model: onnx.ModelProto
    nodes: list[OnnxNode]
    """Those of the model's graph, in order."""
    weights: dict[str, TensorSpec]
    """Shape and dtype of each initializer, in the file's order."""
    data: dict[str, onnx.TensorProto]
    """Those initializers whose data is kept: small ones, which shape arithmetic may need."""
    opset: int
    path: Path | None = None
    """Where it was read from, its weights with it."""

    @property
    def by_pytorch(self) -> bool:
        """Whether one of PyTorch's exporters wrote it, which says what its nodes on constants are."""
        return bool(self.model.producer_name == "pytorch")


def read_onnx(path: Path, shown: str) -> OnnxFile:
    """Read a file; `shown` is how errors name it.

    Raises ModelFormatError (truncated, damaged, nonsense), UnsafeModel (its data lies outside) or UnsupportedOperator.
    """
    with path.open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise ModelFormatError(f"{shown} is empty: is the download complete?") from None
        # Not closed here: views into it live on in an error's traceback, and closing would fail in its place.
        stripped = bytes(_strip(memoryview(mapped), "model", shown))
    if len(stripped) > MAX_GRAPH_BYTES:
        raise ModelFormatError(
            f"{shown} has a graph of {len(stripped) >> 20} MiB without weights: the limit is 512 MiB"
        )
    try:
        model = onnx.ModelProto.FromString(stripped)
    except DecodeError:
        raise ModelFormatError(f"{shown} is a damaged ONNX file: its protobuf cannot be decoded") from None
    try:
        return replace(checked(model, shown), path=path)
    except UnicodeDecodeError:
        raise _not_text(shown) from None


def _not_text(shown: str) -> ModelFormatError:
    """Python's protobuf hands on text that is no UTF-8 as bytes, or stops where it is copied."""
    return ModelFormatError(f"{shown} is a damaged ONNX file: it holds names that are not UTF-8 text")


def checked(model: onnx.ModelProto, shown: str) -> OnnxFile:
    """Validate a model and turn its initializers into typed inputs (in place)."""
    if not model.graph.node:
        raise ModelFormatError(f"{shown} is an ONNX file without operators")
    if model.functions:
        model = inliner.inline_local_functions(model)
    graph = model.graph
    opset = next((o.version for o in model.opset_import if o.domain in DOMAINS), 0)
    nodes = _checked_nodes(graph, shown)
    if graph.sparse_initializer:
        raise UnsupportedOperator(f"{shown} has sparse weights, which are not supported")
    weights: dict[str, tuple[int, tuple[int, ...]]] = {}
    data: dict[str, onnx.TensorProto] = {}
    for tensor in graph.initializer:
        weights[tensor.name] = _element_type_and_shape(tensor, shown)
        if has_data(tensor):
            kept = data[tensor.name] = onnx.TensorProto()
            kept.CopyFrom(tensor)
    large = _large_constants(nodes, shown)
    weights |= {nodes[place].outputs[0]: kind for place, kind in large.items()}
    if large:
        nodes = [node for place, node in enumerate(nodes) if place not in large]
        del graph.node[:]  # one by one takes the square of their number
        graph.node.extend([node.proto for node in nodes])
    declared = {i.name for i in graph.input}
    for name, (number, shape) in weights.items():
        if name not in declared:
            kind = graph.input.add(name=name).type.tensor_type
            kind.elem_type = number
            kind.shape.SetInParent()
            for size in shape:
                kind.shape.dim.add().dim_value = size
    del graph.initializer[:]
    for value in graph.input:
        dims = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
        _check_dims(dims, f"input {value.name!r}", shown)
    del graph.value_info[:]
    for value in graph.output:
        if not value.type.tensor_type.HasField("shape"):
            value.type.tensor_type.shape.SetInParent()  # the checker wants one; outputs' shapes are inferred anyway
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        sentence = " ".join(str(error).split("==>")[0].split())
        raise ModelFormatError(f"{shown} is not valid ONNX: {sentence[:300]}") from None
    specs = {name: TensorSpec(shape, dtype_of(number)) for name, (number, shape) in weights.items()}
    return OnnxFile(model=model, nodes=nodes, weights=specs, data=data, opset=opset)


def _checked_nodes(graph: onnx.GraphProto, shown: str) -> list[OnnxNode]:
    """The nodes; every operator is one of ONNX's own, and its names are text."""
    nodes = [OnnxNode(proto) for proto in graph.node]
    kinds = {(proto.domain, node.kind) for proto, node in zip(graph.node, nodes, strict=True)}
    texts = {text for kind in kinds for text in kind}
    for node in nodes:
        texts.update((node.name, *node.inputs, *node.outputs))
    if any(kind is not str for kind in set(map(type, texts))):
        raise _not_text(shown)
    for domain, name in sorted(kinds):
        if domain not in DOMAINS:
            raise UnsupportedOperator(f"operator {domain}::{name} is not supported (domain {domain})")
        if not onnx.defs.has(name):
            raise UnsupportedOperator(f"operator onnx.{name} is not supported: ONNX has none of that name")
    return nodes


def _element_type_and_shape(tensor: onnx.TensorProto, shown: str) -> tuple[int, tuple[int, ...]]:
    shape = tuple(tensor.dims)
    _check_dims(shape, f"weight {tensor.name!r}", shown)
    _check_place(tensor, shown)
    return tensor.data_type, shape


def _check_place(tensor: onnx.TensorProto, shown: str) -> None:
    """External data is never opened; a place for it outside of the model's folder is refused all the same.

    Whoever serves the file would open it there (https://onnx.ai/onnx/repo-docs/ExternalData.html).
    """
    for entry in tensor.external_data:
        parts = PureWindowsPath(entry.value)  # takes both kinds of slashes, and drives
        if entry.key == "location" and (parts.drive or parts.root or ".." in parts.parts):
            raise UnsafeModel(
                f"{shown} keeps the data of weight {tensor.name[:80]!r} in {entry.value[:80]!r}, outside of its own "
                "folder: export it again with the data beside the model"
            )


def _large_constants(nodes: list[OnnxNode], shown: str) -> dict[int, tuple[int, tuple[int, ...]]]:
    """Constant nodes whose data was left out, weights in another spelling: type and shape by place among the nodes."""
    types: dict[Hashable, tuple[int, tuple[int, ...]] | None] = {}
    for node in nodes:
        if node.kind == "Constant" and node.signature not in types:
            types[node.signature] = _type_without_data(node.proto, shown)
    return {
        place: kind
        for place, node in enumerate(nodes)
        if node.kind == "Constant" and (kind := types[node.signature]) is not None
    }


def _type_without_data(node: onnx.NodeProto, shown: str) -> tuple[int, tuple[int, ...]] | None:
    value = next((a.t for a in node.attribute if a.name == "value"), None)
    if value is None:
        return None
    _check_place(value, shown)
    return None if has_data(value) else (value.data_type, tuple(value.dims))


def has_data(tensor: onnx.TensorProto) -> bool:
    """Whether the elements are in the proto (they were neither stripped nor are they in another file)."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    return 0 in tensor.dims or any(
        len(getattr(tensor, f)) for f in
        ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    )  # fmt: skip


def _check_dims(dims: object, what: str, shown: str) -> None:
    numel = 1
    for dim in dims:  # type: ignore[attr-defined]  # a repeated protobuf field
        if not 0 <= dim <= MAX_DIM:
            raise ModelFormatError(f"{shown} is not valid: {what} has a dimension of {dim}")
        numel *= dim
    if numel > MAX_NUMEL:
        raise ModelFormatError(f"{shown} is not valid: {what} has {numel} elements")


def _strip(view: memoryview, message: str, shown: str, depth: int = 0) -> bytearray:
    """Copy a message without the data of its large tensors.

    Wire format: https://protobuf.dev/programming-guides/encoding (a tag, then a varint or some bytes).
    """
    kept = bytearray()
    children = CHILDREN.get(message, {})
    data = TENSOR_DATA if message == "tensor" else frozenset()
    position = unkept = 0
    end = len(view)
    while position < end:
        start = position
        number, wire, position = tag(view, position, shown, "ONNX file")
        length = 0
        if wire == 2:
            length, position = varint(view, position, shown, "ONNX file")
        elif wire == 0:
            _, position = varint(view, position, shown, "ONNX file")
        elif wire == 1:
            length = 8
        elif wire == 5:
            length = 4
        else:
            raise ModelFormatError(f"{shown} is a damaged ONNX file: unknown wire type {wire}")
        if position + length > end:
            raise ModelFormatError(
                f"{shown} is a truncated ONNX file: {length} bytes are announced, {end - position} are left; "
                "is the download complete?"
            )
        body = position
        position += length
        inner = None
        if length >= STRIP_BYTES and wire == 2 and (child := children.get(number)):
            if depth == MAX_DEPTH:
                raise ModelFormatError(f"{shown} nests its graphs too deeply to be read: {MAX_DEPTH // 4} are")
            inner = _strip(view[body:position], child, shown, depth + 1)
        elif number not in data:
            continue
        kept += view[unkept:start]  # the fields since the last one that is not kept as it is, at once
        unkept = position
        if inner is not None:
            kept += _varint(number << 3 | wire) + _varint(len(inner)) + inner
    return kept + view[unkept:end]


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
