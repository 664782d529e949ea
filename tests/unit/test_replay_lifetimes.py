"""Lifetimes by the rules of the runtimes, on graphs small enough to work out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from tests.strategies import model_graphs

from dippm.case import Mode, Runtime
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm.replay.lifetimes import lifetimes, storages
from dippm.replay.statements import Statement, parse

LIGHT = settings(deadline=None, max_examples=50)
SPEC = TensorSpec((1024,), "float32")


def graph(*calls: tuple[str, tuple[int, ...], str, str], views: frozenset[int] = frozenset()) -> ModelGraph:
    """Value 0 is the input; call i puts out value i + 1. A call: kind, inputs, scope below the root, its lines."""
    values = [Value(SPEC, ValueKind.INPUT)]
    operators = []
    for index, (kind, inputs, scope, lines) in enumerate(calls):
        paths = ("", *(scope.split("/") if scope else ()))
        source = "\n".join(reversed([f"m.py:{line}" for line in lines.split(" | ")])) if lines else ""
        operators.append(Operator(kind, kind, inputs, (index + 1,), scope=paths, source=source))
        alias = inputs[0] if index + 1 in views else None
        values.append(Value(SPEC, ValueKind.RESULT, index, alias))
    return ModelGraph(tuple(values), tuple(operators), (0,), (len(calls),), batch=1)


def death(model: ModelGraph, runtime: Runtime, value: int) -> int | None:
    """The operator after which `value` is freed; None if it outlives the pass."""
    lives = lifetimes(model, runtime)
    return next((index for index, freed in enumerate(lives.freed) if value in freed), None)


def test_without_lines_a_dense_layer_holds_what_it_concatenates() -> None:
    dense = graph(
        ("conv2d", (0,), "stem", ""),
        ("concat", (1, 1), "block/layer1", ""),
        ("conv2d", (2,), "block/layer1/conv1", ""),
        ("concat", (1, 1, 3), "block/layer2", ""),
        ("relu", (4,), "block/layer2/norm1", ""),
        ("conv2d", (5,), "block/layer2/conv1", ""),
        ("conv2d", (6,), "block/layer2/conv2", ""),
    )
    assert death(dense, Runtime.EAGER, 4) == 5
    assert death(dense, Runtime.GRAPH, 4) == 4


def test_without_lines_another_concatenation_is_let_go() -> None:
    skips = graph(
        ("conv2d", (0,), "stem", ""),
        ("conv2d", (1,), "down", ""),
        ("concat", (1, 2), "up1", ""),
        ("relu", (3,), "up1/act", ""),
        ("conv2d", (4,), "up1/conv", ""),
        ("concat", (5, 1), "up2", ""),
        ("relu", (6,), "up2/act", ""),
        ("conv2d", (7,), "up2/conv", ""),
    )
    assert death(skips, Runtime.EAGER, 6) == 6


def test_without_lines_an_embedding_is_named_by_its_caller() -> None:
    model = graph(
        ("embedding", (0,), "encoder/encoder.tokens", ""),
        ("embedding", (0,), "encoder/encoder.positions", ""),
        ("add", (1, 2), "encoder", ""),
        ("linear", (3,), "encoder/encoder.fc", ""),
        ("linear", (4,), "head", ""),
    )
    assert [death(model, Runtime.GRAPH, v) for v in (1, 2)] == [2, 2]
    assert [death(model, Runtime.EAGER, v) for v in (1, 2)] == [3, 3], "until the encoder returns"
    assert death(model, Runtime.EAGER, 3) == 3
    lined = replace(model, operators=tuple(replace(o, source="m.py:1: x = self.f(x)") for o in model.operators))
    assert death(lined, Runtime.EAGER, 1) == 2, "where lines are told, they are what counts"


def test_without_lines_the_tables_of_a_recommender_are_in_a_list() -> None:
    model = graph(
        ("embedding", (0,), "tables.0", ""),
        ("embedding", (0,), "tables.1", ""),
        ("stack", (1, 2), "", ""),
        ("linear", (3,), "top", ""),
    )
    assert [death(model, Runtime.EAGER, v) for v in (1, 2)] == [2, 2]


RESIDUAL = graph(
    ("conv2d", (0,), "conv1", "1: x = self.conv1(x)"),
    ("relu", (1,), "act", "2: x = self.act(x)"),
    ("conv2d", (2,), "block/block.conv", "3: x = self.block(x) | 11: y = self.conv(x)"),
    ("relu", (3,), "block/block.act", "3: x = self.block(x) | 12: y = self.act(y)"),
    ("add", (4, 2), "block", "3: x = self.block(x) | 13: x = x + y"),
    ("linear", (5,), "block/block.fc", "3: x = self.block(x) | 14: return self.fc(x)"),
)


@pytest.mark.parametrize(("value", "graph_end", "eager_end"), [(1, 1, 1), (2, 4, 5), (3, 3, 3), (4, 4, 5), (5, 5, 5)])
def test_a_residual_block(value: int, graph_end: int, eager_end: int) -> None:
    """x is block's argument: held until block returns. y and the sum are locals of its forward: held as long."""
    assert death(RESIDUAL, Runtime.GRAPH, value) == graph_end
    assert death(RESIDUAL, Runtime.EAGER, value) == eager_end


