"""One session of ONNX Runtime replayed: its allocation plan over a model graph, on its arena.

What differs from PyTorch (`allocation_planner.cc`, `execution_frame.cc`, 1.31):
1. Operators are nodes of ONNX: a permutation, a slice, a split is a copy; a reshape shares its input's buffer. A batch
   norm behind a convolution is folded into it.
2. An elementwise node writes into its input if nobody else reads that any more; an output of the graph always has a
   buffer of its own.
3. Buffers are planned before anything runs: a tensor takes over a buffer of the same size whose tensor is dead, and a
   buffer that will be taken over is held in between. Where the file leaves its batch open, nothing is known of a shape
   that is computed (a reshape's) nor of what is made of such a tensor: these take nothing over.
4. The first pass allocates each buffer as it comes, and lays all of them out in one block; the second pass allocates
   that block at once, beside what the first one left in the arena, and so do all later ones.
5. Weights are chunks of the arena, taken one by one before the first pass; outputs stay with whoever bound them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dippm.graph import ModelGraph, ValueKind
from dippm.replay.allocator import CapReached
from dippm.replay.bfc_arena import BfcArena, Chunk, ExtendStrategy, rounded
from dippm.replay.memory_pattern import MemoryPattern
from dippm.replay.onnx_nodes import IN_PLACE, Exporter, Layout, Lowering, Node, exporter_of
from dippm.replay.search import search

PASSES = 3


@dataclass(slots=True)
class Buffer:
    """One planned buffer: from the operator that first writes it to the one after which nobody reads it."""

    size: int
    born: int
    dies: int
    output: bool = False


@dataclass(frozen=True)
class BufferPlan:
    """A graph's buffers in the order in which they are first written, and each operator's scratch."""

    buffers: tuple[Buffer, ...]
    scratch: tuple[int, ...]
    """Per operator: bytes of the arena while it runs (a convolution's workspace); no part of the block."""
    weights: tuple[int, ...]
    """Bytes of each weight: chunks of the arena like any other, taken one by one when the session is made."""
    inputs: int

    @cached_property
    def steps(self) -> tuple[tuple[tuple[int, ...], int, tuple[int, ...]], ...]:
        """Per operator: the buffers that it first writes, its scratch, and the buffers that nobody reads after it."""
        born: list[list[int]] = [[] for _ in self.scratch]
        dying: list[list[int]] = [[] for _ in self.scratch]
        for name, buffer in enumerate(self.buffers):
            born[buffer.born].append(name)
            if not buffer.output:
                dying[buffer.dies].append(name)
        return tuple(zip(map(tuple, born), self.scratch, map(tuple, dying), strict=True))


@dataclass(frozen=True, slots=True)
class OrtReplay:
    """Memory of one session, bytes."""

    weights_bytes: int
    inputs_bytes: int
    """They lie outside of the arena."""
    arena_bytes: int
    """What the arena takes from the device in three passes, weights included."""
    first_pass_bytes: int
    """The same after the first."""
    in_use_bytes: int
    """Peak in use, weights included."""
    min_limit_bytes: int
    """The smallest `gpu_mem_limit` under which three passes succeed."""


def execution_order(graph: ModelGraph) -> list[int]:
    """Operators in the order in which ONNX Runtime runs them: depth first from the outputs, of a node's inputs the one
    that stands last in the file first (`Graph::ReverseDFSFrom`)."""
    sources: list[list[int]] = [[] for _ in graph.operators]
    read: set[int] = set()
    for producer, consumer in graph.edges:
        sources[consumer].append(producer)
        read.add(producer)
    stack = [(index, False) for index in range(len(graph.operators)) if index not in read]
    seen: set[int] = set()
    order: list[int] = []
    while stack:
        index, done = stack.pop()
        if done:
            order.append(index)
        elif index not in seen:
            seen.add(index)
            stack.append((index, True))
            stack += [(source, False) for source in sorted(sources[index]) if source not in seen]
    return order


def buffer_plan(
    graph: ModelGraph,
    workspaces: Sequence[int],
    *,
    exporter: Exporter = Exporter.TORCHSCRIPT,
    in_place: frozenset[str] = IN_PLACE,
) -> BufferPlan:
    """ONNX Runtime's plan for `graph`, already cast to its precision; `workspaces` per operator, as for `replay`.

    `in_place` are the kinds whose kernels may write into their input, on a GPU if nothing is said.
    """
    lowering = Lowering(graph, workspaces, exporter, in_place)
    nodes = lowering.nodes(execution_order(graph))
    weights = tuple(
        value.spec.nbytes
        for i, value in enumerate(graph.values)
        if (value.kind.is_state or value.kind is ValueKind.CONSTANT)
        and value.alias_of is None
        and i not in lowering.gone
    )
    return BufferPlan(
        tuple(_Planner(nodes, graph.outputs).buffers), tuple(node.scratch for node in nodes), weights,
        sum(graph.values[i].spec.nbytes for i in graph.inputs),
    )  # fmt: skip


class _Planner:
    """Which buffer each tensor lies in (`FindReusableInput`, `FindReusableTensor`)."""

    def __init__(self, nodes: Sequence[Node], outputs: Sequence[int]) -> None:
        self.buffers: list[Buffer] = []
        self._outputs = frozenset(outputs)
        self._uses: Counter[int] = Counter(value for node in nodes for value in node.reads)
        self._uses.update(outputs)
        self._left: Counter[int] = Counter()
        """Reads that a buffer still has ahead, over all tensors that lie in it."""
        self._at: dict[int, int] = {}
        """The buffer of each tensor that has one."""
        self._layout: dict[int, Layout] = {}
        """Of each tensor."""
        self._made_for: list[Layout] = []
        """What each buffer was made for: only a tensor of the same shape takes it over, not one of the same size."""
        self._dead: list[int] = []
        """Buffers that nobody reads any more, the latest first."""
        self._unknown: set[int] = set()
        """Tensors of whose shape the file says nothing."""
        for index, node in enumerate(nodes):
            self._step(index, node)
        for output in self._outputs & self._at.keys():
            self.buffers[self._at[output]].output = True

    def _step(self, index: int, node: Node) -> None:
        if node.computed_shape or not self._unknown.isdisjoint(node.reads):
            self._unknown.update(tensor for tensor, _ in node.makes)
        for position, (tensor, found) in enumerate(node.makes):
            self._layout[tensor] = found
            if node.renames and tensor not in self._outputs:
                buffer = self._at.get(node.reads[0])
                if buffer is None:
                    continue  # a weight's or an input's, which is no buffer
            else:
                buffer = self._taken_over(tensor, node, first=not position)
            if buffer is None:
                shape, width = found
                self.buffers.append(Buffer(rounded(math.prod(shape) * width), index, index))
                self._made_for.append(found)
                buffer = len(self.buffers) - 1
            self._at[tensor] = buffer
            self._left[buffer] += self._uses[tensor]
            self.buffers[buffer].dies = index
            if not self._left[buffer]:
                self._dead.insert(0, buffer)
        for value in node.reads:
            self._read(value, index)

    def _read(self, value: int, index: int) -> None:
        buffer = self._at.get(value)
        if buffer is None:
            return
        self._left[buffer] -= 1
        self.buffers[buffer].dies = index
        if not self._left[buffer]:
            self._dead.insert(0, buffer)

    def _taken_over(self, tensor: int, node: Node, *, first: bool) -> int | None:
        """The buffer of an input that the node may write into, or of a dead tensor of the same layout."""
        if tensor in self._outputs or tensor in self._unknown:
            return None
        found = self._layout[tensor]
        if node.in_place and first and node.reads:
            buffer = self._at.get(node.reads[0])
            if buffer is not None and self._left[buffer] == 1 and self._layout[node.reads[0]] == found:
                return buffer
        for buffer in self._dead:
            if self._made_for[buffer] == found:
                self._dead.remove(buffer)
                return buffer
        return None


def replay_onnxruntime(
    graph: ModelGraph,
    *,
    workspaces: Sequence[int],
    exporter: Exporter | None = None,
    strategy: ExtendStrategy = ExtendStrategy.NEXT_POWER_OF_TWO,
    pattern: bool = True,
    floor: int = 0,
) -> OrtReplay:
    """Replay `graph`, already cast to its precision, as a session of ONNX Runtime on a GPU.

    `exporter`: who wrote the file (default: what the graph tells). An arena of no more than `floor` bytes is not
    searched for the smallest limit: whoever asks has that much anyway.
    """
    plan = buffer_plan(graph, workspaces, exporter=exporter or exporter_of(graph))
    session = Session(plan, BfcArena(strategy), pattern=pattern)
    session.run()
    first = session.arena.total
    for _ in range(PASSES - 1):
        session.run()
    return OrtReplay(
        sum(map(rounded, plan.weights)), plan.inputs, session.arena.total, first, session.arena.peak_in_use,
        session.arena.total
        if session.arena.total <= floor
        else smallest_limit(plan, strategy, enough=session.arena.total, pattern=pattern),
    )  # fmt: skip


def smallest_limit(plan: BufferPlan, strategy: ExtendStrategy, *, enough: int, pattern: bool = True) -> int:
    """Bytes: the smallest limit under which three passes succeed, searched as the harness searches it: from what one
    pass takes where the arena grows by no more than it is asked for."""
    tight = Session(plan, BfcArena(ExtendStrategy.SAME_AS_REQUESTED), pattern=False)
    tight.run()

    def passes(limit: float) -> float | None:
        try:
            session = Session(plan, BfcArena(strategy, int(limit)), pattern=pattern)
            for _ in range(PASSES):
                session.run()
        except CapReached:
            return None
        return float(session.arena.total)

    low = float(sum(map(rounded, plan.weights)))
    return int(search(passes, guess=tight.arena.total * 1.005, low=low, high=float(enough)).passed)


class Session:
    """A process with one session: a plan on an arena. Raises CapReached where the limit is too small."""

    def __init__(self, plan: BufferPlan, arena: BfcArena, *, pattern: bool = True) -> None:
        self.plan = plan
        self.arena = arena
        self.pattern = MemoryPattern() if pattern else None
        self._outputs: dict[int, Chunk] = {}
        self._passes = 0
        for size in plan.weights:
            if size:
                arena.alloc(size)

    def run(self) -> None:
        """One pass."""
        block = None
        if self._passes and self.pattern is not None and self.pattern.size:
            try:
                block = self.arena.alloc(self.pattern.size)
            except CapReached:
                block = None  # each buffer on its own then, as in the first pass
        self._walk(alone=block is None)
        if block is not None:
            self.arena.release(block)
        self._passes += 1

    def _walk(self, *, alone: bool) -> None:
        tracing = self.pattern if not self._passes else None
        arena, buffers = self.arena, self.plan.buffers
        live: dict[int, Chunk] = {}
        for born, scratch, dying in self.plan.steps:
            for name in born:
                buffer = buffers[name]
                if buffer.output:
                    if name not in self._outputs:
                        self._outputs[name] = arena.alloc(buffer.size)
                    continue
                if alone and buffer.size:
                    live[name] = arena.alloc(buffer.size)
                if tracing is not None:
                    tracing.allocate(name, buffer.size)
            if scratch > 0:
                arena.release(arena.alloc(scratch))
            for name in dying:
                if name in live:
                    arena.release(live.pop(name))
                if tracing is not None:
                    tracing.free(name)
