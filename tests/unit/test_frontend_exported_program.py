"""The path of the data set and of `.pt2` files: a module to a ModelGraph."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from dippm.errors import UnsupportedOperator
from dippm.frontend import graph_from_module
from dippm.frontend.meta_run import MetaRun
from dippm.graph import ModelGraph, Operator, ValueKind
from dippm.signature import signature


def graph_of(module: nn.Module, *shapes: tuple[int, ...]) -> ModelGraph:
    module = module.to("meta").eval()
    return graph_from_module(module, [torch.empty(s, device="meta") for s in shapes], batch=shapes[0][0])


def named(graph: ModelGraph, kind: str) -> list[Operator]:
    return [o for o in graph.operators if o.kind == kind]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding="same", bias=True)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.project = nn.Conv2d(8, 8, 1, stride=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm(self.conv(x)))
        shortcut = x
        x = self.norm(x)
        x += shortcut
        return self.relu(self.project(x))


def test_operators_are_those_of_the_framework_in_order() -> None:
    graph = graph_of(Residual(), (2, 3, 16, 16))
    assert [o.kind for o in graph.operators] == [
        "conv2d", "batch_norm", "relu", "batch_norm", "add", "conv2d", "relu",
    ]  # fmt: skip
    conv = graph.operators[0]
    assert conv.attributes["padding"] == (1, 1)
    assert conv.attributes["kernel_size"] == (3, 3)
    assert len(conv.inputs) == 3, "a convolution with its bias is one operator"
    assert graph.values[conv.outputs[0]].spec.shape == (2, 8, 16, 16)
    assert "relax.nn.batch_norm" in graph.operators[1].relax


def test_a_module_called_twice_has_two_scopes() -> None:
    graph = graph_of(Residual(), (2, 3, 16, 16))
    assert [o.scope for o in named(graph, "batch_norm")] == [("", "norm"), ("", "norm@1")]
    assert [o.scope[-1] for o in named(graph, "relu")] == ["relu", "relu@1"]


def test_the_source_is_the_innermost_line_of_user_code() -> None:
    graph = graph_of(nn.Sequential(Residual()), (2, 3, 16, 16))
    lines = named(graph, "add")[0].source.split("\n")
    assert lines[0].startswith("test_frontend_exported_program.py:")
    assert lines[0].endswith(": x += shortcut")
    assert lines[-1].startswith("container.py:"), "the outermost module's line comes last"
    assert len(lines) == len(named(graph, "add")[0].scope)


def test_in_place_operators_share_the_storage_of_their_input() -> None:
    graph = graph_of(Residual(), (2, 3, 16, 16))
    relu, add = named(graph, "relu")[0], named(graph, "add")[0]
    assert graph.values[relu.outputs[0]].alias_of == relu.inputs[0]
    assert graph.values[add.outputs[0]].alias_of == add.inputs[0]
    assert graph.storage(graph.outputs[0]) == named(graph, "conv2d")[1].outputs[0]


class Views(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        free = x.reshape(x.shape[0], -1)
        copied = x.transpose(1, 2).reshape(x.shape[0], -1)
        left, right = free.chunk(2, dim=1)
        return left + right, copied


def test_a_reshape_is_a_view_only_where_strides_allow() -> None:
    graph = graph_of(Views(), (2, 4, 6))
    free, copied = named(graph, "reshape")
    assert graph.values[free.outputs[0]].alias_of == graph.inputs[0]
    assert graph.values[copied.outputs[0]].alias_of is None
    (split,) = named(graph, "split")
    assert [graph.storage(o) for o in split.outputs] == [graph.inputs[0]] * 2
    assert graph.outputs == (named(graph, "add")[0].outputs[0], copied.outputs[0])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, s, c = x.shape
        q, k, v = self.qkv(x).reshape(b, s, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, c)


def test_fused_attention_puts_out_what_the_next_reshape_needs_no_copy_of() -> None:
    graph = graph_of(Attention(), (2, 10, 32))
    (attention,) = named(graph, "scaled_dot_product_attention")
    assert graph.storage(graph.outputs[0]) == attention.outputs[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(8, 16, 3)
        self.lstm = nn.LSTM(16, 32, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, _ = self.lstm(self.conv(x).transpose(1, 2))
        return output[:, -1].softmax(-1)


def test_one_dimensional_and_recurrent_operators_go_through() -> None:
    graph = graph_of(Recurrent(), (2, 8, 50))
    (lstm,) = named(graph, "lstm")
    assert len(lstm.outputs) == 3
    assert named(graph, "conv1d")[0].attributes["kernel_size"] == (3,)
    assert graph.values[graph.outputs[0]].spec.shape == (2, 32)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 16)
        self.head = nn.Linear(16, 100, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("unused", torch.zeros(7))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(ids))


def test_tied_weights_are_held_once_and_unused_buffers_are_held() -> None:
    module = Tied().eval()
    graph = graph_from_module(module, {"ids": torch.zeros(3, 5, dtype=torch.long)}, batch=3)
    held = sum(graph.values[i].spec.nbytes for i in graph.parameter_ids)
    assert held == 100 * 16 * 4 + 7 * 4
    assert [graph.values[i].kind for i in graph.inputs] == [ValueKind.INPUT]


def test_an_operator_that_nobody_knows_is_refused_by_name() -> None:
    class Cholesky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.cholesky(x)

    with pytest.raises(UnsupportedOperator, match=r"linalg_cholesky"):
        graph_of(Cholesky(), (2, 4, 4))


def test_the_graph_survives_json_and_its_digest_ignores_scopes() -> None:
    graph = graph_of(Residual(), (2, 3, 16, 16))
    assert ModelGraph.from_dict(graph.to_dict()) == graph
    assert graph.digest == graph_of(nn.Sequential(Residual()), (2, 3, 16, 16)).digest


def test_the_digest_is_over_the_canonical_json() -> None:
    graph = graph_of(Residual(), (2, 3, 16, 16))
    first = replace(
        graph.operators[0], attributes={"stride": (1, 2), "p": 1, "q": 1.0, "align": True, "mode": "\u00e9"}
    )
    second = replace(graph.operators[1], attributes={"p": True, "q": 1}, relax=())
    odd = replace(graph, operators=(first, second, *graph.operators[2:]))
    for one in (graph, odd, replace(graph, open_batch=True)):
        body = one.to_dict()
        del body["format"]
        for value in body["values"]:
            value.pop("name", None)
        for operator in body["operators"]:
            operator.pop("scope", None)
            operator.pop("source", None)
        assert ("open_batch" in body) == one.open_batch, "every graph that has none keeps its digest"
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        assert one.digest == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_signatures_depend_on_the_work_and_not_on_names() -> None:
    graph = graph_of(Residual(), (2, 3, 16, 16))
    first, second = (i for i, o in enumerate(graph.operators) if o.kind == "batch_norm")
    assert signature(graph, first) == signature(graph, second)
    assert signature(graph, 0).startswith(
        "conv2d(float32[2,3,16,16],float32[8,3,3,3],float32[8])->(float32[2,8,16,16])"
    )
    half = graph.cast("float16")
    assert signature(half, 0).startswith("conv2d(float16[2,3,16,16]")
    relu = next(i for i, o in enumerate(graph.operators) if o.kind == "relu")
    assert "->(~float32" in signature(graph, relu), "an in-place operator allocates nothing"


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3)])
@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (1, 6, 1, 8), (5, 1, 1, 8)])
def test_calls_that_are_known_without_running_them_are_as_they_run(
    shape: tuple[int, ...], order: tuple[int, ...]
) -> None:
    aten = torch.ops.aten
    x = torch.empty(shape, device="meta").permute(order)
    width = x.shape[-1]
    weight, bias = torch.empty(16, width, device="meta"), torch.empty(16, device="meta")
    calls = [
        (aten.layer_norm.default, (x, [width])), (aten.layer_norm.default, (x, [width], bias[:width], bias[:width])),
        (aten.linear.default, (x, weight)), (aten.linear.default, (x, weight, bias)), (aten.gelu.default, (x,)),
        (aten.roll.default, (x, [1, 1], [0, 1])), (aten.add.Tensor, (x, x)), (aten.add.Tensor, (x, 2)),
        (aten.mul.Tensor, (x, x[..., :1])), (aten.mul.Tensor, (x, 0.5)),
    ]  # fmt: skip
    graph, run = fx.Graph(), MetaRun()
    for target, args in calls:
        node = graph.call_function(target, args)
        wanted = target(*args)
        for found in (run(node, {}), run(node, {})):
            assert (found.shape, found.stride(), found.dtype) == (wanted.shape, wanted.stride(), wanted.dtype), target
            assert found.untyped_storage().nbytes() == wanted.untyped_storage().nbytes()


def test_what_hands_a_storage_on_is_run_every_time() -> None:
    aten, run, graph = torch.ops.aten, MetaRun(), fx.Graph()
    for _ in range(2):
        x = torch.empty(2, 3, 4, device="meta")
        for target, args in ((aten.dropout.default, (x, 0.5, False)), (aten.reshape.default, (x, [6, 4]))):
            found = run(graph.call_function(target, args), {})
            assert found.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert run(graph.call_function(aten.relu_.default, (x,)), {}) is x