def test_the_output_outlives_the_pass_and_the_input_is_nobodys_to_free() -> None:
    lives = lifetimes(RESIDUAL, Runtime.EAGER)
    assert lives.kept == (6,)
    assert all(0 not in freed for freed in lives.freed)


def test_a_list_holds_what_was_appended_to_it_until_the_function_returns() -> None:
    model = graph(
        ("conv2d", (0,), "block/block.a", "1: x = self.block(x) | 11: y = self.a(x)"),
        ("conv2d", (1,), "block/block.b", "1: x = self.block(x) | 12: y = self.b(y)"),
        ("max_pool2d", (2,), "block/block.pool", "1: x = self.block(x) | 13: outs.append(self.pool(y))"),
        ("concat", (1, 3), "block", "1: x = self.block(x) | 14: x = torch.cat(outs, 1)"),
        ("conv2d", (4,), "block/block.c", "1: x = self.block(x) | 15: x = self.c(x)"),
    )
    assert [death(model, Runtime.EAGER, v) for v in (1, 2, 3)] == [4, 4, 4]
    assert [death(model, Runtime.GRAPH, v) for v in (1, 2, 3)] == [3, 2, 3]


def test_a_name_bound_without_an_operator_is_found_when_it_is_read() -> None:
    """`shortcut = x` leaves no trace, but `x + shortcut` reads a tensor that no known name holds."""
    model = graph(
        ("relu", (0,), "block/block.a", "1: x = self.block(x) | 11: x = self.a(x)"),
        ("relu", (1,), "block/block.b", "1: x = self.block(x) | 13: x = self.b(x)"),
        ("add", (2, 1), "block", "1: x = self.block(x) | 14: x = x + shortcut"),
        ("relu", (3,), "block/block.c", "1: x = self.block(x) | 15: x = self.c(x)"),
    )
    assert death(model, Runtime.EAGER, 1) == 3
    assert death(model, Runtime.EAGER, 2) == 2


def test_a_part_of_a_longer_statement_binds_nothing() -> None:
    model = graph(
        ("relu", (0,), "block/block.a", "1: x = self.block(x) | 12: self.a(x),"),
        ("add", (1, 0), "block", "1: x = self.block(x) | 11: y = torch.add("),
        ("relu", (2,), "block/block.b", "1: x = self.block(x) | 13: return self.b(y)"),
    )
    assert death(model, Runtime.EAGER, 1) == 1


