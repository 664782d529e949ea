"""Interpret a TorchScript module on meta tensors and write down the ATen calls, with their module scopes.

Numbers, lists and small constant tensors are computed as they come; only calls that touch a tensor of the model are
written down. What depends on such a tensor's data (`.item()`, a branch on it) is refused.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from dippm.errors import InputShapeError, UnsupportedOperator
from dippm.frontend.exported_program import Program
from dippm.frontend.script_nodes import CONTAINERS, NUMBERS, SIMPLE, WAY_OUT, function_body, source_frame

MAX_CALLS = 200_000
"""Most operators that are written down: a loop may run long."""


@dataclass(frozen=True)
class _Module:
    """A submodule and its path from the root."""

    script: Any
    path: str


def record(module: torch.jit.ScriptModule, examples: Sequence[torch.Tensor]) -> Program:
    """Follow `module.forward` on meta tensors.

    Raises UnsupportedOperator or InputShapeError.
    """
    return _Interpreter(module).record(examples)


class _Interpreter:
    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._root = module
        self._graph = fx.Graph()
        self._nodes: dict[int, fx.Node] = {}
        self._kept: list[torch.Tensor] = []
        self._inputs: list[InputSpec] = []
        self._state: dict[str, torch.Tensor] = {}
        self._by_path: dict[str, torch.Tensor] = {}
        self._calls: dict[str, int] = {}
        self._stack: list[tuple[str, str]] = []

    def record(self, examples: Sequence[torch.Tensor]) -> Program:
        for name, parameter in self._root.named_parameters():
            self._place(name, parameter, InputKind.PARAMETER)
        for name, buffer in self._root.named_buffers():
            self._place(name, buffer, InputKind.BUFFER)
        names = [v.debugName().removesuffix(".1") for v in list(self._root.graph.inputs())[1:]]
        if len(examples) > len(names):
            raise InputShapeError(
                f"the model takes {len(names)} inputs ({', '.join(names)}), {len(examples)} are given"
            )
        arguments: list[Any] = []
        for name, example in zip(names, examples, strict=False):
            arguments.append(self._track(example, self._placeholder(name, InputKind.USER_INPUT, None), example))
        arguments += [None] * (len(names) - len(examples))
        with torch.no_grad():
            result = self._call_method(_Module(self._root, ""), "forward", arguments)
        outputs = [self._nodes[id(t)] for t in _tensors(result) if id(t) in self._nodes]
        self._graph.output(tuple(outputs))
        signature = ExportGraphSignature(
            self._inputs, [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(o.name), None) for o in outputs]
        )
        return Program(self._graph, signature, torch.nn.Module(), self._state)

    def _placeholder(self, name: str, kind: InputKind, target: str | None) -> fx.Node:
        node = self._graph.placeholder(re.sub(r"\W", "_", name))
        persistent = True if kind is InputKind.BUFFER else None
        self._inputs.append(InputSpec(kind, TensorArgument(node.name), target, persistent))
        return node

    def _track(self, tensor: torch.Tensor, node: fx.Node, val: torch.Tensor) -> torch.Tensor:
        self._kept.append(tensor)
        self._nodes[id(tensor)] = node
        node.meta["val"] = val
        return tensor

    def _place(self, name: str, tensor: torch.Tensor, kind: InputKind) -> torch.Tensor:
        """A parameter, buffer or constant as a graph input; one with strides of zero (no data of its own) is dense."""
        prefix = {InputKind.PARAMETER: "p_", InputKind.BUFFER: "b_"}.get(kind, "c_")
        meta = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        if 0 in tensor.stride():
            meta = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        elif tensor.device.type == "meta":
            meta = tensor.detach()  # tied ones share their storage
        self._by_path[name] = meta
        return self._track(meta, self._placeholder(prefix + name, kind, name), meta)

    def _call_method(self, module: _Module, name: str, arguments: list[Any]) -> Any:
        if name != "forward":
            return self._run(getattr(module.script, name).graph, [module, *arguments])
        calls = self._calls[module.path] = self._calls.get(module.path, -1) + 1
        key = f"{module.path}@{calls}" if calls and module.path else module.path
        self._stack.append((key, module.path))
        try:
            return self._run(module.script.graph, [module, *arguments])
        finally:
            self._stack.pop()

    def _run(self, graph: Any, arguments: Sequence[Any]) -> Any:
        env = {v.debugName(): a for v, a in zip(graph.inputs(), arguments, strict=True)}
        self._block(graph.nodes(), env)
        results = [env[v.debugName()] for v in graph.outputs()]
        return results[0] if len(results) == 1 else tuple(results)

    def _block(self, nodes: Any, env: dict[str, Any]) -> None:
        for node in nodes:
            results = self._node(node, env)
            for value, result in zip(node.outputs(), results, strict=True):
                env[value.debugName()] = result

    def _node(self, node: Any, env: dict[str, Any]) -> Sequence[Any]:
        kind = node.kind()
        read = [env[v.debugName()] for v in node.inputs()]
        if kind == "prim::If":
            block = list(node.blocks())[0 if self._number(read[0], bool, node) else 1]
            self._block(block.nodes(), env)
            return [env[v.debugName()] for v in block.outputs()]
        if kind == "prim::Loop":
            return self._loop(node, read, env)
        if kind == "prim::Constant":
            value = node.output().toIValue()
            if isinstance(value, torch.Tensor) and value.device.type == "meta":
                value = self._place(f"constant_{len(self._inputs)}", value, InputKind.CONSTANT_TENSOR)
            return [torch.device("meta") if isinstance(value, torch.device) else value]
        if kind == "prim::GetAttr":
            return [self._attribute(read[0], node.s("name"))]
        if kind == "prim::CallMethod":
            return [self._call_method(read[0], node.s("name"), read[1:])]
        if kind == "prim::CallFunction":
            return [self._run(*function_body(node, read[1:]))]
        if kind in ("prim::ListUnpack", "prim::TupleUnpack"):
            return list(read[0])
        if kind == "prim::RaiseException":
            raise InputShapeError(f"these input shapes do not go through the model: it says: {read[0]}")
        if kind in NUMBERS:
            return [self._number(read[0], NUMBERS[kind], node)]
        simple = SIMPLE.get(kind)
        if simple is not None:
            return [simple(read)] if node.outputsSize() else []
        if kind in CONTAINERS and isinstance(read[0], (list, tuple, dict, str)):
            result = CONTAINERS[kind](read)
            return [result] if node.outputsSize() else []
        if kind.startswith("aten::"):
            return self._aten(node, read)
        raise UnsupportedOperator(f"scripted code with {kind} cannot be followed: {WAY_OUT}")

    def _loop(self, node: Any, read: list[Any], env: dict[str, Any]) -> Sequence[Any]:
        (block,) = node.blocks()
        names = [v.debugName() for v in block.inputs()]
        trips, going, carried = read[0], self._number(read[1], bool, node), read[2:]
        for turn in range(min(int(trips), MAX_CALLS)):
            if not going:
                break
            env.update(zip(names, [turn, *carried], strict=True))
            self._block(block.nodes(), env)
            condition, *carried = [env[v.debugName()] for v in block.outputs()]
            going = self._number(condition, bool, node)
        return carried

    def _attribute(self, owner: Any, name: str) -> Any:
        value = getattr(owner.script, name)
        path = f"{owner.path}.{name}" if owner.path else name
        if isinstance(value, torch.nn.Module):
            return _Module(value, path)
        if isinstance(value, torch.Tensor):
            return self._by_path[path] if path in self._by_path else self._place(path, value, InputKind.CONSTANT_TENSOR)
        return value

    def _number(self, value: Any, kind: Callable[[Any], Any], node: Any) -> Any:
        if isinstance(value, torch.Tensor) and (value.device.type == "meta" or id(value) in self._nodes):
            raise UnsupportedOperator(
                f"operator {node.kind()} is not supported where it reads the model's data: trace or export without "
                "data-dependent control flow"
            )
        return kind(value.item() if isinstance(value, torch.Tensor) else value)

    def _aten(self, node: Any, read: list[Any]) -> Sequence[Any]:
        target = _overload(node)
        if target._schema.is_mutable and read and isinstance(read[0], (list, dict)):  # the binding would change a copy
            raise UnsupportedOperator(f"scripted code with {target} cannot be followed: {WAY_OUT}")
        if target.__name__.startswith("_convolution"):
            target, read = _convolution(read)
        arguments = target._schema.arguments
        count = sum(not a.kwarg_only for a in arguments)
        args, kwargs = read[:count], {a.name: v for a, v in zip(arguments[count:], read[count:], strict=False)}
        device = any(a.name == "device" for a in arguments)
        if not device and not any(id(t) in self._nodes for t in _tensors((args, kwargs))):
            return _results(_call(target, args, kwargs), node)
        numbers = torch._C._should_allow_numbers_as_tensors(target._schema.name.removeprefix("aten::").rstrip("_"))
        args, kwargs = (_map(a, lambda t: self._on_meta(t, numbers)) for a in (args, kwargs))
        if len(self._nodes) > MAX_CALLS:
            raise UnsupportedOperator(f"the model makes more than {MAX_CALLS} calls: is it a training loop?")
        value = _call(target, args, kwargs)
        call = self._graph.call_function(
            target, *(_map(a, lambda t: self._nodes[id(t)]) for a in (tuple(args), kwargs))
        )
        call.meta.update(
            val=value, nn_module_stack={k: (p, "") for k, p in self._stack}, stack_trace=source_frame(node)
        )
        if isinstance(value, torch.Tensor):
            fresh = value if id(value) not in self._nodes else value.view_as(value)
            return [self._track(fresh, call, value)]
        parts = []
        for index, part in enumerate(value if isinstance(value, (tuple, list)) else ()):
            item = self._graph.call_function(operator.getitem, (call, index))
            parts.append(self._track(part, item, part))
        return _results(parts if isinstance(value, (tuple, list)) else value, node)

    def _on_meta(self, tensor: torch.Tensor, numbers: bool) -> Any:
        """A tensor of the model as it is; a constant as an input of the graph, or as a number where it is one."""
        if id(tensor) in self._nodes:
            return tensor
        if numbers and not tensor.dim():
            return tensor.item()
        return self._place(f"constant_{len(self._inputs)}", tensor, InputKind.CONSTANT_TENSOR)


def _call(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    try:
        return target(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "Expected a value of type" in first:  # the binding, before any shape is looked at
            raise UnsupportedOperator(f"scripted code with {target} cannot be followed: {WAY_OUT}") from None
        if isinstance(error, NotImplementedError):
            raise UnsupportedOperator(f"operator {target} is not supported: its result depends on data") from None
        raise InputShapeError(f"these input shapes do not go through the model: {target} says: {first[:300]}") from None


def _results(value: Any, node: Any) -> Sequence[Any]:
    if node.outputsSize() == 0:
        return []
    return [value] if node.outputsSize() == 1 else list(value)


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, (list, tuple)) else []


def _map(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_map(v, change) for v in value)
    if isinstance(value, dict):
        return {k: _map(v, change) for k, v in value.items()}
    return value


def _overload(node: Any) -> Any:
    schema = torch._C.parse_schema(node.schema())
    name = schema.name.removeprefix("aten::")
    packet = getattr(torch.ops.aten, name, None)
    overload = getattr(packet, schema.overload_name or "default", None)
    if overload is None:
        raise UnsupportedOperator(f"operator {node.kind()} is not supported")
    return overload


def _convolution(read: list[Any]) -> tuple[Any, list[Any]]:
    """`aten::_convolution`, which tracing writes, as the framework's own call."""
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = read[:9]
    rank = weight.dim() - 2
    if transposed:
        target = getattr(torch.ops.aten, f"conv_transpose{rank}d")
        overload = target.input if rank > 1 else target.default
        return overload, [x, weight, bias, stride, padding, output_padding, groups, dilation]
    return getattr(torch.ops.aten, f"conv{rank}d").default, [x, weight, bias, stride, padding, dilation, groups]
