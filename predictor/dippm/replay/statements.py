"""What one line of Python does to local names, read from the text of the line alone.

A stack trace keeps the line of each frame, not the function around it, and of a statement over several lines only
the one that made the call. So a line may be no valid Python; then names are taken by pattern.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeGuard

_FRAME = re.compile(r"^(?P<file>[^\n]*?):(?P<line>\d+): ?(?P<code>.*)$")
_ASSIGNMENT = re.compile(r"^(?P<targets>[A-Za-z_][\w\s,]*?)(?::[^=]+)?(?:\s|[-+*/@|&])=\s(?P<value>.*)$")
_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?!\w|\s*\(|\s*=[^=])")
_METHOD = re.compile(r"\bself\.(\w+)\(")
_CALL = re.compile(r"(?<!self\.)(?<!\w)\w+\(|[^*]\*[^*]| [-+/@] ")
_NO_TENSORS = frozenset({"self", "cls", "torch", "F", "nn", "math", "np", "True", "False", "None", "checkpoint"})
_KEYWORDS = frozenset(
    {"return", "if", "else", "for", "in", "not", "and", "or", "is", "lambda", "yield", "assert", "with"}
)


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of a function body, as far as it can be told."""

    targets: tuple[str, ...]
    """Names that it binds, in order; empty if it binds none or is a part of a longer statement."""
    reads: frozenset[str]
    """Names that it reads and that may hold tensors (callees, modules and lists that it pops from left out)."""
    grows: str = ""
    """Name of the list that it appends to (`outs.append(self.pool(x))`)."""
    pops: frozenset[str] = frozenset()
    """Names of the lists that it pops from."""
    unpacks: bool = False
    """Whether it binds several names to as many values written out (`q, k = x[0], x[1]`)."""
    methods: frozenset[str] = frozenset()
    """Attributes of self that it calls: child modules, and methods."""
    callees: int = 0
    """Calls of something that is no attribute at all: functions, and modules under a loop's name."""
    operations: int = 0
    """Operators that the line itself accounts for: arithmetic and calls that are not on self."""
    returns: bool = False

    @property
    def begins(self) -> bool:
        """Whether a statement begins with the line: it is no part of the one before it."""
        return bool(self.targets) or self.returns

    @property
    def opens(self) -> bool:
        """Whether it shows neither names nor calls: those of `outputs = [` stand on the lines below."""
        return not (self.reads or self.methods or self.callees)


@dataclass(frozen=True, slots=True)
class Frame:
    """A line of a stack trace: where it stands and what it does."""

    place: str
    """`file:line`."""
    statement: Statement

    @property
    def line(self) -> int:
        """Number of the line in its file; 0 if it is not known."""
        number = self.place.rpartition(":")[2]
        return int(number) if number.isdigit() else 0


def frames(source: str, depth: int) -> tuple[Frame | None, ...]:
    """One frame for each of `depth` module scopes, outermost first (`Operator.source` has them innermost first).

    Frames of torch.nn are left out of a source where no other follows them. Of the innermost scope the line is then
    unknown, and None; between it and the last one known there are `nn.Sequential`s.
    """
    known: tuple[Frame | None, ...] = tuple(map(_frame, reversed(source.split("\n")))) if source else ()
    if not known or len(known) >= depth:
        return known[:depth] + (None,) * (depth - len(known))
    return known + (_SEQUENTIAL,) * (depth - len(known) - 1) + (None,)


@lru_cache(maxsize=8192)
def _frame(line: str) -> Frame:
    match = _FRAME.match(line)
    if line.endswith(": input = module(input)"):
        return _SEQUENTIAL
    if match is None:
        return Frame("", parse(line.strip()))
    return Frame(f"{match['file']}:{match['line']}", parse(match["code"].strip()))


@lru_cache(maxsize=8192)
def parse(code: str) -> Statement:
    """What `code`, one line, binds and reads."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return _by_pattern(code)
    if len(tree.body) != 1:
        return _by_pattern(code)
    statement = tree.body[0]
    targets: list[str] = []
    match statement:
        case ast.Assign():
            for target in statement.targets:
                targets += _bound(target)
        case ast.AnnAssign() | ast.AugAssign():
            targets += _bound(statement.target)
        case _:
            pass
    reads = set(_loaded(statement))
    grows = ""
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr="append" | "extend" | "insert"))):
            grows = name
            reads.discard(name)
        case _:
            pass
    if isinstance(statement, ast.AugAssign):
        reads.update(targets)
    methods, operations, callees = _calls(statement)
    return Statement(
        targets=tuple(targets),
        reads=frozenset(reads - _NO_TENSORS),
        grows=grows,
        pops=frozenset(n.value.id for n in ast.walk(statement) if _is_pop(n) and isinstance(n.value, ast.Name)),
        unpacks=isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Tuple),
        methods=methods,
        callees=callees,
        operations=operations,
        returns=isinstance(statement, ast.Return),
    )


def _bound(target: ast.expr) -> Iterator[str]:
    match target:
        case ast.Name():
            yield target.id
        case ast.Tuple() | ast.List():
            for item in target.elts:
                yield from _bound(item)
        case ast.Starred():
            yield from _bound(target.value)
        case _:
            return


def _loaded(node: ast.AST) -> Iterator[str]:
    """Names read by an expression, without the names of functions called directly."""
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load):
            yield node.id
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(node, ast.Call) and child is node.func and (isinstance(child, ast.Name) or _is_pop(child)):
            continue
        yield from _loaded(child)


def _is_pop(callee: ast.AST) -> TypeGuard[ast.Attribute]:
    """`skips.pop`: what it gives is no longer held by the list."""
    return isinstance(callee, ast.Attribute) and callee.attr == "pop"


def _calls(statement: ast.stmt) -> tuple[frozenset[str], int, int]:
    methods: set[str] = set()
    operations = callees = 0
    for node in ast.walk(statement):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                methods.add(name)
            case ast.Call(func=ast.Attribute() | ast.Name()) | ast.BinOp() | ast.AugAssign():
                operations += 1
                callees += isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            case ast.Call(func=ast.Subscript()):
                callees += 1
            case _:
                pass
    return frozenset(methods), operations, callees


def _by_pattern(code: str) -> Statement:
    match = _ASSIGNMENT.match(code)
    targets: tuple[str, ...] = ()
    value = code
    if match is not None:
        names = [name.strip() for name in match["targets"].split(",")]
        if all(name.isidentifier() for name in names if name):
            targets = tuple(name for name in names if name)
            value = match["value"]
    reads = frozenset(_NAME.findall(value)) - _NO_TENSORS - _KEYWORDS
    methods = frozenset(_METHOD.findall(code))
    # Of a call that stands on another line nothing is seen; a list that is only opened makes none itself.
    callees = int(bool(reads or methods) or not code.endswith("["))
    return Statement(targets, reads, methods=methods, callees=callees, operations=len(_CALL.findall(code)))


_SEQUENTIAL = Frame("nn.Sequential", parse("input = module(input)"))
