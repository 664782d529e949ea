"""torch.export's ExportedProgram, from memory, to a `ModelGraph`.

1. Give every graph input its concrete shape (parameters as recorded, user inputs at the batch asked for).
2. Run the graph on the meta device: shapes, strides, storages (`meta_run`).
3. Express it in Relax, operator by operator (`relax`).
4. Number values and operators; a value whose storage is another's is an alias of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, OutputKind

from dippm.errors import InputShapeError, UnsupportedOperator
from dippm.frontend.aten import KIND_BY_NAME, NOT_RUN, base_name
from dippm.frontend.attributes import attributes_of
from dippm.frontend.foreign import ForeignCall
from dippm.frontend.meta_run import run_on_meta
from dippm.frontend.relax.exported import names_in_relax
from dippm.frontend.scopes import scope_of, source_of
from dippm.graph import DTYPE_BYTES, ModelGraph, Operator, TensorSpec, Value, ValueKind

_DTYPE_NAMES = {getattr(torch, name): name for name in DTYPE_BYTES}
_VALUE_KINDS = {
    InputKind.PARAMETER: ValueKind.PARAMETER,
    InputKind.BUFFER: ValueKind.BUFFER,
    InputKind.CONSTANT_TENSOR: ValueKind.CONSTANT,
    InputKind.USER_INPUT: ValueKind.INPUT,
}


def graph_of_module(
    module: torch.nn.Module, example_inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor], *, batch: int
) -> ModelGraph:
    """Export a module (usually on the meta device) and give its graph; see `dippm.frontend.graph_from_module`."""
    named = isinstance(example_inputs, Mapping)
    args = () if named else tuple(example_inputs)
    kwargs = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
    with torch.no_grad(), warnings.catch_warnings():
        # nn.LSTM lists its weights in a plain attribute, which export rebinds and puts back.
        warnings.filterwarnings("ignore", message="The tensor attribute", category=UserWarning)
        program = torch.export.export(module, args, kwargs, strict=False)
    return graph_of_program(
        Program(program.graph, program.graph_signature, program.graph_module, program.state_dict), batch=batch
    )


@dataclass(frozen=True)
class Program:
    """What of an exported program says what the model is."""

    graph: fx.Graph
    signature: ExportGraphSignature
    module: torch.nn.Module
    """Owner of the attributes that the graph gets."""
    state: Mapping[str, torch.Tensor]
    """Parameters and buffers by name; only which of them share a storage is looked at."""
    values: Mapping[fx.Node, Any] | None = None
    """What each node puts out on the meta device, where the graph was run there when it was made."""


def graph_of_program(
    program: Program,
    *,
    batch: int,
    user_inputs: Mapping[str, torch.Tensor] | None = None,
    file_batch: int | None = None,
    format: str = "pt2",
) -> ModelGraph:
    """The graph of an exported program; `user_inputs` (meta tensors by placeholder name) replace the recorded ones.

    `file_batch` is the fixed batch that it was exported with, where that is another one than `batch`.

    The program is used up: shape arithmetic in its graph is folded in place, and its nodes are emptied.

    Raises InputShapeError or UnsupportedOperator.
    """
    graph = _Builder(program, batch, dict(user_inputs or {}), file_batch, format).build()
    for node in program.graph.nodes:  # a ring, which is there until Python collects: what hangs on it need not be
        node.meta.clear()
        node.users.clear()
    return graph


class _Builder:
    def __init__(
        self,
        program: Program,
        batch: int,
        user_inputs: dict[str, torch.Tensor],
        file_batch: int | None,
        format: str,
    ) -> None:
        self._program = program
        self._batch = batch
        self._user_inputs = user_inputs
        self._file_batch = file_batch
        self._format = format
        self._values: list[Value] = []
        self._operators: list[Operator] = []
        self._owner_by_storage: dict[int, int] = {}
        self._ids: dict[fx.Node, Any] = {}

    def build(self) -> ModelGraph:
        graph = self._program.graph
        specs = {s.arg.name: s for s in self._program.signature.input_specs}
        placeholders = [n for n in graph.nodes if n.op == "placeholder"]
        ran = self._program.values
        storages = _shared_storages(self._program.state)
        bound: dict[fx.Node, Any] = {
            n: self._bind(n, specs.get(n.name), storages) if ran is None else ran[n] for n in placeholders
        }
        for node in graph.nodes:
            if node.op == "get_attr":
                bound[node] = _meta_copy(_attribute(self._program.module, node))
        inputs = []
        for node, value in bound.items():
            if isinstance(value, torch.Tensor):
                spec = specs.get(node.name)
                kind = _VALUE_KINDS.get(spec.kind, ValueKind.CONSTANT) if spec else ValueKind.CONSTANT
                name = (spec.target if spec and spec.target else None) or node.name
                self._ids[node] = self._add(value, kind, None, name, ())
                if kind is ValueKind.INPUT:
                    inputs.append(self._ids[node])
        run = ran if ran is not None else run_on_meta(graph, bound, rebatch=(self._file_batch, self._batch))
        outputs = self._output_nodes()
        names = names_in_relax(graph)
        for node in graph.nodes:
            if node.op == "call_function":
                self._visit(node, run[node], names.get(node, ()))
        output_ids = [self._ids[n] for n in outputs if isinstance(self._ids.get(n), int)]
        return ModelGraph(
            values=tuple(self._values),
            operators=tuple(self._operators),
            inputs=tuple(inputs),
            outputs=tuple(output_ids),
            batch=self._batch,
            format=self._format,
        )

    def _bind(self, node: fx.Node, spec: InputSpec | None, storages: Mapping[str, torch.Tensor]) -> Any:
        """A graph input as a meta tensor (or the constant that was exported with)."""
        given = self._user_inputs.get(node.name)
        if given is not None:
            return given
        if spec is not None and spec.target is not None and spec.target in storages:
            return storages[spec.target]
        recorded = node.meta.get("val")
        if not isinstance(recorded, torch.Tensor):
            return getattr(spec.arg, "value", recorded) if spec is not None else recorded
        if not all(isinstance(d, int) for d in recorded.shape):
            raise InputShapeError(
                f"input {node.name} has a dynamic shape {_spelled(recorded.shape)} in the file: give it with --input "
                f"{node.name}=... (without the batch)"
            )
        return _meta_copy(recorded)

    def _output_nodes(self) -> list[fx.Node]:
        output = next(n for n in self._program.graph.nodes if n.op == "output")
        flat: list[Any] = list(output.args[0])
        specs = self._program.signature.output_specs
        if len(specs) == len(flat):
            flat = [a for a, s in zip(flat, specs, strict=True) if s.kind is OutputKind.USER_OUTPUT]
        return [a for a in flat if isinstance(a, fx.Node)]

    def _visit(self, node: fx.Node, value: Any, relax_names: tuple[str, ...]) -> None:
        foreign = node.target if isinstance(node.target, ForeignCall) else None
        if foreign is None and not isinstance(node.target, torch._ops.OpOverload):
            self._visit_python(node, value)
            return
        name = base_name(str(node.target)) if foreign is None else ""
        if name in NOT_RUN or value is None:
            return
        operands = tuple(self._operands(node))
        index = len(self._operators)
        many = isinstance(value, (tuple, list))
        tensors = [t for t in (value if many else (value,)) if isinstance(t, torch.Tensor)]
        if not tensors:
            return
        outputs = tuple(self._add(t, ValueKind.RESULT, index, node.name, operands) for t in tensors)
        self._ids[node] = outputs if many else outputs[0]
        specs = [self._values[i].spec for i in operands]
        kind = kind_of(name, specs) if foreign is None else foreign.kind
        self._operators.append(
            Operator(
                kind=kind,
                target=str(node.target) if foreign is None else foreign.name,
                inputs=operands,
                outputs=outputs,
                attributes=attributes_of(node, kind, specs) if foreign is None else foreign.attributes,
                scope=scope_of(node.meta),
                source=source_of(node.meta),
                relax=relax_names,
            )
        )

    def _visit_python(self, node: fx.Node, value: Any) -> None:
        """`getitem` of an operator with several outputs; shape arithmetic puts out no tensor."""
        if not isinstance(value, torch.Tensor):
            return
        source, index = node.args[0], node.args[1]
        ids = self._ids.get(source)  # type: ignore[arg-type]
        if not isinstance(ids, tuple) or not isinstance(index, int):
            raise UnsupportedOperator(f"operator {node.target} on {source} is not supported")
        self._ids[node] = ids[index]

    def _operands(self, node: fx.Node) -> Iterable[int]:
        """Ids of the tensors among a call's arguments, in argument order, repeats kept."""
        found: list[int] = []

        def look(argument: Any) -> Any:
            if isinstance(argument, fx.Node):
                ids = self._ids.get(argument)
                found.extend(ids if isinstance(ids, tuple) else () if ids is None else (ids,))
            return argument

        fx.node.map_aggregate((node.args, dict(node.kwargs)), look)
        return found

    def _add(
        self, tensor: torch.Tensor, kind: ValueKind, producer: int | None, name: str, operands: tuple[int, ...]
    ) -> int:
        dtype = _DTYPE_NAMES.get(tensor.dtype)
        if dtype is None:
            raise UnsupportedOperator(f"tensor {name} has dtype {str(tensor.dtype)[6:]}, which is not supported")
        key = tensor.untyped_storage()._cdata
        identifier = len(self._values)
        owner = self._owner_by_storage.setdefault(key, identifier)
        alias: int | None = None
        if owner != identifier:
            alias = next((i for i in operands if self._root(i) == owner), owner)
        self._values.append(Value(TensorSpec(tuple(map(int, tensor.shape)), dtype), kind, producer, alias, name))
        return identifier

    def _root(self, value: int) -> int:
        while (owner := self._values[value].alias_of) is not None:
            value = owner
        return value


