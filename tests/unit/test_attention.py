"""Attention as a GPU runs it: the kernel, the masks that eager Python leaves out, and how the output lies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from dippm.attention import attention_call, masks_left_out
from dippm.case import Mode, Runtime
from dippm.frontend import graph_from_module
from dippm.graph import ModelGraph
from dippm.replay.lifetimes import lifetimes
from dippm.strides import strides_of

TOKENS, HEADS, WIDTH = 16, 4, 8


class Block(nn.Module):
    """Causal attention of which a mask is spelled out, with a bias or with grouped heads where asked for."""

    def __init__(self, *, biased: bool = False, groups: int = 1) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)
        self.groups = groups
        self.bias = nn.Parameter(torch.zeros(1, HEADS, TOKENS, TOKENS)) if biased else None

    def shown(self, x: Tensor) -> Tensor:
        return torch.arange(TOKENS)[None, None, :, None] >= torch.arange(TOKENS)[None, None, None, :]

    def forward(self, x: Tensor) -> Tensor:
        shown = self.shown(x).expand(x.shape[0], 1, TOKENS, TOKENS)
        query = self.project(x)
        key = query[:, :: self.groups]
        if self.groups > 1:
            repeated = key[:, :, None].expand(x.shape[0], HEADS // self.groups, self.groups, TOKENS, WIDTH)
            key = repeated.reshape(x.shape[0], HEADS, TOKENS, WIDTH)
        mask = shown if self.bias is None else torch.where(shown, self.bias, float("-inf"))
        return functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)


class Padded(Block):
    """Where the input says which positions count."""

    def shown(self, x: Tensor) -> Tensor:
        return (x[:, :1, :, 0] > 0)[:, :, None, :]


def graph_of(module: nn.Module, batch: int = 3) -> ModelGraph:
    return graph_from_module(module, (torch.randn(batch, HEADS, TOKENS, WIDTH),), batch=batch)


def allocated(graph: ModelGraph, runtime: Runtime) -> set[str]:
    """Kinds of the operators that allocate an output."""
    lives = lifetimes(graph, runtime, Mode.INFERENCE)
    return {o.kind for o, storages in zip(graph.operators, lives.allocated, strict=True) if storages}


def test_a_mask_that_hides_nothing_is_not_made_in_eager_python() -> None:
    graph = graph_of(Block())
    assert {"compare", "linear", "scaled_dot_product_attention"} <= allocated(graph, Runtime.GRAPH)
    assert allocated(graph, Runtime.EAGER) == {"linear", "scaled_dot_product_attention"}
    assert not masks_left_out(graph, Runtime.GRAPH).values


def test_a_mask_that_an_input_has_a_say_in_is_made() -> None:
    graph = graph_of(Padded())
    assert masks_left_out(graph, Runtime.EAGER).values == frozenset()
    assert "compare" in allocated(graph, Runtime.EAGER)


def test_a_bias_is_handed_over_as_it_is() -> None:
    graph = graph_of(Block(biased=True))
    assert "where" in allocated(graph, Runtime.GRAPH)
    assert allocated(graph, Runtime.EAGER) == {"linear", "scaled_dot_product_attention"}
    assert "where" in allocated(graph_of(type("Both", (Padded,), {})(biased=True)), Runtime.EAGER)


def test_grouped_heads_are_not_repeated() -> None:
    graph = graph_of(Block(groups=2))
    left_out = masks_left_out(graph, Runtime.EAGER)
    at = next(i for i, o in enumerate(graph.operators) if o.kind == "scaled_dot_product_attention")
    key = graph.operators[at].inputs[1]
    assert graph.values[left_out.stands_for[key]].spec.numel * 2 == graph.values[key].spec.numel
    assert "reshape" in allocated(graph, Runtime.GRAPH)
    assert "reshape" not in allocated(graph, Runtime.EAGER)
    call = attention_call(graph, graph.operators[at], strides_of(graph), Runtime.EAGER)
    assert (call.mathematical, call.grouped, call.mask) == (True, True, None)
    assert call.scores == 3 * HEADS * TOKENS * TOKENS
