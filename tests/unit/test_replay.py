"""The replay as a whole: a network worked out by hand, and what holds for every graph."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import model_graphs

from dippm.case import Allocator, Mode, Runtime
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm.replay import Replay, levels, lifetimes, program, replay
from dippm.replay.allocator import MIB
from dippm.replay.caps import reserved_under
from dippm.replay.workspace import OTHER_CUBLAS_BYTES, cublas_bytes, workspace_bytes

LIGHT = settings(deadline=None, max_examples=50)
CASES = st.tuples(st.sampled_from([Runtime.EAGER, Runtime.GRAPH]), st.sampled_from(Allocator))


def mebibytes(n: int, kind: ValueKind, producer: int | None = None) -> Value:
    return Value(TensorSpec((n, 1024, 256), "float32"), kind, producer)


def chain(*sizes: int, kind: str = "relu") -> ModelGraph:
    """Input of 4 MiB, a weight of 6 MiB, then one operator after the other with outputs of these MiB."""
    values = [mebibytes(4, ValueKind.INPUT), mebibytes(6, ValueKind.PARAMETER)]
    operators = []
    for index, size in enumerate(sizes):
        inputs = (0, 1) if index == 0 else (index + 1,)
        operators.append(Operator(kind, kind, inputs, (index + 2,)))
        values.append(mebibytes(size, ValueKind.RESULT, index))
    return ModelGraph(tuple(values), tuple(operators), (0,), (len(sizes) + 1,), batch=4)


def test_a_chain_by_hand() -> None:
    """Weights and input share a 20 MiB segment, 10 MiB of it free; 16 and 32 MiB get segments of their own; 8 MiB
    fit into the first. Peak: input + weight + 16 + 32 MiB."""
    found = replay(
        chain(16, 32, 8), runtime=Runtime.GRAPH, allocator=Allocator.DEFAULT, workspaces=(0, 0, 0), warm_passes=0
    )
    assert found == Replay(
        weights_bytes=6 * MIB,
        inputs_bytes=4 * MIB,
        allocated_bytes=58 * MIB,
        activations_bytes=48 * MIB,
        reserved_bytes=68 * MIB,
        min_cap_bytes=68 * MIB,
    )


def test_a_workspace_counts_while_its_operator_runs() -> None:
    found = replay(chain(16, 32, 8), runtime=Runtime.GRAPH, allocator=Allocator.DEFAULT, workspaces=(0, 0, 64 * MIB))
    assert found.allocated_bytes == (4 + 6 + 32 + 8 + 64) * MIB


def test_a_matrix_product_leaves_the_cublas_workspace_of_its_device() -> None:
    without = replay(chain(16), runtime=Runtime.GRAPH, allocator=Allocator.DEFAULT, workspaces=(0,))
    with_hopper = replay(chain(16, kind="linear"), runtime=Runtime.GRAPH, allocator=Allocator.DEFAULT, workspaces=(0,))
    assert with_hopper.allocated_bytes - without.allocated_bytes == 33 * MIB
    assert cublas_bytes("H200") == 33 * MIB
    assert cublas_bytes("A100-SXM4-40GB") == OTHER_CUBLAS_BYTES


def test_recorded_events_outrank_the_workspace() -> None:
    """A copy of the input first (8 MiB), then the output, then the copy goes."""
    events = [None, (8 * MIB, 32 * MIB, -8 * MIB), None]
    found = replay(
        chain(16, 32, 8), runtime=Runtime.GRAPH, allocator=Allocator.DEFAULT, workspaces=(0, 99 * MIB, 0), events=events
    )
    assert found.allocated_bytes == (4 + 6 + 16 + 32 + 8) * MIB


def test_copies_of_operands_come_before_the_output_and_what_else_is_needed_after_it() -> None:
    graph = chain(16, kind="batch_matmul")
    lives = lifetimes(graph, Runtime.GRAPH)

    def allocations(kind: str, workspace: int) -> list[int]:
        renamed = replace(graph, operators=(replace(graph.operators[0], kind=kind),))
        return [size // MIB for _, size in program(renamed, lives, (workspace,)).steps if size]

    assert allocations("batch_matmul", 10 * MIB) == [4, 6, 16]
    assert allocations("batch_matmul", 6 * MIB) == [6, 16]
    assert allocations("layer_norm", 5 * MIB) == [4, 16, 1]
    assert allocations("layer_norm", MIB) == [16, 1]
    assert allocations("conv2d", 10 * MIB) == [16, 10]


def test_a_cap_below_the_reserved_peak_can_be_enough() -> None:
    """16 MiB are cached when 40 are asked for. Under a cap of 70 they go back, once; the next pass cuts its 16 MiB from
    the cached 40, which are whole again when they are needed. Under a cap of 50 the 40 do not fit beside the 20."""
    steps = program(chain(16, 8, 40, 8), lifetimes(chain(16, 8, 40, 8), Runtime.GRAPH), (0,) * 4)
    assert reserved_under(steps, Allocator.DEFAULT, 76 * MIB, warm_passes=0) == 76 * MIB
    assert reserved_under(steps, Allocator.DEFAULT, 70 * MIB, warm_passes=0) is None
    assert reserved_under(steps, Allocator.DEFAULT, 70 * MIB) == 60 * MIB
    assert reserved_under(steps, Allocator.DEFAULT, 50 * MIB) is None


def test_one_workspace_for_each_operator_is_asked_for() -> None:
    with pytest.raises(ValueError, match="1 workspaces for 3 operators"):
        replay(chain(1, 2, 3), runtime=Runtime.GRAPH, allocator=Allocator.DEFAULT, workspaces=(0,))


def test_levels_say_where_the_peak_is() -> None:
    graph = chain(16, 32, 8)
    timeline = levels(graph, lifetimes(graph, Runtime.GRAPH), (0, 5, 0))
    assert [(t.before // MIB, t.inside // MIB, t.after // MIB) for t in timeline] == [
        (0, 16, 16),
        (16, 48, 32),
        (32, 40, 8),
    ]
    assert timeline[1].inside == 48 * MIB + 512


def test_2000_operators_take_less_than_200_ms() -> None:
    graph = chain(*([3, 17, 2, 30] * 500), kind="conv2d")
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        replay(graph, runtime=Runtime.EAGER, allocator=Allocator.DEFAULT, workspaces=(5 * MIB,) * 2000)
        best = min(best, time.process_time() - start)
    assert best < 0.2


@LIGHT
@given(model_graphs(), CASES, st.integers(0, 40 * MIB))
def test_never_less_than_the_weights_nor_reserved_less_than_allocated(
    graph: ModelGraph, case: tuple[Runtime, Allocator], workspace: int
) -> None:
    runtime, allocator = case
    found = replay(graph, runtime=runtime, allocator=allocator, workspaces=(workspace,) * len(graph.operators))
    tensors = sum(graph.values[i].spec.nbytes for i in (*graph.parameter_ids, *graph.inputs))
    assert found.weights_bytes + found.inputs_bytes >= tensors
    assert found.allocated_bytes >= found.weights_bytes + found.inputs_bytes
    assert found.reserved_bytes >= found.allocated_bytes
    assert found.min_cap_bytes >= tensors


@LIGHT
@given(model_graphs(), CASES)
def test_larger_workspaces_never_lower_the_level(graph: ModelGraph, case: tuple[Runtime, Allocator]) -> None:
    lives = lifetimes(graph, case[0])
    small = levels(graph, lives, (1000,) * len(graph.operators))
    large = levels(graph, lives, (3 * MIB,) * len(graph.operators))
    assert max(t.inside for t in large) >= max(t.inside for t in small)


@LIGHT
@given(model_graphs(), CASES)
def test_the_smallest_cap_is_one_that_survives(graph: ModelGraph, case: tuple[Runtime, Allocator]) -> None:
    runtime, allocator = case
    workspaces = (MIB,) * len(graph.operators)
    found = replay(graph, runtime=runtime, allocator=allocator, workspaces=workspaces, cublas_bytes=0)
    steps = program(graph, lifetimes(graph, runtime), workspaces)
    reserved = reserved_under(steps, allocator, found.min_cap_bytes)
    assert reserved is not None
    assert reserved <= found.min_cap_bytes


@LIGHT
@given(model_graphs(), st.sampled_from(Allocator))
def test_a_graph_needs_no_more_than_eager_and_autograd_no_less(graph: ModelGraph, allocator: Allocator) -> None:
    def peak(runtime: Runtime, mode: Mode) -> int:
        return max(t.inside for t in levels(graph, lifetimes(graph, runtime, mode), (0,) * len(graph.operators)))

    assert peak(Runtime.GRAPH, Mode.INFERENCE) <= peak(Runtime.EAGER, Mode.INFERENCE)
    assert peak(Runtime.EAGER, Mode.INFERENCE) <= peak(Runtime.EAGER, Mode.AUTOGRAD)


@LIGHT
@given(model_graphs())
def test_every_operator_has_a_workspace_by_rule(graph: ModelGraph) -> None:
    found = workspace_bytes(graph)
    assert len(found) == len(graph.operators)
    assert min(found) >= 0


def test_a_depthwise_convolution_needs_no_workspace_and_a_dense_one_what_it_touches() -> None:
    graph = chain(16, kind="conv2d")
    weight = Value(TensorSpec((64, 64, 3, 3), "float32"), ValueKind.PARAMETER)
    dense = replace(graph, values=(graph.values[0], weight, graph.values[2]))
    assert workspace_bytes(dense) == (4 * MIB + 16 * MIB + weight.spec.nbytes,)
    depthwise = replace(dense, operators=(replace(graph.operators[0], attributes={"groups": 1024}),))
    assert workspace_bytes(depthwise) == (0,)
