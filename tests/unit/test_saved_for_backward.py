"""What is kept for backward, held against what PyTorch itself saves for the same module."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dippm.attention import copied_outputs
from dippm.case import Runtime
from dippm.frontend import graph_from_module
from dippm.graph import ModelGraph, ValueKind
from dippm.replay.lifetimes import storages
from dippm.replay.saved import kept_for_backward, require_gradients


class Around(nn.Module):
    """A convolution in front, so that a gradient is required; then what is asked about, then a reduction."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.register_buffer("table", torch.ones(8, 1, 1))
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, self.conv(x)).sum()


class _Saved:
    """A saved tensor for as long as a backward node holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_by_pytorch(module: nn.Module, x: Tensor) -> int:
    """Bytes of the storages that the autograd graph of a pass keeps, those of the module and its input left out."""
    held: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        one = _Saved(tensor)
        held.add(one)
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        output = module(x)
    there = {t.untyped_storage().data_ptr() for t in (x, *module.parameters(), *module.buffers())}
    kept = {s.data_ptr(): s.nbytes() for one in held for s in [one.tensor.untyped_storage()]}
    assert output.requires_grad
    return sum(size for at, size in kept.items() if at not in there)


def kept(graph: ModelGraph) -> int:
    """The same of the graph."""
    backward = kept_for_backward(graph, Runtime.EAGER)
    own = {graph.storage(value) for value in backward.values}
    return sum(graph.values[i].spec.nbytes for i in own if graph.values[i].kind is ValueKind.RESULT) + sum(
        backward.extras
    )


def heads(x: Tensor) -> Tensor:
    """A batch of pictures as (batch, windows, heads, positions, width): five dimensions, as windowed attention has."""
    return x.reshape(x.shape[0], 4, 4, 2, 2, 8).permute(0, 1, 4, 2, 3, 5).reshape(x.shape[0], 4, 2, 8, 8)


CASES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "relu": lambda m, x: functional.relu(x),
    "elu": lambda m, x: functional.elu(x),
    "elu in place": lambda m, x: functional.elu(x * m.scale, inplace=True),
    "silu in place": lambda m, x: functional.silu(x * m.scale, inplace=True),
    "glu": lambda m, x: functional.glu(x, 1),
    "zeros around": lambda m, x: functional.pad(x, (1, 1, 1, 1)),
    "mirrored border": lambda m, x: functional.pad(x, (1, 1, 1, 1), mode="reflect"),
    "a weight's product": lambda m, x: x * m.scale,
    "a buffer's product": lambda m, x: x * m.table,
    "a number's product": lambda m, x: x * 0.5,
    "quotient": lambda m, x: x.exp() / x.sum(1, keepdim=True),
    "a quotient by a number": lambda m, x: x / 2.0,
    "a quotient by a buffer": lambda m, x: x / (m.table + 1),
    "attention spelled out": lambda m, x: (x @ x.mT / 8).softmax(-1) @ x,
    "logsumexp": lambda m, x: x.logsumexp(1),
    "largest of a dimension": lambda m, x: x.max(1).values,
    "the largest": lambda m, x: x.topk(2, 1).values,
    "pooling to one": lambda m, x: functional.adaptive_avg_pool2d(x, 1),
    "pooling to two": lambda m, x: functional.adaptive_avg_pool2d(x, 2),
    "quotient in place": lambda m, x: x.exp().div_(x.sum(1, keepdim=True)),
    "attention of five dimensions": lambda m, x: functional.scaled_dot_product_attention(heads(x), heads(x), heads(x)),
    "a branch that leads nowhere": lambda m, x: (functional.softplus(x), x + 1)[1],
}


@pytest.mark.parametrize("name", CASES)
def test_as_much_is_kept_as_pytorch_saves(name: str) -> None:
    module, x = Around(CASES[name]), torch.randn(2, 3, 8, 8)
    graph = graph_from_module(module, (x,), batch=2)
    assert kept(graph) == saved_by_pytorch(module, x)


def test_buffers_require_no_gradient() -> None:
    graph = graph_from_module(Around(CASES["a buffer's product"]), (torch.randn(2, 3, 8, 8),), batch=2)
    needs = require_gradients(graph)
    of_kind = {kind: [needs[i] for i, v in enumerate(graph.values) if v.kind is kind] for kind in ValueKind}
    assert all(of_kind[ValueKind.PARAMETER])
    assert of_kind[ValueKind.BUFFER] == [False]


class Attention(nn.Module):
    """Heads of a width, their queries as a view of a projection or normed (and so contiguous)."""

    def __init__(self, width: int, *, normed: bool) -> None:
        super().__init__()
        self.width = width
        self.qkv = nn.Linear(32, 6 * width)
        self.norm = nn.LayerNorm(width) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 2, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(self.norm(q), k, v)
        return mixed.transpose(1, 2).reshape(x.shape[0], -1, 2 * self.width)


def attention(width: int, *, normed: bool = False, dtype: str = "float16") -> ModelGraph:
    return graph_from_module(Attention(width, normed=normed), (torch.randn(2, 16, 32),), batch=2).cast(dtype)


def test_flash_attention_saves_its_operands_padded() -> None:
    """No GPU here: `pad_last_dim` in `aten/src/ATen/native/transformers/attention.cpp`."""
    operand = 2 * 2 * 16 * 2  # batch, heads, positions, bytes: of one column
    log_sum_exps = 4 * 2 * 2 * 16
    extras = {width: max(kept_for_backward(attention(width), Runtime.EAGER).extras) for width in (16, 12)}
    assert extras == {16: log_sum_exps, 12: operand * (3 * 16 + 4) + log_sum_exps}


def test_flash_attention_lays_its_output_out_as_the_query_lies() -> None:
    found = {
        (normed, dtype): len(copied_outputs(attention(16, normed=normed, dtype=dtype), Runtime.EAGER))
        for normed in (False, True)
        for dtype in ("float32", "float16")
    }
    assert found == {(False, "float32"): 0, (False, "float16"): 0, (True, "float32"): 0, (True, "float16"): 1}
    graph = attention(16, normed=True)
    (copied,) = copied_outputs(graph, Runtime.EAGER)
    owner = storages(graph, frozenset({copied}))
    assert owner[copied] == copied
    assert owner[graph.outputs[0]] == copied
    assert storages(graph)[copied] != copied, "on the CPU, where it was exported, it is a view"


def test_group_norm_saves_a_dense_copy_of_what_comes_channels_last() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 8), nn.GroupNorm(1, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.linear(x).permute(0, 3, 1, 2))

    graph = graph_from_module(Normed(), (torch.randn(2, 4, 4, 8),), batch=2)
    at = next(i for i, o in enumerate(graph.operators) if o.kind == "group_norm")
    backward = kept_for_backward(graph, Runtime.EAGER)
    assert backward.extras[at] == 4 * 2 * 4 * 4 * 8 + 2 * 4 * 2
    assert graph.operators[at].inputs[0] not in backward.values
