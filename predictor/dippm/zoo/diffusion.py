"""The denoising U-Net of latent diffusion (Rombach et al., 2022): residual blocks, attention to itself and to text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Group norm, SiLU, convolution, twice, with the time embedding added between."""

    def __init__(self, width_in: int, width_out: int, time: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, width_in), nn.Conv2d(width_in, width_out, 3, padding=1)
        self.time = nn.Linear(time, width_out)
        self.norm2, self.conv2 = nn.GroupNorm(32, width_out), nn.Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """[batch, width_in, h, w] to [batch, width_out, h, w]."""
        hidden = self.conv1(nn.functional.silu(self.norm1(x)))
        hidden = hidden + self.time(nn.functional.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(nn.functional.silu(self.norm2(hidden)))  # type: ignore[no-any-return]


class Attend(nn.Module):
    """Multi-head attention from x to `to` (x itself where none is given)."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, to: Tensor | None = None) -> Tensor:
        """[batch, positions, width]."""
        to = x if to is None else to
        batch, positions, width = x.shape
        q, k, v = (
            t.view(batch, -1, self.heads, width // self.heads).transpose(1, 2)
            for t in (self.to_q(x), self.to_k(to), self.to_v(to))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.to_out(mixed.transpose(1, 2).reshape(batch, positions, width))  # type: ignore[no-any-return]


class SpatialTransformer(nn.Module):
    """Positions of a picture attend to each other and to the text, then a gated MLP."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = (
            nn.GroupNorm(32, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.norm1, self.attn1 = nn.LayerNorm(width), Attend(width, width, heads)
        self.norm2, self.attn2 = nn.LayerNorm(width), Attend(width, context, heads)
        self.norm3, self.gate, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, width * 8),
            nn.Linear(width * 4, width),
        )

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """[batch, width, h, w] to the same."""
        batch, width, height, breadth = x.shape
        tokens = self.proj_in(self.norm(x).permute(0, 2, 3, 1).reshape(batch, height * breadth, width))
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = tokens + self.attn2(self.norm2(tokens), text)
        value, gate = self.gate(self.norm3(tokens)).chunk(2, -1)
        tokens = tokens + self.down(value * nn.functional.gelu(gate))
        back = self.proj_out(tokens).reshape(batch, height, breadth, width).permute(0, 3, 1, 2)
        return x + back  # type: ignore[no-any-return]


class DiffusionUNet(nn.Module):
    """Latents, timestep and text states in, noise out."""

    def __init__(
        self,
        width: int = 128,
        multiples: Sequence[int] = (1, 2, 4, 4),
        blocks: int = 2,
        context: int = 768,
        heads: int = 8,
    ) -> None:
        super().__init__()
        self.width, time = width, width * 4
        widths = [width * m for m in multiples]
        self.time = nn.Sequential(nn.Linear(width, time), nn.SiLU(), nn.Linear(time, time))
        self.conv_in = nn.Conv2d(4, width, 3, padding=1)
        self.down, self.downsample, skips, current = nn.ModuleList(), nn.ModuleList(), [width], width
        for level, out in enumerate(widths):
            for _ in range(blocks):
                attention = SpatialTransformer(out, context, heads) if level < len(widths) - 1 else None
                self.down.append(
                    nn.ModuleList([ResidualBlock(current, out, time), *([attention] if attention else [])])
                )
                current = out
                skips.append(out)
            if level < len(widths) - 1:
                self.downsample.append(nn.Conv2d(out, out, 3, 2, 1))
                skips.append(out)
        self.middle1, self.middle2 = ResidualBlock(current, current, time), ResidualBlock(current, current, time)
        self.middle_attention = SpatialTransformer(current, context, heads)
        self.up, self.upsample = nn.ModuleList(), nn.ModuleList()
        for level, out in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                attention = SpatialTransformer(out, context, heads) if level < len(widths) - 1 else None
                block = ResidualBlock(current + skips.pop(), out, time)
                self.up.append(nn.ModuleList([block, *([attention] if attention else [])]))
                current = out
            if level > 0:
                self.upsample.append(nn.Conv2d(out, out, 3, padding=1))
        self.norm_out, self.conv_out = nn.GroupNorm(32, width), nn.Conv2d(width, 4, 3, padding=1)
        self.blocks = blocks

    def forward(self, latents: Tensor, step: Tensor, text: Tensor) -> Tensor:
        """[batch, 4, h, w], [batch, 1] and [batch, tokens, context] to [batch, 4, h, w]."""
        half = self.width // 2
        powers = torch.exp(torch.arange(half, device=latents.device, dtype=torch.float32) * (-math.log(1e4) / half))
        angles = step.float() * powers[None, :]
        time = self.time(torch.cat([torch.cos(angles), torch.sin(angles)], -1).to(latents.dtype))
        x = self.conv_in(latents)
        skips, samplers = [x], iter(self.downsample)
        for index, pair in enumerate(self.down):
            x = self._block(pair, x, time, text)
            skips.append(x)
            if (index + 1) % self.blocks == 0 and index + 1 < len(self.down):
                x = next(samplers)(x)
                skips.append(x)
        x = self.middle2(self.middle_attention(self.middle1(x, time), text), time)
        samplers = iter(self.upsample)
        for index, pair in enumerate(self.up):
            x = self._block(pair, torch.cat([x, skips.pop()], 1), time, text)
            if (index + 1) % (self.blocks + 1) == 0 and index + 1 < len(self.up):
                x = next(samplers)(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(nn.functional.silu(self.norm_out(x)))  # type: ignore[no-any-return]

    @staticmethod
    def _block(pair: nn.Module, x: Tensor, time: Tensor, text: Tensor) -> Tensor:
        block, *attention = pair.children()
        x = block(x, time)
        return attention[0](x, text) if attention else x
