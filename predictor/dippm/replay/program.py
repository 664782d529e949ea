"""One forward pass as the allocator sees it: allocations and frees in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dippm.graph import ModelGraph, Operator, ValueKind
from dippm.replay.allocator import MIB, Block, CachingAllocator, round_size
from dippm.replay.lifetimes import Lifetimes

CUBLAS_KINDS = frozenset({"linear", "matmul", "batch_matmul", "einsum"})
"""Kinds that call cuBLAS, which then keeps a workspace for good."""

COPY_FIRST_KINDS = frozenset(
    {"linear", "matmul", "batch_matmul", "einsum", "layer_norm", "softmax", "log_softmax", "roll", "embedding", "lstm",
     "gru", "rnn"}
)  # fmt: skip
"""Kinds whose workspace is mostly a contiguous copy of an operand, made before the output is allocated. (Of the
others the output comes first: seen in the order of events of the measured calls.)"""
_SLACK = 0.05
"""By how much a measured workspace may exceed the tensors that it is made of: blocks are not always split."""

Step = tuple[int, int]
"""(slot, bytes): bytes above 0 allocate into the slot, 0 frees what is in it. Slots from 0 on are storages, then what
operators leave for backward; those below 0 live inside one operator."""


@dataclass(frozen=True)
class Program:
    """A graph's allocations: what is loaded before the pass, and the pass itself. Bytes as asked for, unrounded."""

    weights: tuple[int, ...]
    """Parameters, buffers and constants, in order."""
    inputs: tuple[int, ...]
    """The graph's inputs."""
    steps: tuple[Step, ...]
    """One pass, the release of its outputs included."""
    cublas: tuple[int, ...]
    """What the first matrix product allocates for good; empty where there is none."""
    cublas_at: int
    """Index in `steps` before which it does."""


@dataclass(frozen=True, slots=True)
class Level:
    """Bytes of activations (rounded to 512, weights and inputs left out) around one operator."""

    before: int
    inside: int
    """Highest level while the operator runs, its workspace included."""
    after: int
    """Once what dies with the operator is freed."""


def program(
    graph: ModelGraph,
    lives: Lifetimes,
    workspaces: Sequence[int],
    *,
    events: Sequence[Sequence[int] | None] | None = None,
    cublas_bytes: int = 0,
) -> Program:
    """The allocations of one pass.

    `workspaces` gives for each operator the bytes that it needs beside its outputs while it runs: allocated after the
    outputs, before them for `COPY_FIRST_KINDS`, and freed at its end. `events`, where it is known for an operator, is
    what it really does: allocations (positive) and frees (negative) in order, bytes as asked for; it outranks the
    workspace.
    """
    size = [value.spec.nbytes for value in graph.values]
    steps: list[Step] = []
    cublas_at = -1
    first_extra = len(size)
    for index, operator in enumerate(graph.operators):
        begin = len(steps)
        outputs = [storage for storage in lives.allocated[index] if size[storage]]
        known = events[index] if events is not None else None
        if known is not None:
            steps += _as_recorded(outputs, size, known, oldest_first=operator.kind in COPY_FIRST_KINDS)
        else:
            made = [(storage, size[storage]) for storage in outputs]
            before, after = _pieces(graph, operator, workspaces[index])
            taken = [(-slot, piece) for slot, piece in enumerate((*before, *after), 1)]
            steps += [*taken[: len(before)], *made, *taken[len(before) :]]
            steps += [(slot, 0) for slot, _ in taken]
        if cublas_at < 0 and operator.kind in CUBLAS_KINDS:
            cublas_at = begin + max((at for at, (_, size) in enumerate(steps[begin:], 1) if size), default=0)
        if lives.extras[index]:
            steps.append((first_extra + index, lives.extras[index]))
        steps += [(storage, 0) for storage in lives.freed[index] if size[storage]]
    steps += [(storage, 0) for storage in lives.kept if size[storage]]
    steps += [(first_extra + index, 0) for index, extra in enumerate(lives.extras) if extra]
    return Program(
        weights=tuple(
            size[i]
            for i, value in enumerate(graph.values)
            if (value.kind.is_state or value.kind is ValueKind.CONSTANT) and value.alias_of is None and size[i]
        ),
        inputs=tuple(size[i] for i in graph.inputs if size[i]),
        steps=tuple(steps),
        cublas=_cublas(cublas_bytes) if cublas_at >= 0 else (),
        cublas_at=cublas_at,
    )


