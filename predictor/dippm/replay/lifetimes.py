"""When each tensor of a graph is allocated and freed, by the rules of the runtime.

`graph`: the generated code of an exported program sets a name to None after its last use, so a tensor dies there.

`eager`: Python holds longer, for two reasons that can be read from module scopes and source lines.
1. `nn.Module.__call__` holds its arguments until it returns.
2. A local variable holds its value until the name is bound again or its function returns.

Tensors that share a storage (views, in-place operators) live and die together. The graph's inputs are the caller's
and outlive the pass; its outputs live until the pass is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dippm.case import Mode, Runtime
from dippm.graph import ModelGraph, ValueKind
from dippm.replay.saved import kept_extras, saved_for_backward
from dippm.replay.statements import Frame, Statement, frames

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
    """Storages of the graph's outputs, and of what is saved for backward: freed when the result is released."""
    extras: tuple[int, ...]
    """Per operator: bytes beside its outputs that it leaves behind for the backward pass, freed as late."""


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


def lifetimes(graph: ModelGraph, runtime: Runtime, mode: Mode = Mode.INFERENCE) -> Lifetimes:
    """Lifetimes of the storages of one forward pass of `graph`.

    `auto` is taken as `eager`. With `mode` autograd, what the backward pass would need is kept until the pass is over
    (`dippm.replay.saved`).

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
    if runtime in (Runtime.EAGER, Runtime.AUTO):
        holds = _Holds(graph, owner, born, dict(until))
        for call in _activations(graph):
            holds.arguments(call)
            holds.locals(call)
        for storage, end in holds.until.items():
            until[storage] = max(until[storage], end)
    at_the_end = [owner[value] for value in graph.outputs]
    extras = (0,) * len(graph.operators)
    if mode is Mode.AUTOGRAD:
        at_the_end += [owner[value] for value in saved_for_backward(graph)]
        extras = kept_extras(graph)
    kept = tuple(storage for storage in dict.fromkeys(at_the_end) if storage in born)
    allocated: list[list[int]] = [[] for _ in graph.operators]
    freed: list[list[int]] = [[] for _ in graph.operators]
    for storage, index in born.items():
        allocated[index].append(storage)
    for storage in born.keys() - set(kept):
        freed[until[storage]].append(storage)
    return Lifetimes(tuple(map(tuple, allocated)), tuple(tuple(sorted(ids)) for ids in freed), kept, extras)


@dataclass(slots=True)
class _Activation:
    """One call of a module: a run of operators, and the line of its `forward` that each was reached from."""

    depth: int
    start: int
    lines: list[Frame | None] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.lines) - 1


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
            call = _Activation(len(opened), index)
            calls.append(call)
            opened.append((path, call))
        for (_, call), line in zip(opened, frames(operator.source, len(scope)), strict=True):
            call.lines.append(line)
    return calls


class _Holds:
    """What eager Python holds, found call by call."""

    def __init__(self, graph: ModelGraph, owner: tuple[int, ...], born: Mapping[int, int], used: Mapping[int, int]):
        self.graph = graph
        self.born = born
        """Per storage the operator that allocates it."""
        self.used = used
        """Per storage the last operator that reads it."""
        self.until: dict[int, int] = {}
        """Per storage the last operator during which Python holds it."""
        self.reads = [tuple(s for v in o.inputs if (s := owner[v]) in born) for o in graph.operators]
        self.results = [tuple(s for v in o.outputs if (s := owner[v]) in born) for o in graph.operators]

    def hold(self, storages: Iterable[int], end: int) -> None:
        for storage in storages:
            if self.until.get(storage, -1) < end:
                self.until[storage] = end

    def read_from_before(self, begin: int, end: int) -> set[int]:
        """Storages that the operators `begin` to `end` read and that were there before."""
        return {s for index in range(begin, end + 1) for s in self.reads[index] if self.born[s] < begin}

    def arguments(self, call: _Activation) -> None:
        """Rule 1: what a module is given from outside lives until it returns."""
        self.hold(self.read_from_before(call.start, call.end), call.end)

    def locals(self, call: _Activation) -> None:
        """Rule 2, line by line:

        1. Storages that come from before the line and that no known name holds are held by the names read that hold
           none of what was read: an assignment without an operator (`shortcut = x`) or a list (`outs.append(x)`)
           bound them. What a line without a target put out is part of a longer statement: nothing binds it.
        2. When the line is done its targets are bound to what its last operator put out and to whatever else of it
           is still to be read; what they held is let go.
        3. When the call returns all names go.
        """
        names: dict[str, frozenset[int]] = {}
        lists: set[str] = set()
        temporaries: set[int] = set()
        for begin, end, statement in self.statements(call):
            read = self.read_from_before(begin, end)
            for name in statement.pops & names.keys():
                names[name] -= read
            unknown = read.difference(temporaries, *names.values())
            if len(read) > 1 and len(statement.reads) == 1:
                names |= dict.fromkeys(statement.reads, frozenset(read))
            elif unknown:
                for name in statement.reads:
                    if name in lists:
                        names[name] |= unknown
                    elif not names.get(name, frozenset()) & read:
                        names[name] = frozenset(unknown)
            self.helper(call, begin, end, statement)
            put_out = frozenset(self.results[end]) | {
                s
                for index in range(begin, end)
                for s in self.results[index]
                if self.born[s] >= begin and self.used[s] > end
            }
            if statement.targets:
                for name, value in _bind(statement, put_out, self.results[end]).items():
                    self.hold(names.get(name, ()), end)
                    names[name] = value
                    lists.discard(name)
                temporaries.clear()
            elif statement.grows:
                names[statement.grows] = names.get(statement.grows, frozenset()) | put_out
                lists.add(statement.grows)
            else:
                temporaries |= put_out
        for value in names.values():
            self.hold(value, call.end)

    def helper(self, call: _Activation, begin: int, end: int, statement: Statement) -> None:
        """Locals of a method that a `forward` calls: its frames are not recorded, so its lines are unknown.

        More operators than the line itself accounts for ran under a method that is no child module. What its
        operators read and put out is taken to be named there, and so to live until the last of them; but where the
        last reader of a tensor puts out one of the same shape, the name is taken to be bound again (`x = pad(x)`).
        """
        if not call.depth or not statement.methods:
            return
        operators = self.graph.operators
        direct = [i for i in range(begin, end + 1) if len(operators[i].scope) == call.depth + 1]
        if len(direct) <= statement.operations:
            return
        children = {
            operators[i].scope[call.depth + 1].partition("@")[0].rpartition(".")[2]
            for i in range(begin, end + 1)
            if len(operators[i].scope) > call.depth + 1
        }
        if statement.methods <= children:
            return
        inside = len(direct) - statement.operations
        last = direct[inside] - 1 if inside < len(direct) else end
        for index in direct[:inside]:
            for storage in self.reads[index] + self.results[index]:
                reader = self.used[storage]
                if self.born[storage] < direct[0] or reader not in direct or not self.same_shape(storage, reader):
                    self.hold((storage,), last)

    def same_shape(self, storage: int, reader: int) -> bool:
        """Whether the operator `reader` puts out a new tensor of the shape of `storage`."""
        values = self.graph.values
        return any(
            self.born[s] == reader and values[s].spec.shape == values[storage].spec.shape for s in self.results[reader]
        )

    def statements(self, call: _Activation) -> Iterator[tuple[int, int, Statement]]:
        """Runs of operators reached from one execution of a line: first and last operator, and the line."""
        first = 0
        while first < len(call.lines):
            line = call.lines[first]
            last = first
            while line is not None and last + 1 < len(call.lines) and call.lines[last + 1] == line:
                last += 1
            if line is not None:
                begin = call.start + first
                for end in self.iterations(call, begin, call.start + last, line.statement):
                    yield begin, end, line.statement
                    begin = end + 1
            first = last + 1

    def iterations(self, call: _Activation, begin: int, end: int, statement: Statement) -> Iterator[int]:
        """Last operator of each turn of a loop whose body is this one line; just `end` where it is no loop.

        What ran is seen as a row of steps: operators, child modules that the line names, and child modules that it
        does not name (a loop variable's). A turn is the longest stretch that the row repeats in which no child is
        called more often than the line calls it.
        """
        steps: list[tuple[str, int]] = []
        before = ""
        for index in range(begin, end + 1):
            operator = self.graph.operators[index]
            if len(operator.scope) == call.depth + 1:
                steps.append((operator.target, index))
                before = ""
                continue
            child = operator.scope[call.depth + 1]
            name = child.partition("@")[0].rpartition(".")[2]
            if child == before:
                steps[-1] = (steps[-1][0], index)
            else:
                steps.append((f"self.{name}" if name in statement.methods else "*", index))
            before = child
        kinds = [kind for kind, _ in steps]
        for length in range(len(steps), 0, -1):
            turn = kinds[:length]
            called = [kind for kind in turn if kind.startswith("self.")]
            if (
                len(steps) % length == 0
                and len(called) == len(set(called))
                and turn.count("*") <= max(1, statement.callees)
                and kinds == turn * (len(steps) // length)
            ):
                yield from (index for _, index in steps[length - 1 :: length])
                return
        yield end


def _bind(statement: Statement, put_out: frozenset[int], last: tuple[int, ...]) -> dict[str, frozenset[int]]:
    """Which target holds what.

    One to one where the last operator put out as many; all of it each where several values are written out; else the
    first target takes it (`x, size = self.block(x, size)`).
    """
    targets = statement.targets
    if len(targets) == len(last):
        return {name: frozenset({value}) for name, value in zip(targets, last, strict=True)}
    if statement.unpacks:
        return dict.fromkeys(targets, put_out)
    if len(targets) == len(put_out):
        return {name: frozenset({value}) for name, value in zip(targets, sorted(put_out), strict=True)}
    return {name: put_out if index == 0 else frozenset() for index, name in enumerate(targets)}
