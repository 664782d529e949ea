"""The calls of an exported program (an fx graph that ran on the meta device) expressed in Relax."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
import tvm
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from dippm.errors import UnsupportedOperator
from dippm.frontend.aten import KIND_BY_NAME, NOT_RUN, base_name
from dippm.frontend.foreign import ForeignCall
from dippm.frontend.relax.types import dtype_of, static_dim, tensor_type


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

    def __init__(self) -> None:
        super().__init__()
        self._types: dict[fx.Node, Hashable] = {}
        self._known: dict[Hashable, tuple[Any, tuple[str, ...], Hashable]] = {}

    def translate(self, graph: fx.Graph) -> dict[fx.Node, tuple[str, ...]]:
        """Express the calls of `graph` in Relax, each distinct one once; the operators' names for each.

        A call that was expressed before, on operands of the same types, is given what was put out then; graph inputs
        of one type are one variable. Each node's `meta["val"]` says what it puts out.
        """
        builder = RecordingBuilder()
        self.block_builder = builder
        names: dict[fx.Node, tuple[str, ...]] = {}
        inputs: dict[Hashable, relax.Var] = {}
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                value = node.meta["val"]
                if isinstance(value, torch.Tensor):
                    kind = self._types[node] = (value.shape, value.dtype)
                    if kind not in inputs:
                        inputs[kind] = relax.Var(node.name, tensor_type(value))
                    self.env[node] = inputs[kind]
                else:
                    self._types[node] = (type(value), value)
                    self.env[node] = value
        result: Any = relax.Tuple([])
        with builder.function("main", params=list(inputs.values())):
            with builder.dataflow():
                for node in graph.nodes:
                    if node.op != "call_function":
                        continue
                    value = node.meta["val"]
                    if value is None or isinstance(value, (int, float, bool)):
                        self.env[node], self._types[node] = value, (type(value), value)
                        continue
                    self.env[node], names[node], self._types[node] = self._expressed(node)
                output = builder.emit_output(result)
            builder.emit_func_output(output)
        return names

    def _expressed(self, node: fx.Node) -> tuple[Any, tuple[str, ...], Hashable]:
        """What a call puts out in Relax, the names of the operators for it, and its type."""
        try:
            key = (node.target, self._signed(node.args), self._signed(node.kwargs), _signed_value(node.meta["val"]))
            known = self._known.get(key)
        except TypeError:  # an argument that cannot be a key
            key, known = None, None
        if known is None:
            put_out = self._call(node)
            known = put_out, self.block_builder.take(), _type_of(put_out)
            if key is not None:
                self._known[key] = known
        return known

    def _signed(self, argument: Any) -> Hashable:
        """An argument as part of a key: nodes by what they put out."""
        if isinstance(argument, fx.Node):
            return ("node", self._types[argument])
        if isinstance(argument, (list, tuple)):
            return tuple([self._signed(a) for a in argument])
        if isinstance(argument, dict):
            return tuple([(name, self._signed(a)) for name, a in argument.items()])
        if isinstance(argument, slice):
            return (slice, self._signed((argument.start, argument.stop, argument.step)))
        return (type(argument), argument)  # 1, 1.0 and True are the same key

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


def _agrees(expr: Any, value: Any) -> bool:
    """Whether a converter's result has the shape and dtype that the framework has; where not, it is not believed."""
    if isinstance(value, torch.Tensor):
        kind = getattr(expr, "ty", None)
        if not isinstance(kind, relax.TensorType) or kind.shape is None:
            return False
        return list(map(static_dim, kind.shape)) == list(value.shape) and dtype_of(kind) == str(value.dtype)[6:]
    return True


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1][:200] if text else type(error).__name__


def _signed_value(value: Any) -> Hashable:
    if isinstance(value, torch.Tensor):
        return (value.shape, value.dtype)
    return tuple([_signed_value(v) for v in value]) if isinstance(value, (list, tuple)) else (type(value), value)


def _type_of(put_out: Any) -> Hashable:
    """The type of what stands for a call's result; of what has none, which thing it is (it stays alive)."""
    if isinstance(put_out, (list, tuple)):
        return (type(put_out), *map(_type_of, put_out))
    kind = put_out.ty if isinstance(put_out, relax.Expr) else None
    if isinstance(put_out, relax.Var) and isinstance(kind, relax.TensorType) and kind.shape is not None:
        dims = [d for d in map(static_dim, kind.shape) if d is not None]
        if len(dims) == len(kind.shape):
            return (torch.Size(dims), dtype_of(kind))
    return id(put_out)


def names_in_relax(graph: fx.Graph) -> dict[fx.Node, tuple[str, ...]]:
    """For each call of an fx graph (run on meta before, see `meta_run`), the Relax operators that express it, in order.

    Raises UnsupportedOperator, naming the operator.
    """
    return _MetaImporter().translate(graph)