def kind_of(name: str, inputs: Sequence[TensorSpec]) -> str:
    """Canonical kind of an ATen operator; `matmul` is a batched product unless one side has at most two dimensions."""
    if name == "matmul" and len(inputs) > 1 and min(len(s.shape) for s in inputs[:2]) > 2:
        return "batch_matmul"
    if name in ("convolution", "_convolution") and inputs:
        return f"conv{len(inputs[0].shape) - 2}d"
    return KIND_BY_NAME.get(name, "unknown")


def _shared_storages(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Meta tensors for those parameters that share storage (tied weights), sharing it."""
    by_storage: dict[int, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, torch.Tensor) and tensor.layout is torch.strided and tensor.numel():
            pointer = tensor.data_ptr() if tensor.device.type != "meta" else tensor.untyped_storage()._cdata
            if pointer:
                by_storage.setdefault(pointer, []).append((name, tensor))
    shared: dict[str, torch.Tensor] = {}
    for group in by_storage.values():
        if len(group) > 1:
            largest = max((t for _, t in group), key=torch.Tensor.numel)
            base = _meta_copy(largest)
            for name, tensor in group:
                shared[name] = base.as_strided(tuple(tensor.shape), tensor.stride())
    return shared


def _meta_copy(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout is not torch.strided:
        raise UnsupportedOperator(f"a tensor of layout {tensor.layout} is not supported: use dense tensors")
    return torch.empty_strided(
        tuple(int(d) for d in tensor.shape), [int(s) for s in tensor.stride()], dtype=tensor.dtype, device="meta"
    )


def _attribute(module: torch.nn.Module, node: fx.Node) -> torch.Tensor:
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    if not isinstance(found, torch.Tensor):
        raise UnsupportedOperator(f"the graph calls a subgraph ({node.target}): control flow is not supported")
    return found


def _spelled(shape: Iterable[Any]) -> str:
    return "(" + ", ".join(str(d) for d in shape) + ")"
