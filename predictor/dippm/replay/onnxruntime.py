"""One session of ONNX Runtime replayed: its allocation plan over a model graph, on its arena.

What differs from PyTorch (`allocation_planner.cc`, `execution_frame.cc`, 1.31):
1. Operators are nodes of ONNX: a permutation, a slice, a split is a copy; a reshape shares its input's buffer. A batch
   norm behind a convolution is folded into it.
2. An elementwise node writes into its input if nobody else reads that any more; an output of the graph always has a
   buffer of its own.
3. Buffers are planned before anything runs: a tensor takes over a buffer of the same size whose tensor is dead, and a
   buffer that will be taken over is held in between.
4. The first pass allocates each buffer as it comes, and lays all of them out in one block; the second pass allocates
   that block at once, beside what the first one left in the arena, and so do all later ones.
5. Weights are chunks of the arena, taken one by one before the first pass; outputs stay with whoever bound them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from dippm.graph import ModelGraph, Operator, ValueKind
from dippm.replay.allocator import CapReached
from dippm.replay.bfc_arena import BfcArena, Chunk, ExtendStrategy, rounded
from dippm.replay.memory_pattern import MemoryPattern
from dippm.replay.search import search

PASSES = 3
SHARES = frozenset({"reshape", "squeeze", "unsqueeze", "flatten", "identity", "dropout", "copy"})
"""Kinds whose output is their input's buffer (a contiguous copy is exported as Identity, and that is taken away)."""
IN_PLACE = frozenset({
    "relu", "leaky_relu", "elu", "selu", "gelu", "silu", "sigmoid", "hardsigmoid", "tanh", "softplus", "hardswish",
    "mish",
})  # fmt: skip
"""Kinds whose CUDA kernels may write into their input (`MayInplace`): activations; sums and products may not."""
TEMPORARIES = {"hardswish": 1.0, "mish": 1.0, "roll": 2.0, "log_softmax": 0.0, "addcmul": 1.0}
"""Buffers of the output's size that a kind needs for its own, where it is several nodes in ONNX."""
FOLDED_INTO = frozenset({"conv1d", "conv2d", "conv3d", "linear"})


@dataclass(slots=True)
class Buffer:
    """One planned buffer: from the operator that first writes it to the one after which nobody reads it."""

    size: int
    born: int
    dies: int
    output: bool = False


@dataclass(frozen=True, slots=True)
class BufferPlan:
    """A graph's buffers in the order in which they are first written, and each operator's scratch."""

    buffers: tuple[Buffer, ...]
    scratch: tuple[int, ...]
    """Per operator: bytes of the arena while it runs (a convolution's workspace); no part of the block."""
    weights: tuple[int, ...]
    """Bytes of each weight: chunks of the arena like any other, taken one by one when the session is made."""
    inputs: int


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


def buffer_plan(graph: ModelGraph, workspaces: Sequence[int], *, in_place: frozenset[str] = IN_PLACE) -> BufferPlan:
    """ONNX Runtime's plan for `graph`, already cast to its precision; `workspaces` per operator, as for `replay`.

    `in_place` are the kinds whose kernels may write into their input, on a GPU if nothing is said.
    """
    planner = _Planner(graph, in_place)
    order = execution_order(graph)
    for step, index in enumerate(order):
        planner.step(step, graph.operators[index])
    planner.close()
    weights = tuple(
        value.spec.nbytes
        for i, value in enumerate(graph.values)
        if value.kind in (ValueKind.PARAMETER, ValueKind.CONSTANT) and value.alias_of is None and i not in planner.gone
    )
    scratch = tuple(workspaces[i] if graph.operators[i].kind.startswith("conv") else 0 for i in order)
    return BufferPlan(
        tuple(sorted(planner.buffers, key=lambda b: b.born)), scratch, weights,
        sum(graph.values[i].spec.nbytes for i in graph.inputs),
    )  # fmt: skip


