"""The graph of a deep stack of layers from that of its first three.

torch.export takes the time of every layer, and the 32 of a decoder of 7 B parameters are the same. So

1. find the one list of layers whose parameters are alike (`_stack`);
2. run the whole model's own Python on the meta device and hold the layers against each other: from the second on, each
   must call the same operators on the same tensors, shapes and numbers, and so must what runs between two
   (`_runs_alike`);
3. export the model with three layers (`graph_of_module`);
4. hold the third layer's operators against the second's: each is the other one layer further (`_Splice.follows`);
5. write the third once more for every layer that was left out (`_Splice.repeated`).

Where a step fails, the whole model is exported. The graph is the same either way, names included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._export.utils import _compiling_state_context
from torch.utils._python_dispatch import TorchDispatchMode

from dippm.errors import DippmError
from dippm.frontend.exported_program import graph_of_module
from dippm.graph import ModelGraph, Operator, Value

EXPORTED = 3
"""Layers that are exported: the first may differ (it reads the embedding), the third shows what the second repeats."""
_FEWEST = 6
"""Layers from which on it pays."""
_NUMBERED = re.compile(r"(.*?)(?:_(\d+))?\Z", re.DOTALL)


def graph_of_layers(module: torch.nn.Module, examples: Mapping[str, torch.Tensor], *, batch: int) -> ModelGraph:
    """`graph_of_module` of a module on the meta device with inputs by name, in the time of three of its layers.

    Raises what `graph_of_module` raises.
    """
    path = _stack(module)
    if path is not None and _runs_alike(module, path, examples):
        layers = module.get_submodule(path)
        assert isinstance(layers, torch.nn.ModuleList)
        short = _exported_short(module, path, layers, examples, batch)
        splice = None if short is None else _Splice.of(short, path, len(layers))
        if splice is not None and splice.follows():
            return splice.repeated()
    return graph_of_module(module, examples, batch=batch)


def _exported_short(
    module: torch.nn.Module, path: str, layers: torch.nn.ModuleList, examples: Mapping[str, torch.Tensor], batch: int
) -> ModelGraph | None:
    """The graph of the module with its first three layers alone; None where its Python does not run so."""
    above, _, name = path.rpartition(".")
    owner = module.get_submodule(above)
    setattr(owner, name, torch.nn.ModuleList(layers[:EXPORTED]))
    try:
        return graph_of_module(module, examples, batch=batch)
    except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, DippmError):
        return None  # it counts its layers by its config; what it raises whole is the user's to read
    finally:
        setattr(owner, name, layers)


def _stack(module: torch.nn.Module) -> str | None:
    """Path of the only long list of layers with the same parameters, none of which another module has too."""
    found = [
        name
        for name, one in module.named_modules()
        if isinstance(one, torch.nn.ModuleList) and len(one) >= _FEWEST and _parameters_alike(one)
    ]
    if len(found) != 1:
        return None
    seen: dict[int, int] = {}
    for _, tensor in module.named_parameters(remove_duplicate=False):
        seen[id(tensor)] = seen.get(id(tensor), 0) + 1
    shared = any(seen[id(p)] > 1 for p in module.get_submodule(found[0]).parameters())
    return None if shared else found[0]


def _parameters_alike(layers: torch.nn.ModuleList) -> bool:
    first, *others = ([(n, t.shape, t.dtype) for n, t in _state(layer)] for layer in layers)
    return bool(first) and all(other == first for other in others)


def _state(layer: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from layer.named_parameters()
    yield from layer.named_buffers()


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every ATen call with what it is given: numbers, shapes, and where each tensor comes from."""

    def __init__(self, own: Mapping[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Any] = []
        self._own = own
        """Names of the layers' own parameters within their layer, by the tensor's `id`."""
        self._made: dict[int, tuple[int, torch.Tensor]] = {}
        """By `id`, the call that put a tensor out; the tensor is held, or its `id` would be given away again."""
        self.layers_from: int | None = None
        """Calls before the first layer: what they put out is one and the same for all layers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls.append((func, self._described(args), self._described(tuple(kwargs.items()))))
        results = func(*args, **kwargs)
        for result in results if isinstance(results, (tuple, list)) else (results,):
            if isinstance(result, torch.Tensor):
                self._made.setdefault(id(result), (len(self.calls) - 1, result))
        return results

    def _described(self, argument: Any) -> Any:
        if isinstance(argument, torch.Tensor):
            return (self._origin(argument), tuple(argument.shape), argument.stride(), argument.dtype)
        if isinstance(argument, (tuple, list)):
            return tuple(map(self._described, argument))
        return argument

    def _origin(self, tensor: torch.Tensor) -> Any:
        """A parameter's name in its layer; or the call that put it out, counted back where layers have begun."""
        if id(tensor) in self._made:
            call = self._made[id(tensor)][0]
            ago = self.layers_from is not None and call >= self.layers_from
            return (len(self.calls) - call, "ago") if ago else call
        return self._own.get(id(tensor), id(tensor))


def _runs_alike(module: torch.nn.Module, path: str, examples: Mapping[str, torch.Tensor]) -> bool:
    """Whether each layer from the second on calls the same operators, and what runs between two of them does too."""
    layers = list(module.get_submodule(path).children())
    calls = _Calls({id(t): name for layer in layers for name, t in _state(layer)})
    marks: list[tuple[int, int]] = []
    """Of each entry to and exit from a layer, in order: its number and how many calls came before."""

    def mark(number: int) -> Any:
        def note(*_: Any) -> None:
            marks.append((number, len(calls.calls)))
            if calls.layers_from is None and number == 0:
                calls.layers_from = len(calls.calls)

        return note

    hooks = [h for n, one in enumerate(layers) for h in
             (one.register_forward_pre_hook(mark(n)), one.register_forward_hook(mark(n)))]  # fmt: skip
    try:
        with torch.no_grad(), _compiling_state_context(), calls:  # mask code looks at data unless it is exported
            module(**examples)
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # it reads what a tensor holds, which the meta device does not
    finally:
        for hook in hooks:
            hook.remove()
    if [n for n, _ in marks] != [n for n in range(len(layers)) for _ in range(2)]:
        return False
    at = [position for _, position in marks]
    inside = [calls.calls[a:b] for a, b in zip(at[2::2], at[3::2], strict=True)]
    between = [calls.calls[a:b] for a, b in zip(at[1:-1:2], at[2::2], strict=True)]
    return all(one == inside[0] for one in inside) and all(one == between[0] for one in between)


@dataclass(frozen=True)
class _Splice:
    """A graph with three layers, cut where they begin.

    Values: parameters and inputs, in which the layers' own are one block; then the operators' results in order.
    """

    graph: ModelGraph
    path: str
    layers: int
    """How many the whole model has."""
    own: int
    """Id of the first parameter of the first layer."""
    own_count: int
    """Parameters of a layer."""
    first: int
    """Index of the first layer's first operator."""
    period: int
    """Operators from one layer's first to the next one's."""
    results: int
    """Id of the first layer's first result."""
    result_count: int
    """Results of a period."""

    @classmethod
    def of(cls, graph: ModelGraph, path: str, layers: int) -> _Splice | None:
        """Where the graph is cut; None where its layers do not follow on each other."""
        starts = [_first_in(graph, f"{path}.{n}") for n in range(EXPORTED)]
        owned = [_owned(graph, f"{path}.{n}.") for n in range(EXPORTED)]
        if None in starts or len({len(ids) for ids in owned}) != 1:
            return None
        first, second, third = (int(s) for s in starts if s is not None)
        period = third - second
        count = len(owned[0])
        ids = [i for block in owned for i in block]
        if second - first != period or third + period > len(graph.operators) or not ids:
            return None
        if ids != list(range(ids[0], ids[0] + EXPORTED * count)):
            return None
        results = graph.operators[first].outputs[0]
        result_count = graph.operators[second].outputs[0] - results
        return cls(graph, path, layers, ids[0], count, first, period, results, result_count)

    @property
    def _third(self) -> int:
        return self.first + 2 * self.period

    @property
    def _end(self) -> int:
        return self.first + EXPORTED * self.period

    def follows(self) -> bool:
        """Whether the third layer is the second one further, and nothing after it reads an earlier one."""
        graph = self.graph
        for index in range(self.first + self.period, self._third):
            further = self._operator(graph.operators[index], self._one_further, 1, 2)
            if further != graph.operators[index + self.period]:
                return False
            for value in graph.operators[index].outputs:
                if self._value(graph.values[value], self._one_further, self.period) != replace(
                    graph.values[value + self.result_count], name=graph.values[value].name
                ):
                    return False
        early = range(self.results, self.results + 2 * self.result_count)
        own = range(self.own, self.own + EXPORTED * self.own_count)
        late = [v for o in graph.operators[self._end :] for v in (*o.inputs, *o.outputs)]
        roots = [graph.values[v].alias_of for o in graph.operators[self._end :] for v in o.outputs]
        return not any(v in early or v in own for v in (*late, *roots, *graph.outputs) if v is not None) and (
            self._steps() is not None
        )

    def _one_further(self, value: int) -> int:
        """The value that stands to the third layer as `value` does to the second."""
        if self.own + self.own_count <= value < self.own + 2 * self.own_count:
            return value + self.own_count
        if self.results <= value < self.results + 2 * self.result_count:
            return value + self.result_count
        return value

    def _steps(self) -> dict[str, int] | None:
        """By how much the number in a result's name grows from layer to layer; None where it does not do so evenly."""
        steps: dict[str, int] = {}
        second = self.results + self.result_count
        for value in range(second, second + self.result_count):
            (base, low), (other, high) = (
                _numbered(self.graph.values[v].name) for v in (value, value + self.result_count)
            )
            if base != other or steps.setdefault(base, high - low) != high - low:
                return None
        return steps

    def repeated(self) -> ModelGraph:
        """The graph with all layers."""
        graph, missing = self.graph, self.layers - EXPORTED
        steps = self._steps() or {}
        own_end = self.own + EXPORTED * self.own_count
        results_end = self.results + EXPORTED * self.result_count

        def before(value: int) -> int:
            """A value's new id, where it is read up to the third layer."""
            return value + (missing * self.own_count if value >= own_end else 0)

        def after(value: int) -> int:
            """The same behind the layers: what the third put out, the last does."""
            return before(value) + (missing * self.result_count if value >= results_end - self.result_count else 0)

        def in_copy(value: int, copy: int) -> int:
            """The same in the layer `copy` beyond the third."""
            if own_end - self.own_count <= value < own_end:
                return value + copy * self.own_count
            if self.results + self.result_count <= value < results_end:
                return before(value) + copy * self.result_count
            return before(value)

        values = [self._value(v, before, 0) for v in graph.values[:own_end]]
        last = EXPORTED - 1
        for copy in range(1, missing + 1):
            values += [
                replace(v, name=self._renamed(v.name, last, last + copy))
                for v in values[own_end - self.own_count : own_end]
            ]
        values += [self._value(v, before, 0) for v in graph.values[own_end:results_end]]
        operators = [self._operator(o, before, 0, 0) for o in graph.operators[: self._end]]
        for copy in range(1, missing + 1):

            def to(value: int, copy: int = copy) -> int:
                return in_copy(value, copy)

            for v in graph.values[results_end - self.result_count : results_end]:
                values.append(_counted(self._value(v, to, copy * self.period), copy, steps))
            for o in graph.operators[self._third : self._end]:
                operators.append(self._operator(o, to, last, last + copy))
        for v in graph.values[results_end:]:
            values.append(_counted(self._value(v, after, missing * self.period), missing, steps))
        operators += [self._operator(o, after, 0, 0) for o in graph.operators[self._end :]]
        return replace(
            graph,
            values=tuple(values),
            operators=tuple(operators),
            inputs=tuple(map(before, graph.inputs)),
            outputs=tuple(map(after, graph.outputs)),
        )

    def _operator(self, operator: Operator, to: Any, layer: int, other: int) -> Operator:
        scope = operator.scope
        if layer != other:
            scope = tuple(self._renamed(part, layer, other) for part in scope)
        return replace(
            operator, inputs=tuple(map(to, operator.inputs)), outputs=tuple(map(to, operator.outputs)), scope=scope
        )

    def _value(self, value: Value, to: Any, operators: int) -> Value:
        """The value with what it refers to mapped, and its producer so many operators further."""
        producer = None if value.producer is None else value.producer + operators
        return replace(value, producer=producer, alias_of=None if value.alias_of is None else to(value.alias_of))

    def _renamed(self, name: str, layer: int, other: int) -> str:
        old = f"{self.path}.{layer}"
        if name == old or name.startswith((f"{old}.", f"{old}@")):
            return f"{self.path}.{other}{name[len(old) :]}"
        return name


def _first_in(graph: ModelGraph, layer: str) -> int | None:
    return next((i for i, o in enumerate(graph.operators) if layer in o.scope), None)


def _owned(graph: ModelGraph, prefix: str) -> list[int]:
    return [i for i, v in enumerate(graph.values) if v.kind.is_state and v.name.startswith(prefix)]


def _numbered(name: str) -> tuple[str, int]:
    """torch.fx's names: `add` is the first, `add_1` the second."""
    match = _NUMBERED.fullmatch(name)
    assert match is not None
    return match[1], int(match[2] or 0)


def _counted(value: Value, layers: int, steps: Mapping[str, int]) -> Value:
    base, number = _numbered(value.name)
    number += layers * steps.get(base, 0)
    return replace(value, name=f"{base}_{number}" if number else base)
