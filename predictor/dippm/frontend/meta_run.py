"""Run an fx graph of ATen operators on the meta device: what each node puts out, and whose storage it is.

Nothing is computed and no memory is taken: a meta tensor has a shape, strides and a storage without data. Views share
the storage of their base there just as on a device, and a reshape copies exactly when its strides make it copy.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from dippm.errors import InputShapeError, UnsupportedOperator
from dippm.frontend.aten import NOT_RUN, base_name
from dippm.frontend.respell import Place, place_after_reshape, scaled

aten = torch.ops.aten
Concrete = Any
"""What a node puts out: a meta tensor, a tuple or list of them, or a number (a shape)."""


def run_on_meta(
    graph: fx.Graph, inputs: Mapping[fx.Node, Concrete], *, rebatch: tuple[int | None, int] = (None, 0)
) -> dict[fx.Node, Concrete]:
    """The concrete value of every node, given those of the placeholders (and get_attr nodes).

    Each node's `meta["val"]` is replaced by what it put out, and shape arithmetic in its arguments by plain numbers,
    so that the graph is static afterwards whatever symbols it was exported with. `rebatch` is the batch that the graph
    spells out, if any, and the one to put in its place.

    Raises InputShapeError where the shapes do not go through the model.
    """
    values: dict[fx.Node, Concrete] = {}
    run_node = MetaRun()
    own = {} if rebatch[0] is None else {n: _shape(n.meta.get("val")) for n in graph.nodes}
    outer: dict[fx.Node, int] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                values[node] = inputs[node]
            elif node.op == "call_function":
                if rebatch[0] is not None:
                    _rebatch_states(node, values, rebatch[0], rebatch[1])
                    outer[node] = _rebatch(node, values, own, outer, rebatch[0], rebatch[1])
                values[node] = run_node(node, values)
                node.args = map_aggregate(node.args, lambda a: _fold(a, values))
                node.kwargs = map_aggregate(node.kwargs, lambda a: _fold(a, values))
            elif node.op != "output":
                raise UnsupportedOperator(
                    f"operator {node.target} ({node.op}) is not an ATen call and is not supported"
                )
            if node in values:
                node.meta["val"] = values[node]
    return values


_RESHAPES = frozenset({"view", "reshape", "_unsafe_view"})
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def _shape(recorded: Any) -> tuple[int, ...] | None:
    """What the exporter recorded of a tensor's shape; None of anything else, or where it is no number."""
    if not isinstance(recorded, torch.Tensor) or not all(isinstance(d, int) for d in recorded.shape):
        return None
    return tuple(recorded.shape)


def _rebatch(
    node: fx.Node,
    values: Mapping[fx.Node, Concrete],
    own: Mapping[fx.Node, tuple[int, ...] | None],
    outer: Mapping[fx.Node, int],
    old: int,
    new: int,
) -> int:
    """Give a view (or expansion) that spells out the exporter's batch the new one.

    A view does where its source carries the batch: where the shape that was recorded (`own`) differs from the one now,
    by the batch alone (`respell`). An expansion does where it leads with `old`. Returns the `Place.outer` of what the
    node puts out.
    """
    first = next((a for a in node.all_input_nodes if outer.get(a, 1) != 1), None)
    handed_on = 1 if first is None else outer[first]
    name = base_name(str(node.target))
    if name not in _RESHAPES and name != "expand":
        return handed_on
    source, recorded, target = values.get(node.args[0]), own.get(node.args[0]), own.get(node)  # type: ignore[arg-type]
    if not isinstance(source, torch.Tensor) or recorded is None or not target:
        return handed_on
    axis = None
    if name == "expand":
        fewer = source.dim() < len(target)
        if target[0] == old and (fewer or source.shape[:1] in ((1,), (new,))):
            axis = 0
    else:
        grown = [a for a, (was, now) in enumerate(zip(recorded, source.shape, strict=False)) if was != now]
        if len(grown) == 1 and source.shape[grown[0]] * old == recorded[grown[0]] * new:
            place = place_after_reshape(recorded, Place(grown[0], handed_on), target, old, None)
            axis, handed_on = (None, 1) if place is None else (place.axis, place.outer)
    if axis is not None:
        node.args = (node.args[0], list(scaled(target, axis, old, new)), *node.args[2:])
    return handed_on


