"""When each tensor of a graph is allocated and freed, by the rules of the runtime.

`graph`: the generated code of an exported program sets a name to None after its last use, so a tensor dies there.

`eager`: Python holds longer, for two reasons that can be read from module scopes and source lines.
1. `nn.Module.__call__` holds its arguments until it returns.
2. A local variable holds its value until the name is bound again or its function returns.

Tensors that share a storage (views, in-place operators) live and die together. The graph's inputs are the caller's
and outlive the pass; its outputs live until the pass is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dippm.case import Runtime
from dippm.graph import ModelGraph, ValueKind
from dippm.replay.statements import Frame, frames

_RETURNS_ITS_INPUT = frozenset({"dropout", "identity"})
"""Kinds that in evaluation return the very tensor that they were given, whatever the exported graph says."""


@dataclass(frozen=True)
class Lifetimes:
    """Storages by the operator that allocates them and the operator after which they are freed.

    A storage goes by the id of the value that owns it. Weights, constants and graph inputs are in neither list:
    they are there before the pass and after it.
    """

    allocated: tuple[tuple[int, ...], ...]
    """Per operator: storages that it allocates for its outputs, in output order."""
    freed: tuple[tuple[int, ...], ...]
    """Per operator: storages freed once it is done, before the next one starts."""
    kept: tuple[int, ...]
    """Storages of the graph's outputs: freed when the pass is over and its result released."""


def storages(graph: ModelGraph) -> tuple[int, ...]:
    """Per value the id of the value that owns its storage, dropout in evaluation seen as the alias that it is."""
    owner: list[int] = []
    for index, value in enumerate(graph.values):
        source = value.alias_of
        if source is None and value.producer is not None:
            operator = graph.operators[value.producer]
            if operator.kind in _RETURNS_ITS_INPUT and operator.inputs:
                source = operator.inputs[0]
        owner.append(index if source is None else source)
    for index in range(len(owner)):
        root = index
        while owner[root] != root:
            root = owner[root]
        owner[index] = root
    return tuple(owner)


def lifetimes(graph: ModelGraph, runtime: Runtime) -> Lifetimes:
    """Lifetimes of the storages of one forward pass of `graph`.

    `torchscript` and `onnxruntime` free at the last use, as `graph` does (for ONNX Runtime a proxy: its planner also
    reuses an input's buffer for the output of the same operator, and may share buffers between tensors).
    """
    owner = storages(graph)
    born: dict[int, int] = {}
    until: dict[int, int] = {}
    for index, operator in enumerate(graph.operators):
        for value in operator.outputs:
            storage = owner[value]
            if graph.values[storage].kind is ValueKind.RESULT:
                born.setdefault(storage, index)
                until[storage] = index
        for value in operator.inputs:
            if owner[value] in born:
                until[owner[value]] = index
    if runtime is Runtime.EAGER:
        for storage, end in _held_by_python(graph, owner, born).items():
            until[storage] = max(until[storage], end)
    kept = tuple(dict.fromkeys(owner[value] for value in graph.outputs if owner[value] in born))
    allocated: list[list[int]] = [[] for _ in graph.operators]
    freed: list[list[int]] = [[] for _ in graph.operators]
    for storage, index in born.items():
        allocated[index].append(storage)
    for storage in born.keys() - set(kept):
        freed[until[storage]].append(storage)
    return Lifetimes(tuple(map(tuple, allocated)), tuple(tuple(sorted(ids)) for ids in freed), kept)


@dataclass(slots=True)
class _Activation:
    """One call of a module: a run of operators, and the line of its `forward` that each was reached from."""

    start: int
    lines: list[Frame | None] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.lines) - 1


def _held_by_python(graph: ModelGraph, owner: tuple[int, ...], born: Mapping[int, int]) -> dict[int, int]:
    """Per storage the last operator during which arguments or local names of eager Python hold it."""
    held: dict[int, int] = {}
    for call in _activations(graph):
        reads, results = [], []
        for index in range(call.start, call.end + 1):
            operator = graph.operators[index]
            reads.append([s for v in operator.inputs if (s := owner[v]) in born])
            results.append([s for v in operator.outputs if (s := owner[v]) in born])
        for storage in {s for ids in reads for s in ids if born[s] < call.start}:
            held[storage] = max(held.get(storage, -1), call.end)
        for storage, end in _held_by_names(call, reads, results, born).items():
            held[storage] = max(held.get(storage, -1), end)
    return held


def _activations(graph: ModelGraph) -> list[_Activation]:
    """Every module call, from the scopes of consecutive operators; frames go to scopes one to one, outermost first."""
    calls: list[_Activation] = []
    opened: list[tuple[str, _Activation]] = []
    for index, operator in enumerate(graph.operators):
        scope = operator.scope
        depth = 0
        while depth < len(opened) and depth < len(scope) and opened[depth][0] == scope[depth]:
            depth += 1
        del opened[depth:]
        for path in scope[depth:]:
            call = _Activation(index)
            calls.append(call)
            opened.append((path, call))
        lines: tuple[Frame | None, ...] = frames(operator.source)
        if len(lines) != len(scope):
            lines = (None,) * (len(scope) - 1) + lines[-1:]
        for (_, call), line in zip(opened, lines, strict=False):
            call.lines.append(line)
        for _, call in opened[len(lines) :]:
            call.lines.append(None)
    return calls


def _held_by_names(
    call: _Activation, reads: list[list[int]], results: list[list[int]], born: Mapping[int, int]
) -> dict[int, int]:
    """Storages that local names of one activation hold, each with the last operator during which they do.

    Steps, for each run of operators reached from one line:
    1. Storages that come from before the line and that no known name holds are held by the names read that hold
       none of what was read: an assignment without an operator (`shortcut = x`) or a list (`outs.append(x)`) bound
       them. What a line without a target put out is a temporary of a longer statement and is bound by nothing.
    2. When the line is done its targets are bound to what its last operator put out; what they held is let go.
    3. When the activation ends all names go.
    """
    held: dict[int, int] = {}
    names: dict[str, frozenset[int]] = {}
    temporaries: set[int] = set()

    def release(name: str, end: int) -> None:
        for storage in names.pop(name, ()):
            held[storage] = max(held.get(storage, -1), end)

    first = 0
    while first < len(call.lines):
        line = call.lines[first]
        last = first
        while line is not None and last + 1 < len(call.lines) and _same(call.lines[last + 1], line):
            last += 1
        begin, end = call.start + first, call.start + last
        if line is not None:
            used = {s for ids in reads[first : last + 1] for s in ids if born[s] < begin}
            known = {s for ids in names.values() for s in ids}
            unknown = frozenset(used - known - temporaries)
            if unknown:
                for name in line.statement.reads:
                    if not names.get(name, frozenset()) & used:
                        names[name] = unknown
            if line.statement.targets:
                for name, value in _bind(line.statement.targets, results[last]).items():
                    release(name, end)
                    names[name] = value
                temporaries.clear()
            elif grows := line.statement.grows:
                names[grows] = names.get(grows, frozenset()) | frozenset(results[last])
            else:
                temporaries.update(results[last])
        first = last + 1
    for name in list(names):
        release(name, call.end)
    return held


def _same(line: Frame | None, other: Frame) -> bool:
    return line is not None and line.place == other.place


def _bind(targets: tuple[str, ...], values: list[int]) -> dict[str, frozenset[int]]:
    if len(targets) == len(values):
        return {name: frozenset({value}) for name, value in zip(targets, values, strict=True)}
    return dict.fromkeys(targets, frozenset(values))
