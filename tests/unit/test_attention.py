"""Attention as a GPU runs it: the kernel, the masks that eager Python leaves out, and how the output lies."""

from __future__ import annotations

from dataclasses import replace

import pytest
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


def create_causal_mask(x: Tensor, window: int = 0) -> Tensor:
    """Named as transformers names its own: an exported program has the line that calls it."""
    rows, columns = torch.arange(TOKENS)[None, None, :, None], torch.arange(TOKENS)[None, None, None, :]
    shown = rows >= columns
    return (shown & (columns > rows - window) if window else shown).expand(x.shape[0], 1, TOKENS, TOKENS)


class Block(nn.Module):
    """Causal attention of which a mask is spelled out, with a bias or with grouped heads where asked for."""

    def __init__(self, *, biased: bool = False, groups: int = 1, window: int = 0) -> None:
        super().__init__()
        self.project = nn.Linear(WIDTH, WIDTH)
        self.groups = groups
        self.window = window
        self.bias = nn.Parameter(torch.zeros(1, HEADS, TOKENS, TOKENS)) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        shown = create_causal_mask(x, self.window)
        return self.attend(x, shown)

    def attend(self, x: Tensor, shown: Tensor) -> Tensor:
        query = self.project(x)
        key = query[:, :: self.groups]
        if self.groups > 1:
            repeated = key[:, :, None].expand(x.shape[0], HEADS // self.groups, self.groups, TOKENS, WIDTH)
            key = repeated.reshape(x.shape[0], HEADS, TOKENS, WIDTH)
        mask = shown if self.bias is None else torch.where(shown, self.bias, float("-inf"))
        return functional.scaled_dot_product_attention(query, key, key, attn_mask=mask)


class Padded(Block):
    """Where the input says which positions count."""

    def forward(self, x: Tensor) -> Tensor:
        shown = create_causal_mask(x) & (x[:, :1, :, 0] > 0)[:, :, None, :]
        return self.attend(x, shown)


class Own(Block):
    """A module that makes its mask itself, whenever it runs."""

    def forward(self, x: Tensor) -> Tensor:
        shown = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()[None, None].expand(x.shape[0], 1, TOKENS, TOKENS)
        return self.attend(x, shown)


def graph_of(module: nn.Module, batch: int = 3) -> ModelGraph:
    """The module's graph, its lines in a file that is named as those of transformers are."""
    graph = graph_from_module(module, (torch.randn(batch, HEADS, TOKENS, WIDTH),), batch=batch)
    renamed = (replace(o, source=o.source.replace("test_attention.py", "modeling_block.py")) for o in graph.operators)
    return replace(graph, operators=tuple(renamed))


def allocated(graph: ModelGraph, runtime: Runtime) -> set[str]:
    """Kinds of the operators that allocate an output."""
    lives = lifetimes(graph, runtime, Mode.INFERENCE)
    return {o.kind for o, storages in zip(graph.operators, lives.allocated, strict=True) if storages}


def test_a_mask_of_transformers_is_not_made_in_eager_python() -> None:
    graph = graph_of(Block())
    assert {"compare", "linear", "scaled_dot_product_attention"} <= allocated(graph, Runtime.GRAPH)
    for runtime in (Runtime.EAGER, Runtime.AUTO):
        assert allocated(graph, runtime) == {"linear", "scaled_dot_product_attention"}
    assert not masks_left_out(graph, Runtime.GRAPH).values


def test_a_window_that_is_shorter_than_the_tokens_hides_some() -> None:
    assert allocated(graph_of(Block(window=TOKENS)), Runtime.EAGER) == {"linear", "scaled_dot_product_attention"}
    narrow = graph_of(Block(window=TOKENS // 2))
    assert {"compare", "bitwise"} <= allocated(narrow, Runtime.EAGER)
    at = next(o for o in narrow.operators if o.kind == "scaled_dot_product_attention")
    call = attention_call(narrow, at, strides_of(narrow), Runtime.EAGER)
    assert call.mask == narrow.values[at.inputs[3]].spec


@pytest.mark.parametrize("module", [Padded(), Own()])
def test_a_mask_that_is_made_whenever_the_model_runs_is_made(module: nn.Module) -> None:
    graph = graph_of(module)
    assert masks_left_out(graph, Runtime.EAGER) == masks_left_out(graph, Runtime.GRAPH)
    assert allocated(graph, Runtime.EAGER) == allocated(graph, Runtime.GRAPH)


def test_a_file_without_lines_is_taken_to_be_of_transformers() -> None:
    graph = graph_of(Block())
    bare = replace(graph, operators=tuple(replace(o, source="") for o in graph.operators))
    assert masks_left_out(bare, Runtime.EAGER) == masks_left_out(graph, Runtime.EAGER)


def test_a_bias_is_handed_over_as_it_is() -> None:
    graph = graph_of(Block(biased=True))
    assert "where" in allocated(graph, Runtime.GRAPH)
    assert allocated(graph, Runtime.EAGER) == {"linear", "scaled_dot_product_attention"}
    assert "where" in allocated(graph_of(Padded(biased=True)), Runtime.EAGER)


def test_grouped_heads_are_not_repeated() -> None:
    graph = graph_of(Block(groups=2))
    left_out = masks_left_out(graph, Runtime.EAGER)
    at = next(i for i, o in enumerate(graph.operators) if o.kind == "scaled_dot_product_attention")
    key = graph.operators[at].inputs[1]
    assert graph.values[left_out.stands_for[key]].spec.numel * 2 == graph.values[key].spec.numel
    assert "reshape" in allocated(graph, Runtime.GRAPH)
    assert allocated(graph, Runtime.EAGER) == {"linear", "scaled_dot_product_attention"}
    call = attention_call(graph, graph.operators[at], strides_of(graph), Runtime.EAGER)
    assert (call.mathematical, call.grouped, call.mask) == (True, True, None)
    assert call.scores == 3 * HEADS * TOKENS * TOKENS