@dataclass
class _Planner:
    graph: ModelGraph
    in_place: frozenset[str]
    buffers: list[Buffer] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    """Weights that folding takes away."""

    def __post_init__(self) -> None:
        self._uses: Counter[int] = Counter(i for o in self.graph.operators for i in o.inputs)
        self._uses.update(self.graph.outputs)
        self._left: Counter[int] = Counter()
        """Reads that a buffer still has ahead, over all tensors that lie in it."""
        self._at: dict[int, int] = {}
        """The buffer of each value that has one."""
        self._dead: list[int] = []
        """Buffers that nobody reads any more, the latest first."""

    def step(self, index: int, operator: Operator) -> None:
        values = self.graph.values
        for position, output in enumerate(operator.outputs):
            if not self._uses[output] and position:
                continue  # an output that nobody reads is not asked for (a pooling's indices)
            buffer = self._shared(operator) or self._in_place(operator, output) or self._reused(output)
            if buffer is None:
                self.buffers.append(Buffer(rounded(values[output].spec.nbytes), index, index))
                buffer = len(self.buffers)
            if buffer > 0:
                self._at[output] = buffer
                self._left[buffer] += self._uses[output]
                self.buffers[buffer - 1].dies = index
        self._temporaries(index, operator)
        for value in operator.inputs:
            self._read(value, index)

    def close(self) -> None:
        for output in self.graph.outputs:
            if buffer := self._at.get(output, 0):
                self.buffers[buffer - 1].output = True

    def _read(self, value: int, index: int) -> None:
        buffer = self._at.get(value, 0)
        if not buffer:
            return
        self._left[buffer] -= 1
        self.buffers[buffer - 1].dies = index
        if not self._left[buffer]:
            self._dead.insert(0, buffer)

    def _shared(self, operator: Operator) -> int | None:
        """The input's buffer (-1: a weight's or an input's, which is no buffer) where the node only renames it."""
        renames = operator.kind in SHARES and operator.outputs[0] not in self.graph.outputs
        if renames or self._is_folded(operator):
            return self._at.get(operator.inputs[0], -1) if operator.inputs else None
        return None

    def _is_folded(self, operator: Operator) -> bool:
        if operator.kind != "batch_norm" or not operator.inputs:
            return False
        source = operator.inputs[0]
        producer = self.graph.values[source].producer
        if producer is None or self._uses[source] != 1 or self.graph.operators[producer].kind not in FOLDED_INTO:
            return False
        self.gone.update(operator.inputs[1:])
        return True

    def _in_place(self, operator: Operator, output: int) -> int | None:
        if operator.kind not in self.in_place or output in self.graph.outputs:
            return None
        size = rounded(self.graph.values[output].spec.nbytes)
        for value in dict.fromkeys(operator.inputs):
            buffer = self._at.get(value, 0)
            if buffer and self._left[buffer] == 1 and self.buffers[buffer - 1].size == size:
                return buffer
        return None

    def _reused(self, output: int) -> int | None:
        size = rounded(self.graph.values[output].spec.nbytes)
        if output in self.graph.outputs:
            return None
        for buffer in self._dead:
            if self.buffers[buffer - 1].size == size:
                self._dead.remove(buffer)
                return buffer
        return None

    def _temporaries(self, index: int, operator: Operator) -> None:
        specs = [self.graph.values[i].spec for i in operator.inputs]
        made = self.graph.values[operator.outputs[0]].spec if operator.outputs else None
        if made is None:
            return
        if operator.kind == "scaled_dot_product_attention" and len(specs) > 1 and len(specs[0].shape) >= 2:
            scores = math.prod(specs[0].shape[:-1]) * specs[1].shape[-2] * (specs[0].nbytes // max(1, specs[0].numel))
            self.buffers += [Buffer(rounded(scores), index, index) for _ in range(2)]
        elif share := TEMPORARIES.get(operator.kind):
            self.buffers.append(Buffer(rounded(int(share * made.nbytes)), index, index))


def replay_onnxruntime(
    graph: ModelGraph,
    *,
    workspaces: Sequence[int],
    strategy: ExtendStrategy = ExtendStrategy.NEXT_POWER_OF_TWO,
    pattern: bool = True,
) -> OrtReplay:
    """Replay `graph`, already cast to its precision, as a session of ONNX Runtime on a GPU."""
    plan = buffer_plan(graph, workspaces)
    session = Session(plan, BfcArena(strategy), pattern=pattern)
    session.run()
    first = session.arena.total
    for _ in range(PASSES - 1):
        session.run()
    return OrtReplay(
        sum(map(rounded, plan.weights)), plan.inputs, session.arena.total, first, session.arena.peak_in_use,
        smallest_limit(plan, strategy, enough=session.arena.total, pattern=pattern),
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
        self._born: dict[int, list[int]] = {}
        self._dying: dict[int, list[int]] = {}
        for name, buffer in enumerate(plan.buffers):
            self._born.setdefault(buffer.born, []).append(name)
            if not buffer.output:
                self._dying.setdefault(buffer.dies, []).append(name)
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
        live: dict[int, Chunk] = {}
        for index, scratch in enumerate(self.plan.scratch):
            for name in self._born.get(index, ()):
                buffer = self.plan.buffers[name]
                if buffer.output:
                    if name not in self._outputs:
                        self._outputs[name] = self.arena.alloc(buffer.size)
                    continue
                if alone and buffer.size:
                    live[name] = self.arena.alloc(buffer.size)
                if tracing is not None:
                    tracing.allocate(name, buffer.size)
            if scratch > 0:
                self.arena.release(self.arena.alloc(scratch))
            for name in self._dying.get(index, ()):
                if name in live:
                    self.arena.release(live.pop(name))
                if tracing is not None:
                    tracing.free(name)