def test_a_target_above_a_chain_of_calls_holds_what_the_chain_put_out() -> None:
    """`q = (`, and the calls on lines below: no frame shows the target, but the next statement reads it."""
    chain = graph(
        ("linear", (0,), "", "2: self.qkv(x)"),
        ("permute", (1,), "", "3: .permute(1, 0)"),
        ("softmax", (2,), "", "5: mixed = softmax(q)"),
        ("linear", (3,), "", "6: mixed = self.out(mixed)"),
        ("add", (4, 0), "", "7: return mixed + x"),
    )
    assert death(chain, Runtime.GRAPH, 2) == 2
    assert death(chain, Runtime.EAGER, 2) == 4, "q is a local until the function returns"
    assert death(chain, Runtime.EAGER, 1) == 1, "what the chain passes on has no name"


def test_a_loop_over_a_list_leaves_the_list_as_it_was() -> None:
    """`for feature in features: top = feature + top`: features keeps them until the function returns."""
    model = graph(
        ("relu", (0,), "", "1: x = self.a(x)"),
        ("relu", (1,), "", "1: x = self.a(x)"),
        ("relu", (2,), "", "1: x = self.a(x)"),
        ("tanh", (3,), "", "2: top = self.top(x)"),
        ("add", (1, 4), "", "3: top = lateral(feature) + top"),
        ("add", (2, 5), "", "3: top = lateral(feature) + top"),
        ("relu", (6,), "", "4: top = self.b(top)"),
        ("relu", (7,), "", "5: return self.c(top)"),
    )
    assert death(model, Runtime.GRAPH, 1) == 4
    assert death(model, Runtime.EAGER, 1) == 7


def test_a_line_that_hands_modules_to_a_method_is_run_turn_by_turn() -> None:
    """`for pair in self.ups: x = self._block(pair, cat([x, skip]))`: each turn lets go of the x of the one before."""
    line = "5: x = self._block(pair, torch.cat([x, skip], 1))"
    ups = graph(
        ("conv2d", (0,), "stem", "1: x = self.stem(x) | 11: return self.conv(x)"),
        ("concat", (1, 0), "", line),
        ("conv2d", (2,), "first0", f"{line} | 11: return self.conv(x)"),
        ("conv2d", (3,), "second0", f"{line} | 11: return self.conv(x)"),
        ("concat", (4, 0), "", line),
        ("conv2d", (5,), "first1", f"{line} | 11: return self.conv(x)"),
        ("conv2d", (6,), "second1", f"{line} | 11: return self.conv(x)"),
        ("relu", (7,), "act", "7: return self.act(x) | 12: return relu(x)"),
    )
    assert death(ups, Runtime.EAGER, 1) == 3
    assert death(ups, Runtime.EAGER, 4) == 6


def test_what_a_helper_method_reads_and_puts_out_lives_until_it_is_done() -> None:
    """Of `self.merge(x)` the lines are unknown (only frames of `forward` are recorded), its operators are not."""
    model = graph(
        ("concat", (0, 0), "layer", "1: x = self.layer(x) | 11: x = self.merge(x)"),
        ("conv2d", (1,), "layer/layer.conv", "1: x = self.layer(x) | 11: x = self.merge(x)"),
        ("relu", (2,), "layer/layer.act", "1: x = self.layer(x) | 11: x = self.merge(x)"),
        ("relu", (3,), "layer/layer.last", "1: x = self.layer(x) | 12: return self.last(x)"),
    )
    assert death(model, Runtime.EAGER, 1) == 2
    assert death(model, Runtime.GRAPH, 1) == 1


def test_views_and_dropout_in_evaluation_share_a_storage() -> None:
    model = graph(
        ("conv2d", (0,), "", ""),
        ("reshape", (1,), "", ""),
        ("dropout", (2,), "", ""),
        ("relu", (3,), "", ""),
        ("relu", (4,), "", ""),
        views=frozenset({2}),
    )
    assert storages(model) == (0, 1, 1, 1, 4, 5)
    assert lifetimes(model, Runtime.GRAPH).allocated == ((1,), (), (), (4,), (5,))
    assert death(model, Runtime.GRAPH, 1) == 3


