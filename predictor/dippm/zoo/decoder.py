"""A decoder with its key-value cache among inputs and outputs: a prefill, or one decode step against a full cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding (Su et al., 2021) of [batch, heads, steps, width] by angles [steps, width / 2]."""
    left, right = x.chunk(2, -1)
    cos, sin = torch.cos(angles).to(x.dtype), torch.sin(angles).to(x.dtype)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


class RootMeanSquare(nn.Module):
    """RMS norm computed in fp32, as Llama has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., width], scaled to a root mean square of one."""
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * scaled.to(x.dtype)


class CachedLayer(nn.Module):
    """One decoder layer (grouped-query attention, gated MLP) that appends to its cache, as a dynamic cache does."""

    def __init__(self, width: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.each = heads, kv_heads, width // heads
        self.before, self.after = RootMeanSquare(width), RootMeanSquare(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.each, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.each, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, angles: Tensor, cache: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(states, keys, values); `cache` is [batch, 2, kv heads, context, width of a head]."""
        batch, steps, width = x.shape
        normed = self.before(x)
        q = self.q_proj(normed).view(batch, steps, self.heads, self.each).transpose(1, 2)
        k = self.k_proj(normed).view(batch, steps, self.kv_heads, self.each).transpose(1, 2)
        v = self.v_proj(normed).view(batch, steps, self.kv_heads, self.each).transpose(1, 2)
        q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = torch.cat([cache[:, 0], k], 2), torch.cat([cache[:, 1], v], 2)
        times = self.heads // self.kv_heads
        wide_k, wide_v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        mixed = nn.functional.scaled_dot_product_attention(q, wide_k, wide_v, is_causal=steps > 1)
        x = x + self.o_proj(mixed.transpose(1, 2).reshape(batch, steps, width))
        normed = self.after(x)
        x = x + self.down_proj(nn.functional.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return x, k, v


class CachedDecoder(nn.Module):
    """A Llama-like decoder; with `context` it takes that many cached positions for each layer. Returns all caches."""

    def __init__(
        self,
        vocabulary: int = 32000,
        width: int = 1024,
        layers: int = 12,
        heads: int = 16,
        kv_heads: int = 4,
        hidden: int = 2816,
        context: int = 0,
    ) -> None:
        super().__init__()
        self.context, self.each = context, width // heads
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(CachedLayer(width, heads, kv_heads, hidden) for _ in range(layers))
        self.norm = RootMeanSquare(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor, cache: Tensor | None = None) -> tuple[Tensor, ...]:
        """[batch, steps] ids and [batch, layers, 2, kv heads, context, width] to last logits and grown caches."""
        x = self.embed_tokens(tokens)
        positions = torch.arange(self.context, self.context + tokens.shape[1], device=x.device, dtype=torch.float32)
        powers = torch.arange(0, self.each, 2, device=x.device, dtype=torch.float32) / self.each
        angles = positions[:, None] * torch.pow(10000.0, -powers)[None, :]
        caches = []
        for index, layer in enumerate(self.layers):
            x, k, v = layer(x, angles, None if cache is None else cache[:, index])
            caches += [k, v]
        return (self.head(self.norm(x)[:, -1]), *caches)
