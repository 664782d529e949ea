"""A static ONNX graph, its steps put together, as a program of ATen calls: the form that every door ends in.

Each step is written down as the call that PyTorch makes for the same work (`aten`), with the module
scope and source line that its exporter left, and run on the meta device at once: strides, views and copies are those
of PyTorch. A step that has no such call, or whose call puts out another shape than ONNX says, is a foreign call.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from functools import lru_cache
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
from dippm.frontend.foreign import ForeignCall
from dippm.frontend.meta_run import MetaRun
from dippm.frontend.onnx.aten import CONVERTERS
from dippm.frontend.onnx.calls import Given
from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.scopes import Scopes, trace_of
from dippm.frontend.onnx.steps import Step
from dippm.graph import TensorSpec

aten = torch.ops.aten
_NOT_COVERED = (
    InputShapeError, UnsupportedOperator, AttributeError, LookupError, TypeError, ValueError, RuntimeError,
)  # fmt: skip
"""What a converter ends as on arguments that its ATen call does not cover: ONNX has typed the operator already."""


def program_of(
    steps: Sequence[Step], static: StaticGraph, inputs: dict[str, TensorSpec], outputs: Sequence[str]
) -> Program:
    """The program of a model's steps; `inputs` are shapes with the batch."""
    return _Writer(static).write(steps, inputs, outputs)


class _Writer:
    def __init__(self, static: StaticGraph) -> None:
        self.static = static
        self._graph = fx.Graph()
        self._nodes: dict[str, fx.Node] = {}
        self._values: dict[fx.Node, Any] = {}
        self._inputs: list[InputSpec] = []
        self._scopes = Scopes()
        self._run = MetaRun()
        self._meta: dict[str, Any] = {}
        self._written: list[fx.Node] = []

    def write(self, steps: Sequence[Step], inputs: dict[str, TensorSpec], outputs: Sequence[str]) -> Program:
        for name, spec in inputs.items():
            self._place(name, spec, InputKind.USER_INPUT)
        with torch.no_grad():
            for step in steps:
                self._step(step)
        results = tuple(self.read(name) for name in outputs)
        self._graph.output(results)
        signature = ExportGraphSignature(
            self._inputs, [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(n.name), None) for n in results]
        )
        return Program(self._graph, signature, torch.nn.Module(), {}, self._values)

    def read(self, name: str) -> fx.Node:
        if name not in self._nodes:
            static = self.static
            scalar = name in static.constants and static.constants[name].ndim == 0
            if name in static.weights and not scalar:
                self._place(name, static.weights[name], InputKind.PARAMETER)
            else:
                self._place(name, static.specs[name], InputKind.CONSTANT_TENSOR)
        return self._nodes[name]

    def value(self, node: fx.Node) -> Any:
        return self._values[node]

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        if args and args[-1] is None:
            schema = target._schema.arguments if isinstance(target, torch._ops.OpOverload) else ()
            while args and args[-1] is None and len(args) <= len(schema) and schema[len(args) - 1].has_default_value():
                args = args[:-1]  # as torch.export leaves defaults away
        node = self._graph.create_node("call_function", target, name=_as_fx_names(target.__name__))
        node.args = args  # given to create_node, they are searched for symbols, of which there are none
        if kwargs:
            node.kwargs = kwargs
        self._written.append(node)
        self._values[node] = node.meta["val"] = self._run(node, self._values)
        node.meta.update(self._meta)
        return node

    def part(self, node: fx.Node, index: int) -> fx.Node:
        return self.call(operator.getitem, node, index)

    def _place(self, name: str, spec: TensorSpec, kind: InputKind) -> None:
        prefix = {InputKind.PARAMETER: "p_", InputKind.CONSTANT_TENSOR: "c_"}.get(kind, "")
        node = self._graph.placeholder(prefix + (re.sub(r"\W", "_", name) or "x"))
        target = None if kind is InputKind.USER_INPUT else name
        self._inputs.append(InputSpec(kind, TensorArgument(node.name), target))
        value = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device="meta")
        node.meta["val"] = self._values[node] = value
        self._nodes[name] = node

    def _step(self, step: Step) -> None:
        scope = self._scopes.of(step)
        self._meta = {"nn_module_stack": {path: (path, "") for path in scope}, "stack_trace": trace_of(step)}
        self._written = []
        convert = CONVERTERS.get(step.converter)
        results: list[fx.Node] | None = None
        if convert is not None:
            try:
                results = _listed(convert(Given(self, step)))
            except _NOT_COVERED:
                results = None
        if results is None or not all(
            self._is(node, self.static.specs[name]) for node, name in zip(results, step.outputs, strict=False)
        ):
            self._undo()
            results = self._foreign(step)
        self._nodes.update(zip(step.outputs, results, strict=False))

    def _foreign(self, step: Step) -> list[fx.Node]:
        specs = tuple(self.static.specs[o] for o in step.outputs)
        call = ForeignCall(step.kind, step.target, specs, step.attributes)
        node = self.call(call, *map(self.read, step.inputs))
        return [node] if len(specs) == 1 else [self.part(node, i) for i in range(len(specs))]

    def _undo(self) -> None:
        for node in reversed(self._written):
            self._graph.erase_node(node)
            self._values.pop(node, None)
        self._written = []

    def _is(self, node: fx.Node, spec: TensorSpec) -> bool:
        value = self._values[node]
        return (
            isinstance(value, torch.Tensor) and value.shape == spec.shape and value.dtype is getattr(torch, spec.dtype)
        )


@lru_cache(maxsize=4096)
def _as_fx_names(function: str) -> str:
    """What fx calls the calls of a function: `add_tensor` for `add.Tensor`."""
    return re.sub(r"[^0-9a-zA-Z_]+", "_", re.sub(r"(?<=[a-z])([A-Z])", r"_\1", function).lower())


def _listed(emitted: Any) -> list[fx.Node] | None:
    return emitted if emitted is None or isinstance(emitted, list) else [emitted]
