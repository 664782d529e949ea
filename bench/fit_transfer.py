"""Fits the step from Hopper to Ampere on published pairs of measurements, and says how far off it is on others.

    python bench/fit_transfer.py --data FOLDER            # print the errors
    python bench/fit_transfer.py --data FOLDER --write    # and write predictor/dippm/catalogue/transfer.yaml

FOLDER holds the published files (they are not kept in this repository; who wants to fit again fetches them):

    aiconfigurator_gemm_bf16_a100_h100_h200.csv.gz                 ai-dynamo/aiconfigurator @ 095f58a5, Apache-2.0
    aiconfigurator_context_attention_bf16_a100_h100_h200.csv.gz    (the same cases on A100-SXM4-80GB, H100 and H200)
    aiconfigurator_generation_attention_bf16_a100_h100_h200.csv.gz
    vidur_llm_ops_a100_h100_fp16.csv.gz                            microsoft/vidur @ 7d475133, MIT
    a100_h100_paired_ops_fp32.csv.gz                               sitar-lab/NeuSight @ 6945927, MIT
"""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from dippm.devices import Hardware, hardware
from dippm.transfer import Table, Work, basis

Array = npt.NDArray[np.float64]
OUT = Path(__file__).parents[1] / "predictor/dippm/catalogue/transfer.yaml"

BALANCE = (-10.0, -7.0, -5.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0)
EFFICIENCY = (-8.0, -6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0)
HALF_EFFICIENCY = 0.1
SMOOTH = 3.0
"""Weight of second differences of the table against the rows (which weigh 1000 a source): fills what no row reaches."""
LEAST_US = 4.0
"""Shorter times are mostly resolution."""


@dataclass(frozen=True)
class Pairs:
    """Operators timed on two cards."""

    source: str
    kind: str
    work: Work
    source_us: Array
    target_us: Array
    source_card: Hardware
    target_card: Hardware
    model: Sequence[str]
    """Whole model that each row belongs to; its rows add up. Empty strings where there is none."""

    @property
    def name(self) -> str:
        """Source, kind and card."""
        return f"{self.source} {self.kind} {self.source_card.product}"

    @property
    def log_ratio(self) -> Array:
        """What is to be predicted, [n]."""
        ratio: Array = np.log(self.target_us / self.source_us)
        return ratio


def pairs(
    source: str, kind: str, flops: Array, nbytes: Array, results: Array, unit: str,
    source_us: Array, target_us: Array, source_card: str, target_card: str, model: Sequence[str] | None = None,
) -> Pairs:  # fmt: skip
    """Rows that are long enough on both cards."""
    keep = np.isfinite(source_us) & np.isfinite(target_us) & (np.minimum(source_us, target_us) >= LEAST_US)
    models = np.array(model if model is not None else [""] * len(flops), dtype=object)[keep]
    return Pairs(
        source, kind, Work(flops[keep], nbytes[keep], (unit,) * int(keep.sum()), results[keep]),
        source_us[keep], target_us[keep], hardware(source_card), hardware(target_card), list(models),
    )  # fmt: skip


def aiconfigurator(folder: Path) -> Iterable[Pairs]:
    """GEMM and attention in BF16 under CUDA graph replay."""
    gemm = pd.read_csv(folder / "aiconfigurator_gemm_bf16_a100_h100_h200.csv.gz")
    m, n, k = (gemm[c].to_numpy(float) for c in "mnk")
    context = pd.read_csv(folder / "aiconfigurator_context_attention_bf16_a100_h100_h200.csv.gz")
    decode = pd.read_csv(folder / "aiconfigurator_generation_attention_bf16_a100_h100_h200.csv.gz")
    for card, column in (("H200", "h200_ms"), ("H100-80GB-HBM3", "h100_ms")):
        yield pairs(
            "aiconfigurator", "gemm", 2 * m * n * k, 2 * (m * k + k * n + m * n), m * n, "half",
            1e3 * gemm[column].to_numpy(float), 1e3 * gemm.a100_ms.to_numpy(float), card, "A100-SXM4-80GB",
        )  # fmt: skip
        rows, heads, width = (context[c].to_numpy(float) for c in ("batch_size", "num_heads", "head_dim"))
        length, kv = context.isl.to_numpy(float), context.num_key_value_heads.to_numpy(float)
        queries = rows * heads * length * width
        yield pairs(
            "aiconfigurator", "prefill", 2 * queries * length, 2 * (2 * queries + 2 * rows * kv * length * width),
            queries, "half",
            1e3 * context[column].to_numpy(float), 1e3 * context.a100_ms.to_numpy(float), card, "A100-SXM4-80GB",
        )  # fmt: skip
        rows, heads, width = (decode[c].to_numpy(float) for c in ("batch_size", "num_heads", "head_dim"))
        cached, kv = decode.step.to_numpy(float) + 1, decode.num_key_value_heads.to_numpy(float)
        yield pairs(
            "aiconfigurator", "decode", 4 * rows * heads * cached * width, 2 * (2 * rows * kv * cached * width),
            rows * heads * width, "half",
            1e3 * decode[column].to_numpy(float), 1e3 * decode.a100_ms.to_numpy(float), card, "A100-SXM4-80GB",
        )  # fmt: skip


