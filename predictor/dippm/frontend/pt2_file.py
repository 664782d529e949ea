"""A `.pt2` file to a `ModelGraph`, without reading a weight.

PyTorch's own deserializer (`torch._export.serde`, pinned with torch) rebuilds the graph from the checked JSON; weights
and constants are meta tensors of the recorded shapes.
"""

from __future__ import annotations

import contextlib
import functools
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._export.serde import schema, serialize
from torch.export.graph_signature import InputKind

from dippm.errors import InputShapeError, ModelFormatError
from dippm.frontend.exported_program import Program, graph_of_program
from dippm.frontend.inputs import InputSpec, asked_by_name, check_dtype, fixed_batch
from dippm.frontend.pt2_safety import Pt2Content, read_pt2
from dippm.graph import ModelGraph


def graph_of_pt2(path: Path, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> ModelGraph:
    """The graph of a `.pt2` at `batch`; see `dippm.frontend.load_graph`.

    A batch that was exported as dynamic is set to the one asked for. A fixed one is replaced where the graph allows it
    (views that spell it out are rewritten), else the error says how to export.
    """
    content = read_pt2(path, shown)
    program = _deserialize(content, shown)
    bound, file_batch = _bind(program, content.dynamic, batch, inputs, shown)
    try:
        graph = graph_of_program(program, batch=batch, user_inputs=bound, file_batch=file_batch)
    except InputShapeError as error:
        if file_batch is None:
            raise
        raise fixed_batch(shown, file_batch, batch) from error
    if file_batch is not None and not any(graph.values[o].spec.shape[:1] == (batch,) for o in graph.outputs):
        raise fixed_batch(shown, file_batch, batch)
    return graph


def _deserialize(content: Pt2Content, shown: str) -> Program:
    try:
        with _hints_once():
            described = serialize._dict_to_dataclass(schema.ExportedProgram, content.program)  # type: ignore[no-untyped-call]
        result = serialize.GraphModuleDeserializer().deserialize(
            described.graph_module, _meta_tensors(content.weights), _meta_tensors(content.constants), None, {}
        )
    except (
        AssertionError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
        IndexError,
        serialize.SerializeError,
    ) as e:
        first = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise ModelFormatError(
            f"{shown} is not a .pt2 that torch {torch.__version__.partition('+')[0]} reads ({first[:160]}): export it "
            "again with that version"
        ) from None
    return Program(result.graph_module.graph, result.signature, result.graph_module, dict(result.state_dict))


@functools.cache
def _hints_of_class(kind: type) -> dict[str, Any]:
    return _type_hints(kind, globalns=vars(schema))


_type_hints = typing.get_type_hints


@contextlib.contextmanager
def _hints_once() -> Iterator[None]:
    """torch asks for the type hints of a class anew for every object in the file, which is half of the time."""

    def cached(obj: Any, globalns: Any = None, *args: Any, **kwargs: Any) -> dict[str, Any]:
        of_schema = isinstance(obj, type) and globalns is vars(schema) and not args and not kwargs
        return _hints_of_class(obj) if of_schema else _type_hints(obj, globalns, *args, **kwargs)

    typing.get_type_hints = cached
    try:
        yield
    finally:
        typing.get_type_hints = _type_hints


def _meta_tensors(payloads: Mapping[str, Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Meta tensors as the payload list describes them; those that share a payload share a storage.

    A model exported on the meta device has all its weights in one empty payload: they share nothing.
    """
    shared = Counter((p["path_name"], _sizes(p["tensor_meta"]["storage_offset"])) for p in payloads.values())
    bases: dict[tuple[str, tuple[int, ...]], torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, payload in payloads.items():
        meta = payload["tensor_meta"]
        sizes, strides = (_sizes(*meta[k]) for k in ("sizes", "strides"))
        dtype = serialize._SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]]
        key = (payload["path_name"], _sizes(meta["storage_offset"]))
        on_meta = meta["device"]["type"] == "meta"
        if shared[key] > 1 and not on_meta and key in bases and bases[key].shape == sizes:
            tensor = bases[key].as_strided(sizes, strides)
        else:
            tensor = bases[key] = torch.empty_strided(sizes, strides, dtype=dtype, device="meta")
        tensors[name] = torch.nn.Parameter(tensor, requires_grad=False) if payload.get("is_param") else tensor
    return tensors


def _sizes(*described: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(d["as_int"]) for d in described)


def _bind(
    program: Program,
    dynamic: Mapping[str, tuple[bool, ...]],
    batch: int,
    inputs: tuple[InputSpec, ...] | None,
    shown: str,
) -> tuple[dict[str, torch.Tensor], int | None]:
    """The user inputs as meta tensors at `batch`, and the batch that the file fixes where it is another one."""
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    names = [s.arg.name for s in program.signature.input_specs if s.kind is InputKind.USER_INPUT]
    names = [n for n in names if isinstance(placeholders[n].meta.get("val"), torch.Tensor)]
    asked = asked_by_name(names, inputs, shown)
    bound: dict[str, torch.Tensor] = {}
    file_batch: int | None = None
    for name in names:
        recorded = placeholders[name].meta["val"]
        own = tuple(int(d) for d in recorded.shape)
        free = dynamic.get(name, (False,) * len(own))
        shape = own
        check_dtype(asked.get(name), str(recorded.dtype).removeprefix("torch."), name, shown)
        if name in asked:
            shape = (batch, *asked[name].shape)
            if len(shape) != len(own) or any(
                o != s and not f for o, s, f in zip(own[1:], shape[1:], free[1:], strict=True)
            ):
                raise InputShapeError(
                    f"input {name!r} of {shown} is {list(own[1:])} without the batch, which {list(asked[name].shape)} "
                    "does not fit"
                )
        elif own:
            if any(free[1:]):
                raise InputShapeError(
                    f"input {name!r} of {shown} has dynamic dimensions beside the batch: give its shape without the "
                    f"batch, e.g. --input {name}={','.join(map(str, own[1:]))} (spec.model.inputs in an InferenceJob)"
                )
            shape = (batch, *own[1:])
        if own and own[0] != batch and not free[0]:
            file_batch = own[0]
        bound[name] = torch.empty(shape, dtype=recorded.dtype, device="meta")
    return bound, file_batch
