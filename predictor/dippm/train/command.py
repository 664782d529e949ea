"""`dippm train`: from a folder of measured rows to a bundle, resumable at every epoch.

Leaves in the work folder: `corpus.npz` (featurised rows), `all.pt` and `without-K.pt` (networks), and `heldback.csv`
(each case as predicted by networks that never saw its super-family), which `dippm evaluate` reads.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from dippm.network.bundle import load_bundle, read_bundle, write_bundle
from dippm.train.corpus import Corpus
from dippm.train.crossfit import cross_fit, final_bundle, predictions_of
from dippm.train.examples import data_card, read_cases
from dippm.train.finetune import network_of
from dippm.train.fit import Prepared
from dippm.train.labels import MeasuredCase
from dippm.train.networks import add_network_arguments, hyper_of, job_names
from dippm.train.networks import run as train_networks
from dippm.train.trainer import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dippm train`."""
    parser.add_argument("data", type=Path, help="folder of measured rows, as dippm measure and dippm graph leave it")
    parser.add_argument("--out", type=Path, default=Path("pmgns.safetensors"), help="the bundle (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("train-work"), help="networks, checkpoints, held-back rows")
    parser.add_argument(
        "--finetune", nargs="?", const="", metavar="BUNDLE",
        help="go on from a bundle's network (without a name: the one in the package) instead of from scratch",
    )  # fmt: skip
    add_network_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Train, fit and write the bundle; 0."""
    cases = read_cases(options.data)
    corpus = corpus_of(cases, options.work / "corpus.npz")
    hyper, settings = hyper_of(options)
    start = None
    if options.finetune is not None:
        start = network_of(read_bundle(Path(options.finetune)) if options.finetune else load_bundle())
        hyper = start[0].hyper
    train_networks(
        corpus, job_names(nested=False), options.work, hyper, settings,
        device=options.device, start=start, report=progress(settings),
    )  # fmt: skip
    finish(cases, corpus, options.work, options.out, seed=settings.seed, data=data_card(options.data))
    return 0


def finish(
    cases: list[MeasuredCase], corpus: Corpus, work: Path, out: Path, *, seed: int, data: Mapping[str, object]
) -> None:
    """From trained networks to the held-back rows and the bundle."""
    from dippm.evaluate.heldback import write_rows
    from dippm.evaluate.rows import heldback_rows

    prepared = Prepared(cases, corpus, device=str(data["device"]))
    fit = cross_fit(prepared, work)
    rows = heldback_rows(
        cases,
        fit.fold_of,
        [h.estimates.known_share for h in fit.held],
        predictions_of(prepared, fit),
        [h.composed for h in fit.held],
    )
    write_rows(work / "heldback.csv", rows)
    described = {**data, "cases": len(cases), "architectures": len(set(corpus.architectures.tolist())), "seed": seed}
    write_bundle(final_bundle(prepared, work, fit, described), out)
    print(f"wrote {out} and {work / 'heldback.csv'}", file=sys.stderr)


def corpus_of(cases: list[MeasuredCase], path: Path) -> Corpus:
    """The featurised corpus, from the file where it holds these very cases."""
    ids = [c.example.id for c in cases]
    if path.exists():
        corpus = Corpus.load(path)
        if corpus.ids.tolist() == ids:
            return corpus
    corpus = Corpus.of(c.example for c in cases)
    corpus.save(path)
    return corpus


def progress(settings: Settings) -> Progress:
    """A progress bar an epoch wide for each network (tqdm where it is installed, else a line every tenth epoch)."""
    return Progress(settings.epochs)


class Progress:
    """Called with (network, epoch, losses)."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def __call__(self, name: str, epoch: int, losses: Mapping[str, float]) -> None:
        """One epoch is done."""
        done, width = epoch + 1, 30
        filled = round(width * done / self.epochs)
        line = f"{name}: [{'#' * filled}{'.' * (width - filled)}] {done}/{self.epochs} loss {sum(losses.values()):.4f}"
        if sys.stderr.isatty():
            print(f"\r{line}", end="\n" if done == self.epochs else "", file=sys.stderr, flush=True)
        elif done % 10 == 0 or done == self.epochs:
            print(line, file=sys.stderr, flush=True)