def vidur(folder: Path) -> Iterable[Pairs]:
    """Pieces of LLM layers in FP16: linear layers, and what is bound by memory."""
    d = pd.read_csv(folder / "vidur_llm_ops_a100_h100_fp16.csv.gz").dropna()
    tokens, width, parts = d.num_tokens.to_numpy(float), d.n_embd.to_numpy(float), d.tensor_parallel.to_numpy(float)
    head = width / d.n_head.to_numpy(float)
    inner = d.n_expanded_embd.to_numpy(float) / parts
    gated = np.where(d.gated_mlp.to_numpy(bool), 2.0, 1.0)
    heads = width / parts
    cached = np.maximum(d.n_kv_head.to_numpy(float) / parts, 1.0) * head
    sizes = {
        "attn_pre_proj": (width, heads + 2 * cached),
        "attn_post_proj": (heads, width),
        "mlp_up_proj": (width, gated * inner),
        "mlp_down_proj": (inner, width),
    }
    moved = {
        "input_layernorm": 2 * tokens * width, "post_attention_layernorm": 2 * tokens * width,
        "add": 3 * tokens * width, "mlp_act": tokens * inner * (1 + gated),
        "attn_rope": 2 * tokens * (heads + cached), "emb": 2 * tokens * width,
    }  # fmt: skip
    h100, a100 = 1e3 * d.h100_median_ms.to_numpy(float), 1e3 * d.a100_80gb_median_ms.to_numpy(float)
    cards = ("H100-80GB-HBM3", "A100-SXM4-80GB")
    for op, (k, n) in sizes.items():
        at = (d.op == op).to_numpy()
        flops, nbytes, results = 2 * tokens * k * n, 2 * (tokens * k + k * n + tokens * n), tokens * n
        yield pairs("vidur", op, flops[at], nbytes[at], results[at], "half", h100[at], a100[at], *cards)
    for op, elements in moved.items():
        at = (d.op == op).to_numpy()
        e = elements[at]
        yield pairs("vidur", op, e / 2, 2 * e, np.zeros_like(e), "fp32", h100[at], a100[at], *cards)


MATRIX = ("dense", "proj", "query", "key", "value", "fc1", "fc2", "lm_head", "decoder", "addmm", "matmul", "bmm")
STREAMED = ("softmax", "LayerNorm", "layer_norm", "ln_", "gelu", "tanh", "pow", "mul", "truediv", "where",
            "masked_fill", "contiguous", "add", "embedding", "wte", "wpe", "activation", "embed_tokens")  # fmt: skip


def neusight(folder: Path) -> Iterable[Pairs]:
    """Operators of whole language models in FP32 with TF32 off, on two A100s over PCIe."""
    d = pd.read_csv(folder / "a100_h100_paired_ops_fp32.csv.gz")
    rows = []
    for row in d.itertuples():
        inputs = [s for s in ast.literal_eval(row.input_shapes) if s != [1]]
        output = ast.literal_eval(row.output_shape)
        if not inputs or output == (1,):
            continue
        target = str(row.target)
        moved = 4.0 * (sum(math.prod(s) for s in inputs) + math.prod(output))
        if any(word in target for word in MATRIX) and "LayerNorm" not in target and "layer_norm" not in target:
            first = next(s for s in inputs if len(s) > 1)
            k = first[-1]
            if len(inputs) == 1:
                moved += 4.0 * k * output[-1]
            rows.append((row, "matrix", 2.0 * math.prod(output) * k, moved, float(math.prod(output))))
        elif any(word in target for word in STREAMED):
            rows.append((row, "streamed", float(math.prod(output)), moved, 0.0))
    for variant in ("A100-PCIE-40GB", "A100-80GB-PCIe"):
        for kind in ("matrix", "streamed"):
            some = [r for r in rows if r[0].a100_variant == variant and r[1] == kind]
            flops, nbytes, results = (np.array([r[i] for r in some]) for i in (2, 3, 4))
            yield pairs(
                "neusight", kind, flops, nbytes, results, "fp32",
                1e3 * np.array([r[0].h100_fw_ms for r in some]), 1e3 * np.array([r[0].a100_fw_ms for r in some]),
                "H100-80GB-HBM3", variant, [r[0].model_mode_seq_batch for r in some],
            )  # fmt: skip


def design(some: Pairs) -> tuple[Array, Array]:
    """Rows of the table's design [n, knots], and what the roofline's own share leaves to it, [n]."""
    empty = Table(BALANCE, EFFICIENCY, np.zeros((len(BALANCE), len(EFFICIENCY))), HALF_EFFICIENCY, (1, 1), "", "")
    known = empty.log_ratio(some.work, some.source_us, some.source_card, some.target_card)
    b, e = empty.coordinates(some.work, some.source_us, some.source_card)
    rows = (basis(b, BALANCE)[:, :, None] * basis(e, EFFICIENCY)[:, None, :]).reshape(len(known), -1)
    return rows, some.log_ratio - known


