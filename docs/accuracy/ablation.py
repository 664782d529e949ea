"""The network alone, without tables, costs and graph level: kernel time and workspaces of architectures it never saw.

    PYTHONPATH=predictor python docs/accuracy/ablation.py WORK/corpus.npz WORK/without-0.pt OTHER/without-0.pt ...

Each file is a network of `dippm train` (or `python -m dippm.train.networks --no-edges`), named `...without-K.pt`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dippm.network.model import OPERATOR_COLUMNS
from dippm.network.workspace import CLASSES
from dippm.train.corpus import Corpus
from dippm.train.networks import load_network
from dippm.train.split import RANDOM, folds
from dippm.train.trainer import predict_operators


def main(corpus_path: str, *networks: str) -> None:
    """Prints a line for each network."""
    corpus = Corpus.load(Path(corpus_path))
    fold_of = folds(corpus.groups.tolist(), corpus.architectures.tolist())
    first = OPERATOR_COLUMNS.index(f"workspace:{CLASSES[0]}")
    for path in map(Path, networks):
        model, scales = load_network(path)
        held = np.flatnonzero((fold_of == int(path.stem[-1])) & (corpus.groups != RANDOM))
        columns, _ = predict_operators(model, corpus, scales, held)
        sums, right, asked = [], 0, 0
        for g, found in zip(held, columns, strict=True):
            here = corpus.nodes_of(int(g))
            known = (corpus.workspace_class[here] >= 0) & ~corpus.is_view[here]
            classes = found[:, first : first + len(CLASSES)].argmax(axis=1)
            right += int((classes == corpus.workspace_class[here])[known].sum())
            asked += int(known.sum())
            measured = corpus.kernel_us[here]
            timed = np.isfinite(measured)
            if measured[timed].sum() > 0:
                us = np.where(found[:, 1] > 0, np.exp(corpus.log_roofline[here] + found[:, 0].clip(-4, 4)), 0.0)
                sums.append(100 * abs(us[timed].sum() / measured[timed].sum() - 1))
        print(
            f"{path.stem}: kernel time of {len(sums)} held-back cases MAPE {np.mean(sums):.2f} %, median "
            f"{np.median(sums):.2f} %; workspace class right for {100 * right / asked:.1f} % of {asked} operators"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
