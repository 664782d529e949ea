"""Memory of one forward pass, replayed: lifetimes by the runtime's rules, workspaces, the runtime's allocator.

    ModelGraph -> Lifetimes -> Program -> (CachingAllocator) -> Replay         PyTorch
    ModelGraph -> Nodes -> BufferPlan -> Session -> (BfcArena) -> Replay       ONNX Runtime

Nothing here is learned and nothing needs torch; what an operator needs beside its outputs comes from outside
(`workspaces`), or from `dippm.replay.workspace`, which knows a rule per kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dippm.case import Allocator, Mode, Runtime
from dippm.graph import ModelGraph
from dippm.replay.allocator import CachingAllocator
from dippm.replay.caps import smallest_cap
from dippm.replay.lifetimes import Lifetimes, lifetimes
from dippm.replay.onnxruntime import OrtReplay, replay_onnxruntime
from dippm.replay.program import Level, Program, Session, levels, program
from dippm.replay.workspace import HOPPER_CUBLAS_BYTES

__all__ = ["HOPPER_CUBLAS_BYTES", "Level", "Lifetimes", "Program", "Replay", "levels", "lifetimes", "program", "replay"]


@dataclass(frozen=True, slots=True)
class Replay:
    """Memory of one case, bytes, as the counters of the runtime's allocator would say it."""

    weights_bytes: int
    """Allocated for parameters, buffers and constants."""
    inputs_bytes: int
    """Allocated for the graph's inputs."""
    allocated_bytes: int
    """Peak allocated over a steady pass, weights and inputs included."""
    activations_bytes: int
    """`allocated_bytes` less weights and inputs."""
    reserved_bytes: int
    """Peak reserved, first pass included."""
    min_cap_bytes: int
    """The smallest cap under which loading and three passes succeed (`dippm.replay.caps`); of ONNX Runtime its
    `gpu_mem_limit` and the inputs, which lie outside of the arena."""


def replay(
    graph: ModelGraph,
    *,
    runtime: Runtime,
    allocator: Allocator,
    workspaces: Sequence[int],
    mode: Mode = Mode.INFERENCE,
    events: Sequence[Sequence[int] | None] | None = None,
    cublas_bytes: int = HOPPER_CUBLAS_BYTES,
    warm_passes: int = 1,
    cap_floor: int = 0,
) -> Replay:
    """Replay `graph`, already cast to its precision.

    `workspaces`: per operator, bytes needed beside its outputs while it runs. `events`: where known, an operator's
    allocations (positive) and frees (negative) in order, instead of its workspace. `cublas_bytes`: what the device's
    cuBLAS keeps (`dippm.replay.workspace.cublas_bytes`). `warm_passes` and `cap_floor`: see
    `dippm.replay.caps.smallest_cap`. ONNX Runtime, with its default options, takes the workspaces of convolutions and
    `cap_floor` alone: it has an arena and plans of its own.
    Raises ValueError unless there is one workspace for each operator.
    """
    if len(workspaces) != len(graph.operators):
        raise ValueError(f"{len(workspaces)} workspaces for {len(graph.operators)} operators")
    if runtime is Runtime.ONNXRUNTIME:
        return _of_session(replay_onnxruntime(graph, workspaces=workspaces, floor=cap_floor))
    lives = lifetimes(graph, runtime, mode)
    steps = program(graph, lives, workspaces, events=events, cublas_bytes=cublas_bytes)
    session = Session(steps, CachingAllocator(allocator))
    weights, inputs = session.load()
    session.run()
    counters = session.allocator
    counters.reset_peak_allocated()
    session.run()
    return Replay(
        weights_bytes=weights,
        inputs_bytes=inputs,
        allocated_bytes=counters.peak_allocated,
        activations_bytes=counters.peak_allocated - weights - inputs,
        reserved_bytes=counters.peak_reserved,
        min_cap_bytes=smallest_cap(
            steps,
            allocator,
            allocated=counters.peak_allocated,
            enough=counters.peak_reserved,
            warm_passes=warm_passes,
            floor=cap_floor,
        ),
    )


def _of_session(found: OrtReplay) -> Replay:
    inputs = found.inputs_bytes
    # The block of all activations is done without where a limit leaves no room for it.
    needed = min(found.in_use_bytes, found.min_limit_bytes)
    return Replay(
        weights_bytes=found.weights_bytes,
        inputs_bytes=inputs,
        allocated_bytes=needed + inputs,
        activations_bytes=needed - found.weights_bytes,
        reserved_bytes=found.arena_bytes + inputs,
        min_cap_bytes=found.min_limit_bytes + inputs,
    )
