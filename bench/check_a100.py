"""Predicted device times on A100s against published ones of whole models that nothing was fitted to.

    python bench/check_a100.py --data FOLDER

FOLDER holds
    a100_40gb_mig_encoders.csv         MLSysOps/MIGProfiler, history before 55ce2af, MIT: encoders, TF32, on 7g.40gb
    neusight_e2e_latency_ms.csv        sitar-lab/NeuSight @ 6945927, MIT: BERT-large in true FP32, A100-PCIe-40GB
    parvagpu_a100_80gb_mig_part.csv    MunQ-Lee/ParvaGPU_SC24 @ 5f3de1e, MIT: ResNet-50, TF32, A100-80GB on 7g.80gb; its
                                       latency holds a copy of the input from pageable memory, which is taken off at
                                       the 0.1 ms an image by which its slices fail to scale
Only cases are compared in which the device is the limit. The models are built here, on the meta device.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from dippm.case import Case, Precision, Runtime
from dippm.frontend import graph_from_module
from dippm.predictor import predict_graph

EXAMPLES = Path(__file__).parents[1] / "examples/models/make_models.py"
COPY_MS_PER_IMAGE = 0.1
LEAST_TOKENS = 8192


class Layer(nn.Module):
    """One encoder layer as transformers ran it then: separate projections, explicit softmax."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width)
        self.up, self.down, self.norm2 = nn.Linear(width, inner), nn.Linear(inner, width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width), the same out."""
        batch, tokens, width = x.shape
        q, k, v = (
            f(x).view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(width // self.heads)
        mixed = torch.matmul(torch.softmax(scores, -1), v).transpose(1, 2).reshape(batch, tokens, width)
        x = self.norm1(x + self.output(mixed))
        return self.norm2(x + self.down(nn.functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """Embeddings and layers."""

    def __init__(self, layers: int, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.words, self.places, self.norm = nn.Embedding(30522, width), nn.Embedding(512, width), nn.LayerNorm(width)
        self.layers = nn.Sequential(*(Layer(width, heads, inner) for _ in range(layers)))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) to (batch, tokens, width)."""
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.layers(self.norm(self.words(ids) + self.places(places)))


@dataclass(frozen=True)
class Known:
    """One published measurement."""

    name: str
    module: nn.Module
    example: torch.Tensor
    precision: Precision
    device: str
    measured_ms: float


def encoders(folder: Path) -> Iterator[Known]:
    """Encoders on a full MIG profile."""
    rows = pd.read_csv(folder / "a100_40gb_mig_encoders.csv")
    rows = rows[(rows.mig_profile == "7g.40gb") & (rows.batch * rows.seq >= LEAST_TOKENS)]
    shapes = {
        "bert-base-multilingual-cased": (12, 768, 12, 3072),
        "distiluse-base-multilingual-cased-v1": (6, 768, 12, 3072),
        "paraphrase-multilingual-MiniLM-L12-v2": (12, 384, 12, 1536),
    }
    for row in rows[rows.model.isin(shapes)].itertuples():
        with torch.device("meta"):
            module, ids = Encoder(*shapes[row.model]).eval(), torch.zeros(row.batch, row.seq, dtype=torch.int64)
        name = f"{row.model.split('-')[0]} b{row.batch} s{row.seq}"
        yield Known(name, module, ids, Precision.TF32, "A100-SXM4-40GB", row.latency_ms)


def bert_large(folder: Path) -> Iterator[Known]:
    """BERT-large in true FP32."""
    rows = pd.read_csv(folder / "neusight_e2e_latency_ms.csv").set_index("model_mode_seq_batch")
    for batch in (8, 16):
        with torch.device("meta"):
            module, ids = Encoder(24, 1024, 16, 4096).eval(), torch.zeros(batch, 512, dtype=torch.int64)
        measured = float(rows.loc[f"bert_large-inf-512-{batch}", "NVIDIA_A100-PCIE-40GB"])
        yield Known(f"bert_large b{batch} s512", module, ids, Precision.FP32, "A100-PCIE-40GB", measured)


def resnet50(folder: Path) -> Iterator[Known]:
    """ResNet-50, convolutions in TF32."""
    specification = importlib.util.spec_from_file_location("make_models", EXAMPLES)
    assert specification is not None
    assert specification.loader is not None
    made = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(made)
    rows = pd.read_csv(folder / "parvagpu_a100_80gb_mig_part.csv")
    rows = rows[(rows.model == "resnet50") & (rows.slice == "7g.80gb") & (rows.mps_processes == 1) & (rows.batch >= 32)]
    for row in rows.itertuples():
        with torch.device("meta"):
            module, images = made.ResNet50().eval(), torch.zeros(row.batch, 3, 224, 224)
        measured = row.latency_ms - COPY_MS_PER_IMAGE * row.batch
        yield Known(f"resnet50 b{row.batch}", module, images, Precision.TF32, "A100-SXM4-80GB", measured)


def main() -> None:
    """Prints one line a case, and the mean error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the published files")
    args = parser.parse_args()
    errors: dict[str, list[float]] = {}
    print(f"{'case':22} {'device':15} {'measured ms':>12} {'predicted ms':>13} {'error':>7}")
    for read in (encoders, bert_large, resnet50):
        for known in read(args.data):
            batch = known.example.shape[0]
            graph = graph_from_module(known.module, (known.example,), batch=batch)
            case = Case(batch, precision=known.precision, runtime=Runtime.EAGER, device=known.device)
            predicted = predict_graph(graph, case).device_ms
            error = math.log(predicted / known.measured_ms)
            errors.setdefault(read.__name__, []).append(error)
            figures = f"{known.measured_ms:12.2f} {predicted:13.2f} {math.expm1(error):+7.1%}"
            print(f"{known.name:22} {known.device:15} {figures}")
    for name, some in errors.items():
        print(f"{name}: mean absolute error {np.abs(some).mean():.1%}, bias {np.mean(some):+.1%} ({len(some)} cases)")


if __name__ == "__main__":
    main()