def _rebatch_states(node: fx.Node, values: dict[fx.Node, Concrete], old: int, new: int) -> None:
    """Give the zeros that a recurrent layer begins with, (layers, batch, width), the new batch: they read no input."""
    if base_name(str(node.target)) not in _RECURRENT:
        return
    for state in node.all_input_nodes:
        sizes = state.args[0] if state.args else None
        if base_name(str(state.target)) in ("zeros", "full") and isinstance(sizes, (list, tuple)):
            value = values[state]
            if len(sizes) == 3 and sizes[1] == old and value.shape[1] == old:
                state.args = ([sizes[0], new, sizes[2]], *state.args[1:])
                values[state] = state.meta["val"] = value.new_empty((value.shape[0], new, value.shape[2]))


def _fold(argument: Any, values: Mapping[fx.Node, Concrete]) -> Any:
    """A node that stands for a number becomes that number."""
    if isinstance(argument, fx.Node) and isinstance(values.get(argument), (int, float, bool)):
        return values[argument]
    return argument


class MetaRun:
    """Runs the calls of one graph. A call that makes new tensors is run once for each signature.

    Equal layers make equal calls, and many of PyTorch's meta kernels are Python. What hands an operand's storage on
    (views, calls in place) is always run.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, tuple[type, tuple[tuple[Any, Any, torch.dtype], ...]] | None] = {}

    def __call__(self, node: fx.Node, values: Mapping[fx.Node, Concrete]) -> Concrete:
        """What one call puts out, given the concrete values of its arguments."""
        args = map_aggregate(node.args, lambda a: values[a] if isinstance(a, fx.Node) else a)
        kwargs: dict[str, Any] = {}
        if node.kwargs:
            kwargs = dict(map_aggregate(node.kwargs, lambda a: values[a] if isinstance(a, fx.Node) else a))
            if kwargs.get("device") is not None:
                kwargs["device"] = torch.device("meta")
        if not isinstance(node.target, torch._ops.OpOverload):
            return node.target(*args, **kwargs)  # type: ignore[operator]  # getitem and shape arithmetic
        name = base_name(node.target._schema.name)
        if name in NOT_RUN and not name.startswith("sym_"):
            return args[0] if args else None
        tensors: list[torch.Tensor] = []
        try:
            key = (node.target, _signed(args, tensors), _signed(tuple(kwargs.items()), tensors))
            made = self._made.get(key)
        except TypeError:  # an argument that cannot be a key
            key, made = None, None
        if made is not None:
            kind, outputs = made
            new = [torch.empty_strided(size, stride, dtype=dtype, device="meta") for size, stride, dtype in outputs]
            return new[0] if kind is torch.Tensor else kind(new)
        special = _ON_DEVICE.get(name) or _IN_PYTHON.get(node.target)
        try:
            result = special(node.target, args, kwargs) if special is not None else node.target(*args, **kwargs)
        except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError, AssertionError) as error:
            return _recorded(node, error)
        if key is not None:
            self._made[key] = _new_tensors(result, tensors)
        return result


def _signed(argument: Any, tensors: list[torch.Tensor]) -> Hashable:
    """An argument as part of a key; the tensors in it are collected."""
    if isinstance(argument, torch.Tensor):
        tensors.append(argument)
        return (argument.shape, argument.stride(), argument.dtype)
    if isinstance(argument, (list, tuple)):
        return tuple([_signed(a, tensors) for a in argument])
    return (type(argument), argument)  # 1, 1.0 and True are the same key


def _new_tensors(
    result: Any, operands: list[torch.Tensor]
) -> tuple[type, tuple[tuple[Any, Any, torch.dtype], ...]] | None:
    """How a call's result is made again: each output its own dense storage, none of them an operand's; else None."""
    kind = torch.Tensor if isinstance(result, torch.Tensor) else type(result)
    outputs = [result] if kind is torch.Tensor else result
    if kind not in (torch.Tensor, tuple, list) or not all(isinstance(o, torch.Tensor) for o in outputs):
        return None
    storages = [t.untyped_storage()._cdata for t in (*outputs, *operands)]
    if len(set(storages[: len(outputs)])) < len(outputs) or set(storages[: len(outputs)]) & set(
        storages[len(outputs) :]
    ):
        return None
    described = []
    for tensor in outputs:
        size, stride = tensor.shape, tensor.stride()
        reach = 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if tensor.numel() else 0
        if tensor.storage_offset() or tensor.untyped_storage().nbytes() != reach * tensor.element_size():
            return None
        described.append((size, stride, tensor.dtype))
    return kind, tuple(described)


def _recorded(node: fx.Node, error: Exception) -> Concrete:
    """What the exporter saw, for operators that the meta device cannot run (they read data); only if it is static."""
    recorded = node.meta.get("val")
    tensors: list[torch.Tensor] = []
    map_aggregate((recorded,), lambda v: tensors.append(v) if isinstance(v, torch.Tensor) else None)
    if (
        isinstance(error, NotImplementedError)
        and tensors
        and all(isinstance(d, int) for t in tensors for d in (*t.shape, *t.stride()))
    ):
        return map_aggregate((recorded,), lambda v: _like(v) if isinstance(v, torch.Tensor) else v)[0]
    sentence = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputShapeError(f"these input shapes do not go through the model: {node.target} says: {sentence[:300]}")


def _like(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device="meta")


def _attention(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Scaled dot-product attention as CUDA's fused kernels put it out.

    The flash and memory-efficient kernels write (batch, sequence, heads, width) and hand back a transposed view, so
    the `transpose(1, 2).reshape(...)` that follows in most models is free; on the meta device it would copy.
    """
    query, value = args[0], args[2]
    shape = (*query.shape[:-1], value.shape[-1])
    if query.dim() != 4:
        return query.new_empty(shape)
    b, h, s, d = shape
    return query.new_empty((b, s, h, d)).transpose(1, 2)


