"""Networks written out here, for shapes of work that the model libraries lack."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dippm.zoo.decoder import CachedDecoder
from dippm.zoo.diffusion import DiffusionUNet
from dippm.zoo.perception import AtrousSegmenter, DetectionTransformer, SpeechEncoder


def _double(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU(inplace=True),
        nn.Conv2d(width_out, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) with padded convolutions; [batch, 3, h, w] to [batch, classes, h, w]."""

    def __init__(self, width: int = 64, depth: int = 4, classes: int = 21) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.stem = _double(3, width)
        self.down = nn.ModuleList(nn.Sequential(nn.MaxPool2d(2), _double(a, b)) for a, b in itertools.pairwise(widths))
        pairs = list(zip(widths[::-1], widths[-2::-1], strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.join = nn.ModuleList(_double(2 * b, b) for _, b in pairs)
        self.out = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Contracting path, then expanding path with skips."""
        skips = [self.stem(x)]
        for layer in self.down:
            skips.append(layer(skips[-1]))
        x = skips.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        return self.out(x)  # type: ignore[no-any-return]


class FeaturePyramid(nn.Module):
    """A small convolutional backbone with a feature pyramid and a dense detection head (Lin et al., 2017)."""

    def __init__(self, width: int = 64, neck: int = 256, anchors: int = 9, classes: int = 80) -> None:
        super().__init__()
        widths = [width, width * 2, width * 4, width * 8]
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2 if i else 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(), _double(b, b))
            for i, (a, b) in enumerate(zip([width, *widths], widths, strict=False))
        )
        self.lateral = nn.ModuleList(nn.Conv2d(w, neck, 1) for w in widths)
        self.smooth = nn.ModuleList(nn.Conv2d(neck, neck, 3, padding=1) for _ in widths)
        self.head = nn.Sequential(
            nn.Conv2d(neck, neck, 3, padding=1), nn.ReLU(), nn.Conv2d(neck, anchors * (classes + 4), 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Class scores and boxes of every position of every level, [batch, positions, anchors * (classes + 4)]."""
        x = self.stem(x)
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        top = self.lateral[-1](features[-1])
        merged = [top]
        for feature, lateral in zip(features[-2::-1], list(self.lateral)[-2::-1], strict=True):
            top = lateral(feature) + nn.functional.interpolate(top, size=feature.shape[-2:], mode="nearest")
            merged.append(top)
        outputs = [
            self.head(smooth(m)).flatten(2).transpose(1, 2) for smooth, m in zip(self.smooth, merged, strict=True)
        ]
        return torch.cat(outputs, 1)


class Waveform(nn.Module):
    """Dilated 1-D convolutions with gates and residuals (after WaveNet, van den Oord et al., 2016)."""

    def __init__(self, width: int = 128, layers: int = 12, classes: int = 256) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, width, 3, padding=1)
        self.gated = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=2 ** (i % 8), dilation=2 ** (i % 8)) for i in range(layers)
        )
        self.mix = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(layers))
        self.out = nn.Conv1d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 1, samples] to [batch, classes, samples]."""
        x = self.stem(x)
        for gated, mix in zip(self.gated, self.mix, strict=True):
            value, gate = gated(x).chunk(2, 1)
            x = x + mix(torch.tanh(value) * torch.sigmoid(gate))
        return self.out(x)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Embedding, LSTM or GRU, classifier of the last step."""

    def __init__(
        self, cell: str = "lstm", vocabulary: int = 30000, width: int = 512, layers: int = 2, both: bool = False
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        make = nn.LSTM if cell == "lstm" else nn.GRU
        self.body = make(width, width, layers, batch_first=True, bidirectional=both)
        self.out = nn.Linear(width * (2 if both else 1), 1000)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, steps] of token ids to [batch, 1000]."""
        states, _ = self.body(self.embed(tokens))
        return self.out(states[:, -1])  # type: ignore[no-any-return]


class Recommender(nn.Module):
    """Embedding tables and two stacks of dense layers with pairwise products (after DLRM, Naumov et al., 2019)."""

    def __init__(
        self, tables: int = 26, rows: int = 100000, width: int = 64, dense: int = 13, hidden: int = 1024
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(dense, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU())
        pairs = (tables + 1) ** 2
        self.top = nn.Sequential(
            nn.Linear(pairs + width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        )

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """[batch, dense] features and [batch, tables] ids to [batch, 1]."""
        bottom = self.bottom(dense)
        features = torch.stack([bottom, *(table(sparse[:, i]) for i, table in enumerate(self.tables))], 1)
        pairs = torch.bmm(features, features.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([pairs, bottom], 1))  # type: ignore[no-any-return]


class TokenEncoder(nn.Module):
    """PyTorch's own transformer encoder layers written with scaled_dot_product_attention, pre-norm."""

    def __init__(self, vocabulary: int = 32000, width: int = 768, layers: int = 12, heads: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * layers))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.proj = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(layers)
        )
        self.out = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, steps] of token ids to [batch, steps, vocabulary]."""
        x = self.embed(tokens)
        batch, steps, width = x.shape
        for i, (qkv, proj, mlp) in enumerate(zip(self.qkv, self.proj, self.mlps, strict=True)):
            heads = (
                qkv(self.norms[2 * i](x)).view(batch, steps, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
            )
            mixed = nn.functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
            x = x + proj(mixed.transpose(1, 2).reshape(batch, steps, width))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.out(x)  # type: ignore[no-any-return]


class VideoNet(nn.Module):
    """3-D convolutions with residuals over a clip (after R3D, Tran et al., 2018)."""

    def __init__(self, width: int = 64, classes: int = 400) -> None:
        super().__init__()
        widths = [width, width, width * 2, width * 4, width * 8]
        self.stem = nn.Sequential(
            nn.Conv3d(3, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(inplace=True),
        )
        self.convs = nn.ModuleList(
            nn.Conv3d(a, b, 3, 1 if i == 0 else 2, 1, bias=False) for i, (a, b) in enumerate(itertools.pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.BatchNorm3d(b) for b in widths[1:])
        self.inner = nn.ModuleList(nn.Conv3d(b, b, 3, 1, 1, bias=False) for b in widths[1:])
        self.out = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, frames, h, w] to [batch, classes]."""
        x = self.stem(x)
        for conv, norm, inner in zip(self.convs, self.norms, self.inner, strict=True):
            x = nn.functional.relu(norm(conv(x)))
            x = nn.functional.relu(x + inner(x))
        return self.out(x.mean((2, 3, 4)))  # type: ignore[no-any-return]


class Perceptron(nn.Module):
    """Plain dense layers."""

    def __init__(self, features: int = 1024, hidden: int = 4096, layers: int = 4, classes: int = 1000) -> None:
        super().__init__()
        widths = [features, *[hidden] * layers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.out = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, features] to [batch, classes]."""
        for layer in self.layers:
            x = nn.functional.gelu(layer(x))
        return self.out(x)  # type: ignore[no-any-return]


NETWORKS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "fpn": FeaturePyramid,
    "waveform": Waveform,
    "recurrent": Recurrent,
    "recommender": Recommender,
    "token_encoder": TokenEncoder,
    "video": VideoNet,
    "perceptron": Perceptron,
    "cached_decoder": CachedDecoder,
    "diffusion_unet": DiffusionUNet,
    "detection_transformer": DetectionTransformer,
    "atrous_segmenter": AtrousSegmenter,
    "speech_encoder": SpeechEncoder,
}
