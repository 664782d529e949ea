"""Detection with queries, segmentation with dilated convolutions, and a speech encoder: shapes of work of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _conv(width_in: int, width_out: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(width_out), nn.ReLU()
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual."""

    def __init__(self, width_in: int, width_out: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1, self.conv2 = _conv(width_in, width_out, stride, dilation), _conv(width_out, width_out, 1, dilation)
        self.skip = nn.Conv2d(width_in, width_out, 1, stride) if stride > 1 or width_in != width_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, width_in, h, w] to [batch, width_out, h / stride, w / stride]."""
        return self.skip(x) + self.conv2(self.conv1(x))  # type: ignore[no-any-return]


class DetectionTransformer(nn.Module):
    """Convolutions, a transformer encoder over their positions, a decoder of object queries (Carion et al., 2020)."""

    def __init__(
        self, width: int = 64, model: int = 256, layers: int = 6, heads: int = 8, queries: int = 100, classes: int = 92
    ) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4, width * 8]
        self.stem = nn.Sequential(nn.Conv2d(3, width, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.body = nn.Sequential(
            *(
                nn.Sequential(BasicBlock(a, b, 2 if i else 1), BasicBlock(b, b))
                for i, (a, b) in enumerate(zip([width, *widths], widths, strict=False))
            )
        )
        self.project = nn.Conv2d(widths[-1], model, 1)
        self.queries = nn.Parameter(torch.zeros(queries, model))
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(model, heads, model * 8, batch_first=True) for _ in range(layers)
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(model, heads, model * 8, batch_first=True) for _ in range(layers)
        )
        self.classes = nn.Linear(model, classes)
        self.boxes = nn.Sequential(nn.Linear(model, model), nn.ReLU(), nn.Linear(model, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[batch, 3, h, w] to class scores [batch, queries, classes] and boxes [batch, queries, 4]."""
        memory = self.project(self.body(self.stem(x))).flatten(2).transpose(1, 2)
        for layer in self.encoder:
            memory = layer(memory)
        found = self.queries.expand(x.shape[0], -1, -1)
        for layer in self.decoder:
            found = layer(found, memory)
        return self.classes(found), self.boxes(found).sigmoid()


class AtrousSegmenter(nn.Module):
    """Dilated residual body, pooling at several rates, upsampled scores (after DeepLabV3, Chen et al., 2017)."""

    def __init__(self, width: int = 64, rates: Sequence[int] = (6, 12, 18), classes: int = 21) -> None:
        super().__init__()
        self.stem = _conv(3, width, 2)
        self.body = nn.Sequential(
            BasicBlock(width, width, 2), BasicBlock(width, width * 2, 2), BasicBlock(width * 2, width * 2),
            BasicBlock(width * 2, width * 4, 1, 2), BasicBlock(width * 4, width * 8, 1, 4),
        )  # fmt: skip
        self.branches = nn.ModuleList([nn.Sequential(nn.Conv2d(width * 8, 256, 1), nn.ReLU())])
        self.branches.extend(_conv(width * 8, 256, 1, rate) for rate in rates)
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width * 8, 256, 1), nn.ReLU())
        self.join = nn.Sequential(nn.Conv2d(256 * (len(rates) + 2), 256, 1), nn.ReLU(), nn.Conv2d(256, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, h, w] to [batch, classes, h, w]."""
        deep = self.body(self.stem(x))
        parts = [branch(deep) for branch in self.branches]
        parts.append(nn.functional.interpolate(self.pooled(deep), size=deep.shape[-2:], mode="bilinear"))
        scores = self.join(torch.cat(parts, 1))
        return nn.functional.interpolate(scores, size=x.shape[-2:], mode="bilinear")


class ConformerLayer(nn.Module):
    """Half MLP, attention, convolution module, half MLP (Gulati et al., 2020)."""

    def __init__(self, width: int, heads: int, kernel: int) -> None:
        super().__init__()
        self.heads = heads
        self.mlp1, self.mlp2 = self._mlp(width), self._mlp(width)
        self.norm, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm_conv, self.expand = nn.LayerNorm(width), nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm_depthwise, self.shrink = nn.BatchNorm1d(width), nn.Conv1d(width, width, 1)
        self.norm_out = nn.LayerNorm(width)

    @staticmethod
    def _mlp(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Dropout(0.1), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[batch, frames, width] to the same."""
        batch, frames, width = x.shape
        x = x + 0.5 * self.mlp1(x)
        q, k, v = self.qkv(self.norm(x)).view(batch, frames, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, frames, width)
        x = x + self.proj(mixed)
        inner = nn.functional.glu(self.expand(self.norm_conv(x).transpose(1, 2)), 1)
        inner = self.shrink(nn.functional.silu(self.norm_depthwise(self.depthwise(inner)))).transpose(1, 2)
        x = x + inner
        return self.norm_out(x + 0.5 * self.mlp2(x))  # type: ignore[no-any-return]


class SpeechEncoder(nn.Module):
    """Two strided convolutions over a spectrogram, then conformer layers and a score for each token."""

    def __init__(
        self, mels: int = 80, width: int = 256, layers: int = 12, heads: int = 4, kernel: int = 31, tokens: int = 5000
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(mels, width, 3, 2, 1), nn.GELU(), nn.Conv1d(width, width, 3, 2, 1), nn.GELU()
        )
        self.layers = nn.ModuleList(ConformerLayer(width, heads, kernel) for _ in range(layers))
        self.out = nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, mels, frames] to [batch, frames / 4, tokens]."""
        x = self.stem(x).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.out(x)  # type: ignore[no-any-return]