def smoothness() -> Array:
    """Second differences of the table along both axes."""
    grid = np.eye(len(BALANCE) * len(EFFICIENCY)).reshape(len(BALANCE), len(EFFICIENCY), -1)
    return np.concatenate([np.diff(grid, 2, axis=axis).reshape(-1, grid.shape[-1]) for axis in (0, 1)])


def fit(some: Sequence[Pairs]) -> Array:
    """The table by least absolute deviation (iterated weights), each source and kind weighing the same."""
    parts = [design(p) for p in some]
    rows, left = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    share = np.concatenate([np.full(len(p[1]), 1000.0 / max(1, len(p[1]))) for p in parts])
    penalty = SMOOTH * smoothness().T @ smoothness() + 1e-3 * np.eye(rows.shape[1])
    weight, values = share.copy(), np.zeros(rows.shape[1])
    for _ in range(15):
        values = np.linalg.solve(rows.T @ (rows * weight[:, None]) + penalty, rows.T @ (weight * left))
        weight = share * 0.05 / np.maximum(np.abs(left - rows @ values), 0.05)
    return values


def predicted(some: Pairs, values: Array) -> Array:
    """log(t_target / t_source), [n]."""
    rows, left = design(some)
    ratio: Array = some.log_ratio - left + rows @ values
    return ratio


def report(some: Pairs, values: Array) -> tuple[float, float, float]:
    """(mean absolute error, bias, error of the total time), all as log."""
    error = predicted(some, values) - some.log_ratio
    total = np.log((some.source_us * np.exp(predicted(some, values))).sum() / some.target_us.sum())
    return float(np.abs(error).mean()), float(error.mean()), float(total)


def main() -> None:
    """Prints the errors; writes the table when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the published files")
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name}")
    args = parser.parse_args()
    everything = [p for read in (aiconfigurator, vidur, neusight) for p in read(args.data) if len(p.source_us)]
    values = fit(everything)
    nothing = np.zeros_like(values)
    columns = ("rows", "one ratio", "roofline", "fitted", "left out", "bias", "total")
    print(f"{'pairs':45}", *(f"{c:>9}" for c in columns))
    errors, means = [], []
    middle = np.median(np.concatenate([p.log_ratio for p in everything]))
    for p in everything:
        without = fit([q for q in everything if q.source != p.source])
        mean, bias, total = report(p, without)
        errors.append(total)
        alone = float(np.abs(p.log_ratio - middle).mean())
        means.append((alone, report(p, nothing)[0], report(p, values)[0], mean))
        print(
            f"{p.name:45} {len(p.source_us):9} {means[-1][0]:9.1%} {means[-1][1]:9.1%} "
            f"{means[-1][2]:9.1%} {mean:9.1%} {bias:+9.1%} {total:+9.1%}"
        )
    print(f"{'mean of the kinds':45} {'':9}", *(f"{m:9.1%}" for m in np.mean(means, axis=0)))
    print("totals of left-out sources: mean", f"{np.abs(errors).mean():.1%}", "worst", f"{np.abs(errors).max():.1%}")
    if args.write:
        write(values, errors)


HEADER = """\
# Written by bench/fit_transfer.py: kernel times of Hopper (H200, H100) to Ampere (A100); formula in dippm/transfer.py.
# Fitted on published pairs of single operators on both cards, each kind of a source weighing the same:
#   ai-dynamo/aiconfigurator @ 095f58a5 (Apache-2.0): BF16 GEMM, attention, A100-SXM4-80GB, H100, H200
#   microsoft/vidur @ 7d475133 (MIT): FP16 linear, norm, activation, add, embedding, A100-80GB, H100
#   sitar-lab/NeuSight @ 6945927 (MIT): operators of whole models in FP32, A100-PCIe-40GB and 80GB, H100
# band: true over predicted total time of the pairs of a source that the fit had not seen, from least to largest.
"""


def write(values: Array, errors: Sequence[float]) -> None:
    """Writes the table."""
    table = values.reshape(len(BALANCE), len(EFFICIENCY))
    body = {
        "sm_90-sm_80": {
            "source": "H200",
            "target": "A100-SXM4-80GB",
            "half_efficiency": HALF_EFFICIENCY,
            "band": [round(float(np.exp(-max(errors))), 2), round(float(np.exp(-min(errors))), 2)],
            "balance_log2": list(BALANCE),
            "efficiency_log2": list(EFFICIENCY),
            "log_ratio": [[round(float(v), 3) for v in row] for row in table],
        }
    }
    OUT.write_text(HEADER + yaml.safe_dump(body, sort_keys=False, default_flow_style=None, width=120), encoding="utf-8")


if __name__ == "__main__":
    main()
