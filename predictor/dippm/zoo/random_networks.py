"""Networks drawn at random: operators, widths, branches and skips that no zoo has.

`RandomNetwork(seed)` is the same module for the same seed on every machine: only `random.Random` decides.
"""

from __future__ import annotations

import itertools
from random import Random

import torch
from torch import Tensor, nn

ACTIVATIONS: tuple[type[nn.Module], ...] = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Sigmoid, nn.Tanh, nn.ReLU6, nn.Mish,
)  # fmt: skip


class ConvBlock(nn.Module):
    """Convolution, normalisation, activation; kernel, groups and stride drawn at random."""

    def __init__(self, random: Random, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        kernel = random.choice((1, 3, 3, 3, 5, 7))
        shared = [g for g in (2, 4, 8, 16) if width_in % g == 0 and width_out % g == 0]
        groups = 1
        if random.random() < 0.3 and shared:
            groups = random.choice(shared)
        if random.random() < 0.2 and width_in == width_out:
            groups = width_in
        bias = random.random() < 0.4
        self.conv = nn.Conv2d(width_in, width_out, kernel, stride, kernel // 2, groups=groups, bias=bias)
        self.norm: nn.Module = random.choice(
            (nn.BatchNorm2d(width_out), nn.BatchNorm2d(width_out), nn.GroupNorm(1, width_out), nn.Identity())
        )
        activation = random.choice(ACTIVATIONS)
        inplace = random.random() < 0.5 and activation in (nn.ReLU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ReLU6)
        self.act = activation(inplace=True) if inplace else activation()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, height, width] to [batch, out, height / stride, width / stride]."""
        return self.act(self.norm(self.conv(x)))  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A chain of blocks with a skip, the skip projected where the shape changes."""

    def __init__(self, random: Random, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        widths = [
            width_in,
            *[random.choice((width_out, width_out // 2, width_out * 2)) for _ in range(random.randint(0, 2))],
            width_out,
        ]
        self.chain = nn.Sequential(
            *(ConvBlock(random, a, b, stride if i == 0 else 1) for i, (a, b) in enumerate(itertools.pairwise(widths)))
        )
        same = width_in == width_out and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The chain's output plus the (projected) input."""
        return self.chain(x) + self.skip(x)  # type: ignore[no-any-return]


class Branches(nn.Module):
    """Parallel blocks on one input, concatenated, as Inception has them."""

    def __init__(self, random: Random, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        count = random.choice((2, 3, 4))
        part = max(8, width_out // count // 8 * 8)
        self.parts = nn.ModuleList(ConvBlock(random, width_in, part, stride) for _ in range(count))
        self.mix = nn.Conv2d(part * count, width_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All branches beside each other along the channels, then mixed to the width asked for."""
        return self.mix(torch.cat([part(x) for part in self.parts], 1))  # type: ignore[no-any-return]


class DenseGrowth(nn.Module):
    """Each layer sees all that came before it, as DenseNet has them."""

    def __init__(self, random: Random, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        growth = random.choice((16, 24, 32, 48))
        depth = random.randint(2, 6)
        self.layers = nn.ModuleList(ConvBlock(random, width_in + i * growth, growth, 1) for i in range(depth))
        self.out = nn.Conv2d(width_in + depth * growth, width_out, 1)
        self.pool = nn.AvgPool2d(2, 2) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Concatenation of everything, mixed, then pooled."""
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.pool(self.out(torch.cat(features, 1)))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """Channels weighted by what the whole picture says."""

    def __init__(self, random: Random, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.body = ConvBlock(random, width_in, width_out, stride)
        hidden = max(8, width_out // random.choice((4, 8, 16)))
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width_out, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, width_out, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The body's output times its channels' weights."""
        x = self.body(x)
        return x * self.squeeze(x)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Tokens of the picture attend to each other; the picture is pooled first so that their number stays small."""

    def __init__(self, random: Random, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(width_in, width_out, 1, stride)
        self.side = random.choice((8, 14, 16, 24))
        self.heads = random.choice([h for h in (1, 2, 4, 8) if width_out % h == 0])
        self.norm = nn.LayerNorm(width_out)
        self.qkv = nn.Linear(width_out, 3 * width_out, bias=random.random() < 0.5)
        self.out = nn.Linear(width_out, width_out)
        hidden = random.choice((2, 4)) * width_out
        self.mlp = nn.Sequential(nn.LayerNorm(width_out), nn.Linear(width_out, hidden), nn.GELU())
        self.back = nn.Linear(hidden, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, h, w] to the same with `side` by `side` positions."""
        x = nn.functional.adaptive_avg_pool2d(self.project(x), (self.side, self.side))
        batch, width, height, breadth = x.shape
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = (
            self.qkv(self.norm(tokens))
            .reshape(batch, -1, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, width)
        tokens = tokens + self.out(mixed)
        tokens = tokens + self.back(self.mlp(tokens))
        return tokens.transpose(1, 2).reshape(batch, width, height, breadth)  # type: ignore[no-any-return]


class UpDown(nn.Module):
    """Down, work, up again, joined with what was there before, as U-Net has it."""

    def __init__(self, random: Random, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        inner = random.choice((width_out, width_out * 2))
        self.down = nn.MaxPool2d(2) if random.random() < 0.5 else nn.Conv2d(width_in, width_in, 2, 2)
        self.body = ConvBlock(random, width_in, inner, 1)
        self.mode = random.choice(("nearest", "bilinear", "transpose"))
        self.up = nn.ConvTranspose2d(inner, inner, 2, 2) if self.mode == "transpose" else None
        self.join = ConvBlock(random, inner + width_in, width_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        """The joined output at the input's resolution over the stride."""
        deep = self.body(self.down(x))
        if self.up is not None:
            deep = self.up(deep)
        if deep.shape[-2:] != x.shape[-2:]:
            deep = nn.functional.interpolate(
                deep, size=x.shape[-2:], mode="nearest" if self.up is not None else self.mode
            )
        return self.join(torch.cat([deep, x], 1))  # type: ignore[no-any-return]


class RandomNetwork(nn.Module):
    """A picture classifier whose stages are drawn at random; attention only where the picture is already small."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = Random(seed)
        width = random.choice((16, 24, 32, 48, 64, 96))
        stem = random.choice((1, 2, 4))
        stages: list[nn.Module] = [nn.Conv2d(3, width, random.choice((3, 7)), stem, 3 if random.random() < 0.5 else 1)]
        if random.random() < 0.4:
            stages.append(random.choice((nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2, 2))))
        number = random.randint(2, 5)
        for stage in range(number):
            target = min(1024, int(width * random.choice((1, 1.5, 2, 2))) // 8 * 8)
            kinds: list[type[nn.Module]] = [ConvBlock, Residual, Residual, Branches, DenseGrowth, SqueezeExcite, UpDown]
            if stage >= number - 2:
                kinds += [Attention, Attention]
            for block in range(random.randint(1, 4)):
                stride = 2 if block == 0 and stage > 0 else 1
                stages.append(random.choice(kinds)(random, width, target, stride))
                width = target
        self.stages = nn.Sequential(*stages)
        hidden = random.choice((0, 256, 1024, 4096))
        pool: nn.Module = random.choice((nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1), nn.AdaptiveAvgPool2d(2)))
        positions = 4 if isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size == 2 else 1
        layers: list[nn.Module] = [pool, nn.Flatten(), nn.Dropout(0.1)]
        if hidden:
            layers += [nn.Linear(width * positions, hidden), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(hidden or width * positions, random.choice((10, 100, 1000))))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, height, width] to [batch, classes]."""
        return self.head(self.stages(x))  # type: ignore[no-any-return]
