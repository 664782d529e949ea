"""How well times on MIG slices follow from those on the whole card, against encoders measured on real slices.

    python bench/check_slices.py --data FOLDER

FOLDER holds `a100_40gb_mig_encoders.csv` (MLSysOps/MIGProfiler, git history before 55ce2af, MIT): five encoders on an
A100-40GB in eager PyTorch with TF32, on 1g.5gb, 2g.10gb, 3g.20gb and 7g.40gb. Nothing is fitted to it: each operator's
time on the whole card is its roofline at a fixed efficiency, and only the ratios to 7g.40gb are compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from dippm.devices import hardware, slice_of
from dippm.profiles import resolve_device
from dippm.transfer import Work, slice_factor

EFFICIENCY = {"tf32": 0.55, "fp32": 0.75}
LAUNCH_US = 3.0
LAYERS_WIDTH_INNER = {
    "bert-base-multilingual-cased": (12, 768, 3072),
    "paraphrase-multilingual-mpnet-base-v2": (12, 768, 3072),
    "paraphrase-multilingual-MiniLM-L12-v2": (12, 384, 1536),
    "distiluse-base-multilingual-cased-v1": (6, 768, 3072),
    "distiluse-base-multilingual-cased-v2": (6, 768, 3072),
}
DEVICE_BOUND_TOKENS = 8192
"""From here on the host does not matter on the whole card."""


def encoder_layer(batch: int, length: int, width: int, inner: int) -> Work:
    """The operators of one encoder layer in TF32."""
    tokens, heads = batch * length, 12
    head = width // heads
    operators: list[tuple[float, float, str, float]] = []

    def product(m: int, n: int, k: int, count: int = 1) -> None:
        operators.append((2.0 * m * n * k * count, 4.0 * count * (m * k + k * n + m * n), "tf32", float(m * n * count)))

    def stream(elements: float) -> None:
        operators.append((elements / 2, 4.0 * elements, "fp32", 0.0))

    for _ in range(3):
        product(tokens, width, width)
    product(length, length, head, batch * heads)
    stream(3 * batch * heads * length * length)
    stream(2 * batch * heads * length * length)
    product(length, head, length, batch * heads)
    stream(2 * tokens * width)
    for outer, within in ((width, width), (inner, width), (width, inner)):
        product(tokens, outer, within)
        stream((3 if outer == width else 2) * tokens * outer)
        if outer == width:
            stream(2 * tokens * outer)
    flops, nbytes, unit, results = zip(*operators, strict=True)
    return Work(np.array(flops), np.array(nbytes), unit, np.array(results))


def main() -> None:
    """Prints the errors by slice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the published file")
    args = parser.parse_args()
    rows = pd.read_csv(args.data / "a100_40gb_mig_encoders.csv")
    wide = rows.pivot_table(index=["model", "batch", "seq"], columns="mig_profile", values="latency_ms").reset_index()
    wide = wide[wide.batch * wide.seq >= DEVICE_BOUND_TOKENS]
    device = resolve_device("A100-SXM4-40GB")
    card = hardware(device.product)
    for profile in ("3g.20gb", "2g.10gb", "1g.5gb"):
        part = slice_of(device, device.profile(profile))
        errors = []
        for row in wide[wide[profile].notna()].to_dict("records"):
            _, width, inner = LAYERS_WIDTH_INNER[row["model"]]
            work = encoder_layer(int(row["batch"]), int(row["seq"]), width, inner)
            whole_us = work.roof_us(card) / np.array([EFFICIENCY[u] for u in work.unit]) + LAUNCH_US
            ratio = (whole_us * slice_factor(work, card, part)).sum() / whole_us.sum()
            errors.append(np.log(ratio / (row[profile] / row["7g.40gb"])))
        print(
            f"{profile:8} {len(errors):3} cases: mean absolute error {np.abs(errors).mean():.1%}, "
            f"bias {np.mean(errors):+.1%}, worst {np.abs(errors).max():.1%}"
        )


if __name__ == "__main__":
    main()
