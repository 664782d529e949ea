"""The one module that imports TVM: operators expressed in Relax.

TVM 0.27 (Apache TVM, `tvm.relax.frontend`). Parameters enter as typed inputs, so no weight is read or copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import tvm
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from dippm.errors import UnsupportedOperator
from dippm.frontend.aten import KIND_BY_NAME, NOT_RUN, base_name
from dippm.frontend.foreign import ForeignCall


@dataclass(frozen=True)
class RelaxProgram:
    """A Relax module and, for each framework operator, the names of the Relax operators that express it."""

    module: tvm.IRModule
    names: Mapping[Any, tuple[str, ...]]


class RecordingBuilder(relax.BlockBuilder):  # type: ignore[misc]  # TVM ships no types
    """A block builder that remembers which operators were emitted since it was last asked."""

    def __init__(self) -> None:
        super().__init__()
        self._emitted: list[str] = []

    def emit(self, expr: Any, name_hint: str = "") -> relax.Var:
        collect_operator_names(expr, self._emitted)
        return super().emit(expr, name_hint)

    def normalize(self, expr: Any) -> Any:
        """Bind nested calls to variables; the outermost call is remembered when it is emitted itself."""
        if isinstance(expr, relax.Call):
            for argument in expr.args:
                collect_operator_names(argument, self._emitted)
        return super().normalize(expr)

    def take(self) -> tuple[str, ...]:
        """Names of the operators emitted since the last call, in order."""
        names, self._emitted = tuple(self._emitted), []
        return names


def collect_operator_names(expr: Any, into: list[str]) -> None:
    """Append the operator names in an expression, operands first."""
    if isinstance(expr, relax.Call):
        for argument in expr.args:
            collect_operator_names(argument, into)
        operator = expr.op
        if isinstance(operator, relax.ExternFunc):
            return
        if isinstance(operator, tvm.ir.Op):
            name = operator.name
            packed = expr.args[0] if name == "relax.call_pure_packed" and len(expr.args) else None
            into.append(f"packed.{packed.global_symbol}" if isinstance(packed, relax.ExternFunc) else name)
        else:
            into.append("relax.call")
    elif isinstance(expr, relax.Tuple):
        for item in expr.fields:
            collect_operator_names(item, into)
    elif isinstance(expr, relax.TupleGetItem):
        collect_operator_names(expr.tuple_value, into)


class _MetaImporter(ExportedProgramImporter):  # type: ignore[misc]  # TVM ships no types
    """TVM's importer over a graph that already ran on the meta device."""

    def translate(self, graph: fx.Graph, outputs: Sequence[fx.Node]) -> RelaxProgram:
        """Express every call of `graph` in Relax; each node's `meta["val"]` says what it puts out."""
        builder = RecordingBuilder()
        self.block_builder = builder
        names: dict[Any, tuple[str, ...]] = {}
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                value = node.meta["val"]
                self.env[node] = relax.Var(node.name, tensor_type(value)) if isinstance(value, torch.Tensor) else value
        variables = [v for v in self.env.values() if isinstance(v, relax.Var)]
        with builder.function("main", params=variables):
            with builder.dataflow():
                for node in graph.nodes:
                    if node.op != "call_function":
                        continue
                    value = node.meta["val"]
                    if value is None or isinstance(value, (int, float, bool)):
                        self.env[node] = value
                        continue
                    self.env[node] = self._call(node)
                    names[node] = builder.take()
                results = [self.env[n] for n in outputs if isinstance(self.env[n], relax.Expr)]
                output = builder.emit_output(relax.Tuple(results))
            builder.emit_func_output(output)
        return RelaxProgram(module=builder.get(), names=names)

    def _call(self, node: fx.Node) -> Any:
        if isinstance(node.target, ForeignCall):
            return self._packed(node)
        name = getattr(node.target, "__name__", str(node.target))
        convert = self.convert_map.get(name)
        base = base_name(name)
        if base in NOT_RUN:
            return self.env[node.args[0]] if node.args else None
        known = base in KIND_BY_NAME
        if convert is None and not known:
            raise UnsupportedOperator(f"operator {node.target} is not supported")
        if convert is not None:
            try:
                expr = convert(node)
            except Exception as error:
                # TVM's converters raise whatever comes up (assertions, KeyError, its own errors) on argument
                # combinations that they do not cover; the call itself is still known and typed.
                if not known:
                    raise UnsupportedOperator(
                        f"operator {node.target} is not supported: {_first_line(error)}"
                    ) from error
            else:
                if not isinstance(node.target, torch._ops.OpOverload) or _agrees(expr, node.meta["val"]):
                    return expr
        self.block_builder.take()
        return self._packed(node)

    def _packed(self, node: fx.Node) -> Any:
        """The call as a packed function of the framework's name, typed by what it put out on the meta device."""
        arguments = [self.env[a] for a in node.all_input_nodes if isinstance(self.env.get(a), relax.Expr)]
        value = node.meta["val"]
        many = isinstance(value, (tuple, list))
        tensors = [v for v in value if isinstance(v, torch.Tensor)] if many else [value]
        types = [tensor_type(t) for t in tensors]
        call = relax.op.call_pure_packed(
            _packed_name(node), *arguments, ty_args=[relax.TupleType(types)] if many else types
        )
        result = self.block_builder.emit(call)
        if not many:
            return result
        return [self.block_builder.emit(relax.TupleGetItem(result, i)) for i in range(len(tensors))]


def _packed_name(node: fx.Node) -> str:
    return node.target.name if isinstance(node.target, ForeignCall) else str(node.target)


def tensor_type(tensor: torch.Tensor) -> Any:
    """The Relax type of a meta tensor."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return relax.TensorType([int(d) for d in tensor.shape], _RELAX_DTYPE.get(dtype, dtype))


_RELAX_DTYPE = {"complex64": "int64", "complex128": "int64"}
"""Relax has no complex numbers: another dtype stands in, inside the Relax module only."""


def _agrees(expr: Any, value: Any) -> bool:
    """Whether a converter's result has the shape and dtype that the framework has; where not, it is not believed."""
    if isinstance(value, torch.Tensor):
        kind = getattr(expr, "ty", None)
        if not isinstance(kind, relax.TensorType) or kind.shape is None:
            return False
        return list(map(_static, kind.shape)) == list(value.shape) and _dtype(kind) == str(value.dtype)[6:]
    return True


def _static(dim: Any) -> int | None:
    value = getattr(dim, "value", dim)
    return value if isinstance(value, int) else None


def _dtype(kind: Any) -> str:
    dtype = kind.dtype
    return str(getattr(dtype, "dtype", dtype))


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1][:200] if text else type(error).__name__


def express_in_relax(graph: fx.Graph, outputs: Sequence[fx.Node]) -> RelaxProgram:
    """Express an fx graph (run on meta before, see `meta_run`) in Relax.

    Raises UnsupportedOperator, naming the operator.
    """
    return _MetaImporter().translate(graph, outputs)
