"""ONNX Runtime's memory replayed: the arena and the block by hand, the plan, and whole sessions as ONNX Runtime logged
them (CPU provider of 1.32, whose plan, block and arena are the CUDA provider's)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import model_graphs

from dippm.case import Allocator, Runtime
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm.replay import replay
from dippm.replay.allocator import CapReached
from dippm.replay.bfc_arena import MIB, BfcArena, ExtendStrategy, rounded
from dippm.replay.memory_pattern import MemoryPattern
from dippm.replay.onnx_nodes import Exporter, Layout, Lowering, exporter_of
from dippm.replay.onnxruntime import (
    BufferPlan,
    Session,
    buffer_plan,
    execution_order,
    replay_onnxruntime,
    smallest_limit,
)

ON_THE_CPU = frozenset({"sigmoid", "tanh", "exp", "abs", "softmax"})
"""Kinds whose kernels of the CPU provider may write into their input."""


def test_regions_double_and_a_chunk_is_cut_when_half_of_it_would_be_wasted() -> None:
    arena = BfcArena()
    arena.alloc(100)
    assert arena.regions == [(256, MIB)]
    arena.alloc(3 * MIB)
    assert arena.regions[1:] == [(3 * MIB, 4 * MIB)]
    assert arena.in_use == 256 + 4 * MIB, "a chunk of 4 MiB is not cut for 3: less than as much again would be left"
    arena.alloc(MIB)
    assert arena.regions[2:] == [(MIB, 4 * MIB)], "the next region is as large as the last that had to grow"
    arena.alloc(8 * MIB)
    assert arena.regions[3:] == [(8 * MIB, 8 * MIB)]


def test_same_as_requested_takes_no_more() -> None:
    arena = BfcArena(ExtendStrategy.SAME_AS_REQUESTED)
    first = arena.alloc(3 * MIB)
    arena.alloc(5 * MIB)
    arena.release(first)
    arena.alloc(2 * MIB)
    assert arena.total == 8 * MIB


def test_neighbours_merge_and_the_best_fit_is_taken() -> None:
    arena = BfcArena(ExtendStrategy.SAME_AS_REQUESTED)
    whole = arena.alloc(8 * MIB)
    arena.release(whole)
    parts = [arena.alloc(2 * MIB) for _ in range(4)]
    assert arena.total == 8 * MIB
    arena.release(parts[1])
    arena.release(parts[2])
    assert arena.alloc(4 * MIB).address == parts[1].address
    assert arena.total == 8 * MIB


def test_a_limit_ends_growth() -> None:
    arena = BfcArena(limit=10 * MIB)
    arena.alloc(5 * MIB)
    arena.alloc(2 * MIB)
    assert arena.regions == [(5 * MIB, 8 * MIB), (2 * MIB, 2 * MIB)], "of the next power of two what the limit leaves"
    with pytest.raises(CapReached, match="available memory of 0"):
        arena.alloc(4 * MIB)


def test_the_block_fills_the_best_gap() -> None:
    block = MemoryPattern()
    for name, size in enumerate((4, 2, 4, 3, 4)):
        block.allocate(name, size)
    block.free(1)
    block.free(3)
    block.allocate(5, 3)
    block.allocate(6, 2)
    assert block.size == 17
    block.allocate(7, 1)
    assert block.size == 18


def graph(nodes: list[tuple[str, tuple[int, ...], float]], batch: int = 1) -> ModelGraph:
    """Value 0 is the input of 6 MiB; each node (kind, values read, MiB put out) makes the next one."""
    values = [Value(TensorSpec((int(6 * MIB / 4),), "float32"), ValueKind.INPUT)]
    operators = []
    for index, (kind, inputs, size) in enumerate(nodes):
        values.append(Value(TensorSpec((int(size * MIB / 4),), "float32"), ValueKind.RESULT, index))
        operators.append(Operator(kind, kind, inputs, (index + 1,)))
    return ModelGraph(tuple(values), tuple(operators), (0,), (len(values) - 1,), batch)


SIGMOIDS_MEAN = [
    ("sigmoid", (0,), 6), ("sigmoid", (1,), 6), ("mean", (2,), 0.0625), ("subtract", (2, 3), 6), ("add", (4, 4), 6),
    ("permute", (5,), 6), ("softmax", (6,), 6), ("tanh", (7,), 6), ("tanh", (8,), 6), ("slice", (9,), 3),
    ("abs", (10,), 3),
]  # fmt: skip
SOFTMAX_ADD_CONCAT = [
    ("sigmoid", (0,), 4.5), ("softmax", (1,), 4.5), ("tanh", (2,), 4.5), ("add", (3, 2), 4.5), ("concat", (4, 3), 9),
    ("tanh", (5,), 9),
]  # fmt: skip
SLICED = [
    ("sigmoid", (0,), 6), ("sigmoid", (1,), 6), ("tanh", (2,), 6), ("softmax", (3,), 6), ("slice", (4,), 3),
    ("abs", (5,), 3), ("slice", (6,), 1.5), ("abs", (7,), 1.5),
]  # fmt: skip


@pytest.mark.parametrize(
    ("nodes", "logged"),
    [
        (SIGMOIDS_MEAN, [(1, 6, 8), (1, 0.0625, 8), (2, 12.0625, 16)]),
        (SOFTMAX_ADD_CONCAT, [(1, 4.5, 8), (1, 4.5, 8), (1, 4.5, 16), (1, 9, 32)]),
        (SLICED, [(1, 6, 8), (1, 3, 8), (2, 9, 16)]),
    ],
)
def test_sessions_grow_as_onnx_runtime_logged_them(
    nodes: list[tuple[str, tuple[int, ...], float]], logged: list[tuple[int, float, float]]
) -> None:
    plan = buffer_plan(graph(nodes), (0,) * len(nodes), in_place=ON_THE_CPU)
    session = Session(plan, BfcArena())
    found = []
    for index in (1, 2, 3):
        before = len(session.arena.regions)
        session.run()
        found += [(index, asked / MIB, size / MIB) for asked, size in session.arena.regions[before:]]
    assert found == [tuple(map(float, line)) for line in logged]


def test_nodes_run_depth_first_from_the_outputs() -> None:
    """Two branches from one tensor: the one that stands last in the file is run first."""
    branches = graph([("relu", (0,), 1), ("relu", (1,), 1), ("relu", (2,), 1), ("relu", (1,), 1), ("add", (3, 4), 1)])
    assert execution_order(branches) == [0, 3, 1, 2, 4]


def test_a_buffer_that_is_taken_over_is_held_in_between() -> None:
    chain = graph([("permute", (0,), 6), ("permute", (1,), 2), ("permute", (2,), 6), ("permute", (3,), 1)])
    plan = buffer_plan(chain, (0,) * 4)
    assert [(b.size / MIB, b.born, b.dies, b.output) for b in plan.buffers] == [
        (6, 0, 3, False),
        (2, 1, 2, False),
        (1, 3, 3, True),
    ]


def test_where_the_batch_is_open_nothing_behind_a_reshape_is_taken_over() -> None:
    """Its shape is computed of the batch: to the plan it is no shape at all."""
    calls = [
        ("permute", (0,), 6),
        ("permute", (1,), 2),
        ("reshape", (2,), 2),
        ("permute", (3,), 6),
        ("permute", (4,), 1),
    ]
    fixed = graph(calls)
    assert [b.size / MIB for b in buffer_plan(fixed, (0,) * 5).buffers] == [6, 2, 1]
    opened = replace(fixed, open_batch=True)
    assert [b.size / MIB for b in buffer_plan(opened, (0,) * 5).buffers] == [6, 2, 6, 1]
    before = replace(graph([("permute", (0,), 6), ("permute", (1,), 2), ("permute", (2,), 6)]), open_batch=True)
    assert len(buffer_plan(before, (0,) * 3).buffers) == 3, "the graph's output has a buffer of its own"


def test_a_batch_norm_behind_a_convolution_is_folded_with_its_weights() -> None:
    def spec(*shape: int) -> TensorSpec:
        return TensorSpec(shape, "float32")

    values = (
        Value(spec(1, 8, 64, 64), ValueKind.INPUT), Value(spec(8, 8, 1, 1), ValueKind.PARAMETER),
        Value(spec(8), ValueKind.PARAMETER), Value(spec(1, 8, 64, 64), ValueKind.RESULT, 0),
        Value(spec(1, 8, 64, 64), ValueKind.RESULT, 1), Value(spec(1, 8, 64, 64), ValueKind.RESULT, 2),
    )  # fmt: skip
    operators = (
        Operator("conv2d", "conv", (0, 1), (3,)), Operator("batch_norm", "bn", (3, 2), (4,)),
        Operator("permute", "t", (4,), (5,)),
    )  # fmt: skip
    plan = buffer_plan(ModelGraph(values, operators, (0,), (5,), 1), (MIB, 7, 7))
    assert plan.weights == (8 * 8 * 4,)
    assert [b.size for b in plan.buffers] == [8 * 64 * 64 * 4] * 2
    assert plan.scratch == (MIB, 0, 0), "only a convolution's workspace is the arena's"


def spec(*shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(shape, dtype)


def made_of(
    kind: str, inputs: list[TensorSpec], output: TensorSpec, weights: int = 0, **attributes: int
) -> list[tuple[Layout, bool]]:
    """What each node of one operator makes, and whether it only renames; its last inputs are weights."""
    values = [
        Value(s, ValueKind.INPUT if i < len(inputs) - weights else ValueKind.PARAMETER) for i, s in enumerate(inputs)
    ]
    operator = Operator(kind, kind, tuple(range(len(inputs))), (len(inputs),), attributes=attributes)
    one = ModelGraph((*values, Value(output, ValueKind.RESULT, 0)), (operator,), (0,), (len(inputs),), 1)
    nodes = Lowering(one, (0,)).nodes([0])
    return [(found, node.renames) for node in nodes for _, found in node.makes]


def test_a_dead_buffer_is_taken_over_by_its_shape_not_by_its_size() -> None:
    values = [Value(spec(4, 8), ValueKind.INPUT)]
    shapes = [(4, 8), (2, 2), (8, 4), (3, 3), (4, 8)]
    operators = []
    for index, shape in enumerate(shapes):
        values.append(Value(spec(*shape), ValueKind.RESULT, index))
        operators.append(Operator("permute", "permute", (index,), (index + 1,)))
    plan = buffer_plan(ModelGraph(tuple(values), tuple(operators), (0,), (5,), 1), (0,) * 5)
    assert [(b.born, b.dies, b.output) for b in plan.buffers] == [
        (0, 1, False), (1, 2, False), (2, 3, False), (3, 4, False), (4, 4, True)
    ], "the output has a buffer of its own, and (8, 4) is another shape than (4, 8)"  # fmt: skip


def test_a_linear_layer_over_three_dimensions_makes_a_matrix_and_with_dynamo_a_product_and_a_sum() -> None:
    inputs, output = [spec(2, 5, 8), spec(16, 8), spec(16)], spec(2, 5, 16)
    assert made_of("linear", inputs, output, weights=2) == [(((10, 16), 4), False), (((2, 5, 16), 4), True)]
    assert made_of("linear", inputs[:2], output, weights=1) == [(((2, 5, 16), 4), False)]
    values = (*(Value(s, ValueKind.INPUT) for s in inputs), Value(output, ValueKind.RESULT, 0))
    operator = Operator("linear", "linear", (0, 1, 2), (3,), source="model.py:1")
    one = ModelGraph(values, (operator,), (0,), (3,), 1, format="onnx")
    assert exporter_of(one) is Exporter.DYNAMO
    assert [node.makes[0][1] for node in Lowering(one, (0,), Exporter.DYNAMO).nodes([0])] == [((2, 5, 16), 4)] * 2
    traced = replace(one, operators=(replace(operator, source=""),))
    assert exporter_of(traced) is Exporter.TORCHSCRIPT


def test_attention_makes_scores_twice_and_turns_its_keys_in_half_precision() -> None:
    scores = ((2, 3, 7, 9), 2)
    half = [spec(2, 3, size, 4, dtype="float16") for size in (7, 9, 9)]
    made = [found for found, _ in made_of("scaled_dot_product_attention", half, half[0])]
    assert made == [((2, 3, 4, 9), 2), scores, scores, ((2, 3, 7, 4), 2)]
    single = [spec(2, 3, size, 4) for size in (7, 9, 9)]
    made = [found for found, _ in made_of("scaled_dot_product_attention", single, single[0])]
    assert made == [((2, 3, 7, 9), 4)] * 2 + [((2, 3, 7, 4), 4)]


def test_a_group_norm_is_an_instance_norm_a_product_and_a_sum() -> None:
    x = spec(2, 8, 3, 3)
    made = [found for found, _ in made_of("group_norm", [x, spec(8), spec(8)], x, weights=2, num_groups=4)]
    assert made == [((2, 4, 18), 4), ((2, 8, 3, 3), 4), ((2, 8, 3, 3), 4)]


def test_an_uneven_pooling_gathers_its_windows_and_adds_them_up() -> None:
    made = [found for found, _ in made_of("adaptive_avg_pool2d", [spec(2, 3, 15, 15)], spec(2, 3, 16, 16))]
    windows = ((2, 3, 16, 2, 16, 2), 4)
    assert made[:5] == [((15, 15, 2, 3), 4), ((16, 2, 16, 2, 2, 3), 4), windows, windows, windows]
    assert made[-1] == ((2, 3, 16, 16), 4)
    assert [found for found, _ in made_of("adaptive_avg_pool2d", [spec(2, 3, 14, 14)], spec(2, 3, 7, 7))] == [
        ((2, 3, 7, 7), 4)
    ]


def test_a_recurrent_layer_has_its_weights_once_more_while_it_runs() -> None:
    values = (
        Value(spec(4, 8), ValueKind.INPUT),
        Value(spec(32, 8), ValueKind.PARAMETER),
        Value(spec(4, 8), ValueKind.RESULT, 0),
    )
    one = ModelGraph(values, (Operator("lstm", "lstm", (0, 1), (2,)),), (0,), (2,), 1)
    assert buffer_plan(one, (1000,)).scratch == (1000 + 32 * 8 * 4,)


def test_the_replay_of_the_runtime_counts_inputs_beside_the_arena() -> None:
    model = graph(SIGMOIDS_MEAN)
    workspaces = (0,) * len(SIGMOIDS_MEAN)
    session = replay_onnxruntime(model, workspaces=workspaces)
    found = replay(model, runtime=Runtime.ONNXRUNTIME, allocator=Allocator.DEFAULT, workspaces=workspaces)
    assert found.inputs_bytes == 6 * MIB
    assert found.reserved_bytes == session.arena_bytes + 6 * MIB
    assert found.min_cap_bytes == session.min_limit_bytes + 6 * MIB
    unsearched = replay(
        model, runtime=Runtime.ONNXRUNTIME, allocator=Allocator.DEFAULT, workspaces=workspaces, cap_floor=1 << 40
    )
    assert unsearched.min_cap_bytes == unsearched.reserved_bytes == found.reserved_bytes


def test_the_smallest_limit_is_where_passes_begin_to_succeed() -> None:
    plan = buffer_plan(graph(SIGMOIDS_MEAN), (0,) * len(SIGMOIDS_MEAN))
    enough = replay_onnxruntime(graph(SIGMOIDS_MEAN), workspaces=(0,) * len(SIGMOIDS_MEAN))
    found = smallest_limit(plan, ExtendStrategy.NEXT_POWER_OF_TWO, enough=enough.arena_bytes)
    assert found == enough.min_limit_bytes < enough.arena_bytes
    session = Session(plan, BfcArena(limit=found))
    for _ in range(3):
        session.run()
    with pytest.raises(CapReached):
        Session(plan, BfcArena(limit=max(b.size for b in plan.buffers))).run()


@settings(deadline=None, max_examples=40)
@given(model_graphs(), st.sampled_from(ExtendStrategy), st.booleans())
def test_what_holds_for_every_graph(model: ModelGraph, strategy: ExtendStrategy, pattern: bool) -> None:
    found = replay_onnxruntime(model, workspaces=(0,) * len(model.operators), strategy=strategy, pattern=pattern)
    assert found.weights_bytes <= found.in_use_bytes <= found.arena_bytes
    assert found.first_pass_bytes <= found.arena_bytes
    assert found.min_limit_bytes <= found.arena_bytes
    plan = buffer_plan(model, (0,) * len(model.operators))
    assert all(buffer.born <= buffer.dies for buffer in plan.buffers)
    assert sorted(execution_order(model)) == list(range(len(model.operators)))


def test_an_empty_plan_takes_nothing() -> None:
    session = Session(BufferPlan((), (), (), 0), BfcArena())
    session.run()
    assert session.arena.total == 0
    assert rounded(1) == 256
