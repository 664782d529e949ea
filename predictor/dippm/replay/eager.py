"""What eager Python holds beyond the last use of a tensor, read from module scopes and source lines.

1. `nn.Module.__call__` holds its arguments until it returns.
2. A local variable holds its value until the name is bound again or its function returns.

An exported program has, for each operator, the modules that were being called and the line of the `forward` of each
(`Operator.scope`, `Operator.source`). Of functions that a `forward` calls neither frames nor lines are recorded.

TorchScript and the files of the exporter that is based on it have scopes and no lines: there names hold nothing but
what `dippm.replay.without_lines` knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dippm.graph import ModelGraph
from dippm.replay.statements import Frame, Statement, frames
from dippm.replay.without_lines import held_without_lines


@dataclass(slots=True)
class _Activation:
    """One call of a module: a run of operators, and the line of its `forward` that each was reached from."""

    depth: int
    start: int
    lines: list[Frame | None] = field(default_factory=list)
    children: list[_Activation] = field(default_factory=list)
    """Calls made from this one, in order."""
    handed_on: set[int] = field(default_factory=set)
    """Storages that it appended to a list of its caller's."""

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
            if opened:
                opened[-1][1].children.append(call)
            opened.append((path, call))
        for (_, call), line in zip(opened, frames(operator.source, len(scope)), strict=True):
            call.lines.append(line)
    return calls


def held_by_python(
    graph: ModelGraph, owner: tuple[int, ...], born: Mapping[int, int], used: Mapping[int, int]
) -> dict[int, int]:
    """Per storage the last operator during which arguments or local names hold it.

    `owner` gives per value its storage, `born` per storage the operator that allocates it, `used` the last that
    reads it.
    """
    holds = _Holds(graph, owner, born, used)
    for call in reversed(_activations(graph)):  # callees before their callers
        holds.arguments(call)
        holds.locals(call)
    for storages, end in held_without_lines(graph, holds.reads, holds.results):
        holds.hold(storages, end)
    return holds.until


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
           bound them. What a line without a target put out is part of a longer statement: nothing binds it, until a
           statement begins further down: the longer one is over then, and a target that no line showed holds it
           (`q, k, v = (`, and a chain of calls on the lines below). Where one line is run again and again and each
           time reads something else that no line bound and that was there before the first time, it is a loop's: what
           it goes through is a list, and keeps it. (What came since is carried through the loop, as in `x = block(x)`,
           and let go.) A line that shows neither names nor calls (`outputs = [`) keeps what it reads.
        2. When the line is done its targets are bound to what its last operator put out and to whatever else of it
           is still to be read; what they held is let go.
        3. When the call returns all names go. A list that it appended to and never made is its caller's: what is in
           it is held by the names that the caller read beside the one that it bound (`x = self.block(x, outs)`).
        """
        names: dict[str, frozenset[int]] = {}
        lists: set[str] = set()
        bound: set[str] = set()
        temporaries: set[int] = set()
        in_turn: dict[str, tuple[int, set[int]]] = {}
        """Where each line was first run, and what it read that no name held and that was there by then."""
        above = 0
        for begin, end, frame in self.statements(call):
            statement = frame.statement
            if statement.begins and 0 < above < frame.line:
                temporaries.clear()
            above = frame.line
            read = self.read_from_before(begin, end)
            popped: set[int] = set()
            for name in statement.pops & names.keys():
                popped |= names[name] & read
                names[name] -= read
            if len(popped) > 1:  # the youngest was taken before: `x = skips.pop()`
                popped.remove(max(popped, key=self.born.__getitem__))
            unknown = read.difference(temporaries, popped, *names.values())
            if unknown and not statement.pops:
                first, before = in_turn.setdefault(frame.place, (begin, set()))
                listed = {s for s in unknown if self.born[s] < first}
                if listed and ((before and not before & listed) or statement.opens):
                    self.hold(before | listed, call.end)
                before |= listed
            if len(read) > 1 and len(statement.reads) == 1 and not statement.pops:
                names |= dict.fromkeys(statement.reads, frozenset(read))
            elif unknown:
                for name in statement.reads:
                    if name in lists:
                        names[name] |= unknown
                    elif not names.get(name, frozenset()) & read:
                        names[name] = frozenset(unknown)
            self.helper(call, begin, end, statement)
            handed = {s for child in call.children if begin <= child.start <= end for s in child.handed_on}
            if handed and len(statement.reads) > 1:
                for name in statement.reads.difference(statement.targets):
                    names[name] = names.get(name, frozenset()) | handed
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
                bound.update(statement.targets)
                lists.difference_update(statement.targets)
                temporaries.clear()
            elif statement.grows:
                names[statement.grows] = names.get(statement.grows, frozenset()) | put_out
                lists.add(statement.grows)
                if statement.grows not in bound:
                    call.handed_on |= put_out
            else:
                temporaries |= put_out
        for value in names.values():
            self.hold(value, call.end)

    def helper(self, call: _Activation, begin: int, end: int, statement: Statement) -> None:
        """Locals of a method that a `forward` calls: its frames are not recorded, so its lines are unknown.

        More operators than the line itself accounts for ran under a method that is no child module. What its
        operators read and put out is taken to be named there, and so to live until the last of them; but where the
        last reader of a tensor puts out one of the same shape, the name is taken to be bound again (`x = pad(x)`),
        unless it reads several that child modules put out (`out = left + right`): they have names of their own.
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
        own = frozenset(direct)
        inside = len(direct) - statement.operations
        last = direct[inside] - 1 if inside < len(direct) else end
        for index in direct[:inside]:
            for storage in self.reads[index] + self.results[index]:
                reader = self.used[storage]
                if (
                    self.born[storage] < direct[0]
                    or reader not in own
                    or not self.same_shape(storage, reader)
                    or self.reads_of_children(reader, begin, own) > 1
                ):
                    self.hold((storage,), last)

    def reads_of_children(self, reader: int, begin: int, own: frozenset[int]) -> int:
        """How many storages an operator reads that were put out since `begin`, and by none of its `own` operators."""
        return sum(self.born[s] >= begin and self.born[s] not in own for s in set(self.reads[reader]))

    def same_shape(self, storage: int, reader: int) -> bool:
        """Whether the operator `reader` puts out a new tensor of the shape of `storage`."""
        values = self.graph.values
        return any(
            self.born[s] == reader and values[s].spec.shape == values[storage].spec.shape for s in self.results[reader]
        )

    def statements(self, call: _Activation) -> Iterator[tuple[int, int, Frame]]:
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
                    yield begin, end, line
                    begin = end + 1
            first = last + 1

    def iterations(self, call: _Activation, begin: int, end: int, statement: Statement) -> Iterator[int]:
        """Last operator of each turn of a loop whose body is this one line; just `end` where it is no loop.

        What ran is seen as a row of steps: operators, child modules that the line names, and child modules that it
        does not name (a loop variable's). A turn is the longest stretch that the row repeats in which no child is
        called more often than the line calls it. Of a line that hands modules to a method of its own (`x =
        self._block(pair, torch.cat([x, skips.pop()], 1))`) nothing tells how many that calls: there it is the shortest
        stretch with an operator of the line itself.
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
        for length in range(1, len(steps) // 2 + 1):
            turn = kinds[:length]
            own = sum(kind != "*" and not kind.startswith("self.") for kind in turn)
            if 0 < own <= statement.operations and statement.methods and kinds == turn * (len(steps) // length):
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
