"""The TorchScript nodes that hold no ATen call: numbers, containers, facts of tensors, functions, source lines."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

import torch

WAY_OUT = "export the model with torch.jit.trace or torch.export instead"
_RANGE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)\n(?P<text>.*?)<--- HERE', re.DOTALL)


def function_body(node: Any, read: list[Any]) -> tuple[Any, list[Any]]:
    """The body of a called function (the call alone in a graph, inlined), and the arguments of its inputs.

    A value that is passed twice (a kernel size that is the stride too) is one input.
    """
    graph = torch._C.Graph()
    inputs = list(node.inputs())

    def clone(original: Any, known: dict[str, Any]) -> Any:
        return graph.insertNode(graph.createClone(original, lambda v: known[v.debugName()]))  # type: ignore[attr-defined]

    values = {inputs[0].debugName(): clone(inputs[0].node(), {}).output()}
    arguments = []
    for value, argument in zip(inputs[1:], read, strict=True):
        if value.debugName() not in values:
            values[value.debugName()] = graph.addInput().setType(value.type())
            arguments.append(argument)
    for output in clone(node, values).outputs():
        graph.registerOutput(output)
    torch._C._jit_pass_inline(graph)
    return graph, arguments


def source_frame(node: Any) -> str:
    """The node's source range as Python prints a frame; the line that it points at is the one above the marker."""
    try:
        shown = node.sourceRange()
    except (RuntimeError, IndexError, MemoryError):
        return ""  # the archive's debug file is damaged: names and lines are lost, the graph is not
    found = _RANGE.search(shown)
    if found is None or found["file"].startswith("code/"):
        return ""  # only the archive's own code is known, not the source that was scripted or traced
    lines = [t for t in found["text"].split("\n") if t.strip() and set(t.strip()) != {"~"}]
    return f'  File "{found["file"]}", line {found["line"]}, in forward\n    {lines[-1].strip()}' if lines else ""


NUMBERS: dict[str, Callable[[Any], Any]] = {
    "aten::Int": int, "aten::IntImplicit": int, "aten::Float": float, "aten::FloatImplicit": float, "aten::Bool": bool,
    "aten::ScalarImplicit": lambda v: v, "aten::item": lambda v: v,
}  # fmt: skip
SIMPLE: dict[str, Callable[[list[Any]], Any]] = {
    "prim::ListConstruct": list,
    "prim::TupleConstruct": tuple,
    "prim::TupleIndex": lambda r: r[0][r[1]],
    "prim::DictConstruct": lambda r: dict(zip(r[::2], r[1::2], strict=True)),
    "prim::NumToTensor": lambda r: torch.tensor(r[0]),
    "prim::dtype": lambda r: r[0].dtype,
    "prim::device": lambda r: torch.device("meta"),
    "prim::layout": lambda r: torch.strided,
    "prim::is_cuda": lambda r: True,
    "prim::type": lambda r: "cuda",
    "prim::is_cpu": lambda r: False,
    "prim::is_meta": lambda r: False,
    "prim::is_nested": lambda r: False,
    "prim::is_sparse": lambda r: r[0].is_sparse,
    "prim::is_quantized": lambda r: r[0].is_quantized,
    "prim::is_mkldnn": lambda r: False,
    "prim::requires_grad": lambda r: False,
    "prim::shape": lambda r: list(r[0].shape),
    "prim::ndim": lambda r: r[0].dim(),
    "prim::unchecked_unwrap_optional": lambda r: r[0],
    "prim::Print": lambda r: None,
    "aten::_unwrap_optional": lambda r: r[0],
    "aten::is_scripting": lambda r: True,
    "aten::is_grad_enabled": lambda r: False,
    "aten::is_autocast_enabled": lambda r: False,
    "aten::str": lambda r: str(r[0]),
    "prim::unchecked_cast": lambda r: r[0],
    "prim::Uninitialized": lambda r: None,
    "prim::data": lambda r: r[0],
    "prim::min": lambda r: min(*r) if len(r) > 1 else min(r[0]),
    "prim::max": lambda r: max(*r) if len(r) > 1 else max(r[0]),
    "aten::size": lambda r: list(r[0].shape) if len(r) == 1 else r[0].shape[r[1]],
    "aten::dim": lambda r: r[0].dim(),
    "aten::len": lambda r: len(r[0]),
    "aten::__getitem__": lambda r: r[0][r[1]],
    "aten::__contains__": lambda r: r[1] in r[0],
    "aten::__is__": lambda r: r[0] is r[1],
    "aten::__isnot__": lambda r: r[0] is not r[1],
    "aten::__not__": lambda r: not r[0],
    "aten::append": lambda r: r[0].append(r[1]),
    "aten::list": lambda r: list(r[0]),
    "aten::format": lambda r: str(r[0]).format(*r[1:]),
    "aten::warn": lambda r: None,
}
CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "aten::slice": lambda r: r[0][slice(*r[1:])],
    "aten::add": lambda r: r[0] + r[1],
    "aten::add_": lambda r: r[0].__iadd__(r[1]),
    "aten::mul": lambda r: r[0] * r[1],
    "aten::insert": lambda r: r[0].insert(r[1], r[2]),
    "aten::extend": lambda r: r[0].extend(r[1]),
    "aten::pop": lambda r: r[0].pop(*r[1:]),
    "aten::clear": lambda r: r[0].clear(),
    "aten::reverse": lambda r: r[0].reverse(),
    "aten::copy": lambda r: r[0].copy(),
    "aten::_set_item": lambda r: operator.setitem(r[0], r[1], r[2]),
    "aten::Delete": lambda r: operator.delitem(r[0], r[1]),
    "aten::get": lambda r: r[0].get(*r[1:]),
    "aten::keys": lambda r: list(r[0]),
    "aten::values": lambda r: list(r[0].values()),
    "aten::items": lambda r: list(r[0].items()),
    "aten::startswith": lambda r: r[0].startswith(*r[1:]),
    "aten::endswith": lambda r: r[0].endswith(*r[1:]),
}
"""Methods of lists, dictionaries and strings; the names that tensors have too are taken where the first is none."""
