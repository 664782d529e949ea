"""The rows that the DIPPM paper prints, measured again in every mode: what was its memory label?

    python bench/paper_rows.py datasets/h200-v1

Prints Markdown. The A100 values are those of Table 5 of the paper (Panner Selvam and Brorsson, Euro-Par 2023,
arXiv:2303.11733), column "actual memory"; Figure 3 draws its values and prints none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dippm.case import Mode, Runtime
from dippm.data.reader import DataSet
from dippm.zoo.supplements import declare_paper

PRINTED_MIB = {
    ("densenet121", 8): 3272, ("densenet121", 32): 6294,
    ("swin_base_patch4_window7_224", 2): 2944, ("swin_base_patch4_window7_224", 16): 6156,
    ("convnext_base", 4): 1652, ("convnext_base", 128): 30996,
}  # fmt: skip
MODES = (
    ("inference", Mode.INFERENCE, Runtime.EAGER), ("no_grad", Mode.NO_GRAD, Runtime.EAGER),
    ("autograd", Mode.AUTOGRAD, Runtime.EAGER), ("graph", Mode.INFERENCE, Runtime.GRAPH),
    ("torchscript", Mode.INFERENCE, Runtime.TORCHSCRIPT),
)  # fmt: skip


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    reserved = {row["id"]: row["reserved_mib"] for row in DataSet(parser.parse_args().data).rows("cases")}
    measured = {(c.network.architecture, c.batch, c.mode, c.runtime): reserved.get(c.id) for c in declare_paper()}
    names = [name for name, _, _ in MODES]
    print(f"| model | batch | {' | '.join(names)} | printed (A100) | printed less autograd |")
    print("|---|---|" + "---|" * (len(names) + 2))
    for name, batch in sorted({key[:2] for key in measured}):
        cells = {label: measured[name, batch, mode, runtime] for label, mode, runtime in MODES}
        printed = PRINTED_MIB.get((name, batch))
        shown = [f"{value:,.0f}" if value is not None else "-" for value in cells.values()]
        beside = None if printed is None or cells["autograd"] is None else printed - cells["autograd"]
        shown += [str(printed or "-"), "-" if beside is None else f"{beside:,.0f}"]
        print(f"| {name} | {batch} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