def _like_first(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call whose result is as its first operand where that and every other tensor is dense and of one shape."""
    first = args[0]
    dense = isinstance(first, torch.Tensor) and all(
        not isinstance(a, torch.Tensor) or (_is_dense(a) and a.shape == first.shape and a.dtype == first.dtype)
        for a in args
    )
    if dense and not kwargs and first.dtype.is_floating_point and not any(type(a) is complex for a in args):
        return first.new_empty(first.shape)
    return target(*args, **kwargs)


def _layer_norm(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, shape, *affine = args
    weights = [a for a in affine if isinstance(a, torch.Tensor)]
    normalized = tuple(shape)
    if (
        _is_dense(x) and x.shape[x.dim() - len(normalized) :] == normalized
        and all(_is_dense(w) and w.shape == normalized and w.dtype == x.dtype for w in weights)
    ):  # fmt: skip
        return x.new_empty(x.shape)
    return target(*args, **kwargs)


def _linear(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, weight, *bias = args
    fits = x.dim() > 1 and weight.dim() == 2 and x.shape[-1] == weight.shape[1] and x.dtype == weight.dtype
    if _is_dense(x) and fits and all(b is None or (b.shape == weight.shape[:1] and b.dtype == x.dtype) for b in bias):
        return x.new_empty((*x.shape[:-1], weight.shape[0]))
    return target(*args, **kwargs)


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether the strides are those of a new tensor of the shape."""
    step = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if stride != step:
            return False
        step *= size or 1
    return True


def _same(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    tensor: torch.Tensor = args[0]
    return tensor.view_as(tensor)


def _to(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """`aten.to` with every device read as the one device that the model is on."""
    args = tuple(torch.device("meta") if isinstance(a, torch.device) else a for a in args)
    result: torch.Tensor = target(*args, **kwargs)
    return result


_ON_DEVICE: dict[str, Callable[[Any, tuple[Any, ...], dict[str, Any]], torch.Tensor]] = {
    "scaled_dot_product_attention": _attention,
    "detach": _same,
    "lift_fresh": _same,
    "to": _to,
}
"""By name: what the meta device does otherwise than a device with kernels."""
_IN_PYTHON: dict[Any, Callable[[Any, tuple[Any, ...], dict[str, Any]], torch.Tensor]] = {
    aten.layer_norm.default: _layer_norm,
    aten.linear.default: _linear,
    **dict.fromkeys((aten.add.Tensor, aten.mul.Tensor, aten.gelu.default, aten.roll.default), _like_first),
}
"""By overload: calls whose meta kernels are Python, up to milliseconds of it, where their result is plain to see."""