def test_autograd_keeps_what_backward_reads() -> None:
    """relu saves its result, a product of two weights' descendants both factors, an addition nothing."""
    model = graph(("conv2d", (0,), "", ""), ("relu", (1,), "", ""), ("add", (2, 2), "", ""), ("mean", (3,), "", ""))
    weights = replace(model, values=(replace(model.values[0], kind=ValueKind.PARAMETER), *model.values[1:]))
    lives = lifetimes(weights, Runtime.EAGER, Mode.AUTOGRAD)
    assert set(lives.kept) == {2, 4}
    assert [v for freed in lives.freed for v in freed] == [1, 3]
    assert set(lifetimes(model, Runtime.EAGER, Mode.AUTOGRAD).kept) == {4}, "nothing requires a gradient"


def test_autograd_keeps_the_indices_of_a_pooling() -> None:
    model = graph(("max_pool2d", (0,), "", ""), ("relu", (1,), "", ""))
    weights = replace(model, values=(replace(model.values[0], kind=ValueKind.PARAMETER), *model.values[1:]))
    assert lifetimes(weights, Runtime.EAGER, Mode.AUTOGRAD).extras == (8 * SPEC.numel, 0)
    assert lifetimes(weights, Runtime.EAGER).extras == (0, 0)


@LIGHT
@given(model_graphs())
def test_every_storage_is_allocated_once_and_freed_once(model: ModelGraph) -> None:
    for runtime in (Runtime.GRAPH, Runtime.EAGER):
        lives = lifetimes(model, runtime)
        born = {storage: index for index, ids in enumerate(lives.allocated) for storage in ids}
        died = {storage: index for index, ids in enumerate(lives.freed) for storage in ids}
        assert sum(map(len, lives.allocated)) == len(born)
        assert sum(map(len, lives.freed)) == len(died)
        assert born.keys() == died.keys() | set(lives.kept)
        assert died.keys().isdisjoint(lives.kept)
        owner = storages(model)
        for index, operator in enumerate(model.operators):
            for value in operator.inputs:
                assert died.get(owner[value], index) >= index, "freed before its last use"


@LIGHT
@given(model_graphs())
def test_eager_never_frees_earlier_than_a_graph(model: ModelGraph) -> None:
    eager, by_use = lifetimes(model, Runtime.EAGER), lifetimes(model, Runtime.GRAPH)
    last = {storage: index for index, ids in enumerate(by_use.freed) for storage in ids}
    for index, ids in enumerate(eager.freed):
        assert all(index >= last[storage] for storage in ids)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("x = self.relu(self.bn(x))", Statement(("x",), frozenset({"x"}), methods=frozenset({"relu", "bn"}))),
        ("q, k, v = qkv.unbind(0)", Statement(("q", "k", "v"), frozenset({"qkv"}), operations=1)),
        ("q, k = p[0], p[1]", Statement(("q", "k"), frozenset({"p"}), unpacks=True)),
        ("x += shortcut", Statement(("x",), frozenset({"x", "shortcut"}), operations=1)),
        (
            "outs.append(self.pool(x))",
            Statement((), frozenset({"x"}), grows="outs", methods=frozenset({"pool"}), operations=1),
        ),
        ("return torch.cat(outs, 1)", Statement((), frozenset({"outs"}), operations=1, returns=True)),
        (
            "x = up(x) + skips.pop()",
            Statement(("x",), frozenset({"x"}), "", frozenset({"skips"}), callees=1, operations=3),
        ),
        ("x = F.scaled_dot_product_attention(", Statement(("x",), frozenset(), callees=1, operations=1)),
        ("attn_mask=attn_mask, is_causal=True)", Statement((), frozenset({"attn_mask"}), callees=1)),
    ],
)
def test_what_a_line_binds_and_reads(code: str, expected: Statement) -> None:
    assert parse(code) == expected