def _pieces(graph: ModelGraph, operator: Operator, workspace: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The allocations that a workspace is made of, before and after that of the outputs."""
    if workspace <= 0:
        return (), ()
    if operator.kind not in COPY_FIRST_KINDS:
        return (), (workspace,)
    operands = [graph.values[i].spec.nbytes for i in operator.inputs[:2]]
    if operator.kind == "layer_norm":  # mean and deviation come after, a copy of the input before
        return ((operands[0],), (workspace - operands[0],)) if workspace > operands[0] else ((), (workspace,))
    if abs(workspace - sum(operands)) <= _SLACK * workspace:
        return tuple(operands), ()
    return (workspace,), ()


def _cublas(size: int) -> tuple[int, ...]:
    """cuBLAS's workspace and cuBLASLt's are two allocations, the latter of 1 MiB."""
    return (size - MIB, MIB) if size > MIB else (size,) if size else ()


def _as_recorded(outputs: list[int], size: list[int], events: Sequence[int], *, oldest_first: bool) -> list[Step]:
    """Recorded events with slots given: what is left at the end are the outputs, matched by size.

    Of equal blocks the latest is taken to be freed, or the oldest where copies are made before the output.
    """
    steps: list[Step] = []
    live: list[tuple[int, int]] = []
    slot = 0
    for event in events:
        if event > 0:
            slot -= 1
            live.append((slot, event))
            steps.append((slot, event))
            continue
        equal = [item for item in live if item[1] == -event]
        if equal:
            found = equal[0 if oldest_first else -1]
            live.remove(found)
            steps.append((found[0], 0))
    renamed: dict[int, int] = {}
    for storage in outputs:
        output = next((item for item in reversed(live) if round_size(item[1]) == round_size(size[storage])), None)
        if output is None:
            steps.append((storage, size[storage]))
        else:
            live.remove(output)
            renamed[output[0]] = storage
    steps = [(renamed.get(name, name), amount) for name, amount in steps]
    return steps + [(name, 0) for name, _ in live]


def levels(graph: ModelGraph, lives: Lifetimes, workspaces: Sequence[int]) -> tuple[Level, ...]:
    """Bytes around each operator, for documents and debugging; no allocator, only its rounding."""
    size = [round_size(value.spec.nbytes) if value.spec.nbytes else 0 for value in graph.values]
    timeline: list[Level] = []
    now = 0
    for index in range(len(graph.operators)):
        before = now
        now += sum(size[storage] for storage in lives.allocated[index])
        now += round_size(lives.extras[index]) if lives.extras[index] else 0
        inside = now + (round_size(workspaces[index]) if workspaces[index] > 0 else 0)
        now -= sum(size[storage] for storage in lives.freed[index])
        timeline.append(Level(before, inside, now))
    return tuple(timeline)


class Session:
    """A process that loads a model and runs passes: a program on an allocator.

    Raises `dippm.replay.allocator.CapReached` from `load` or `run` where the allocator's cap is too small.
    """

    def __init__(self, program: Program, allocator: CachingAllocator) -> None:
        self.program = program
        self.allocator = allocator
        self._held: list[Block] = []
        """Weights, inputs and cuBLAS's workspace: never freed."""
        self._live: dict[int, Block] = {}
        """Blocks of the pass in progress, by slot."""
        self._has_cublas = not program.cublas

    def load(self) -> tuple[int, int]:
        """Puts weights, then inputs on the device: allocated bytes of each."""
        malloc = self.allocator.malloc
        start = self.allocator.allocated
        self._held += [malloc(size) for size in self.program.weights]
        weights = self.allocator.allocated - start
        self._held += [malloc(size) for size in self.program.inputs]
        return weights, self.allocator.allocated - start - weights

    def run(self) -> None:
        """One forward pass, its outputs released at the end."""
        steps = self.program.steps
        if not self._has_cublas:
            self._walk(steps[: self.program.cublas_at])
            self._held += [self.allocator.malloc(size) for size in self.program.cublas]
            self._has_cublas = True
            steps = steps[self.program.cublas_at :]
        self._walk(steps)

    def _walk(self, steps: Sequence[Step]) -> None:
        malloc, free, live = self.allocator.malloc, self.allocator.free, self._live
        for slot, size in steps:
            if size:
                live[slot] = malloc(size)
            else:
                free(live.pop(slot))
