"""`dippm train`: from a folder of measured rows to a bundle, resumable at every network of cases and every epoch.

Leaves in the work folder: `corpus.npz` (featurised rows), `all.pt` and `without-K.pt` (networks), and `heldback.csv.gz`
(each case as predicted by networks that never saw its super-family), which `dippm evaluate` reads.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

import numpy as np

from dippm.network.bundle import FILE, write_bundle
from dippm.train.corpus import Corpus
from dippm.train.crossfit import cross_fit, final_bundle
from dippm.train.examples import data_card, read_cases
from dippm.train.featurise import corpus_of, in_reading_order
from dippm.train.fit import Prepared
from dippm.train.labels import MeasuredCase
from dippm.train.networks import add_network_arguments, job_names, plan_of, run_side_by_side
from dippm.train.parallel import default_jobs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dippm train`."""
    parser.add_argument("data", type=Path, help="folder of measured rows, as dippm measure and dippm graph leave it")
    parser.add_argument("--out", type=Path, default=Path("pmgns.safetensors"), help="the bundle (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("train-work"), help="networks, checkpoints, held-back rows")
    parser.add_argument(
        "--jobs", type=int, default=default_jobs(),
        help="processes that read, featurise and replay cases (default: the processors there are)",
    )  # fmt: skip
    parser.add_argument(
        "--finetune", nargs="?", const="", metavar="BUNDLE",
        help="go on from a bundle's network (without a name: the one in the package) instead of from scratch; of the "
        "work folder of an earlier training, each network from its own, so that a fold stays unseen by its network",
    )  # fmt: skip
    add_network_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Train, fit and write the bundle; 0."""
    cases = in_reading_order(read_cases(options.data))
    path = options.work / "corpus.npz"
    corpus = corpus_of(cases, path, jobs=options.jobs, show=progress("featurising"))
    start = None
    if options.finetune is not None:
        start = Path(options.finetune) if options.finetune else _shipped()
    plan = plan_of(options, start)
    run_side_by_side(path, job_names(nested=False), options.work, plan, options.networks_at_once)
    finish(cases, corpus, options.work, options.out, seed=options.seed, data=data_card(options.data), jobs=options.jobs)
    return 0


def _shipped() -> Path:
    return Path(str(resources.files("dippm.weights").joinpath(FILE)))


def finish(
    cases: list[MeasuredCase],
    corpus: Corpus,
    work: Path,
    out: Path,
    *,
    seed: int,
    data: Mapping[str, object],
    jobs: int = 1,
    device: str = "cpu",
) -> None:
    """From trained networks to the held-back rows and the bundle."""
    from dippm.evaluate.heldback import write_rows
    from dippm.evaluate.rows import Facts, heldback_rows

    prepared = Prepared(cases, corpus, device=str(data["device"]))
    fit = cross_fit(prepared, work, jobs=jobs, device=device, show=progress("composing"))
    facts = Facts(
        [held.known_share for held in fit.held], corpus.formula_bytes.tolist(), np.diff(corpus.node_start).tolist()
    )
    rows = heldback_rows(cases, fit.fold_of, facts, fit.predictions(), [held.composed for held in fit.held])
    write_rows(work / "heldback.csv.gz", rows)
    described = {**data, "cases": len(cases), "architectures": len(set(corpus.architectures.tolist())), "seed": seed}
    write_bundle(final_bundle(prepared, work, fit, described, device=device), out)
    print(f"wrote {out} and {work / 'heldback.csv.gz'}", file=sys.stderr)


def progress(what: str) -> Callable[[int, int], None]:
    """A progress line on standard error with rate and time left; call it with how many of how many are done."""
    start, shown = time.monotonic(), [0.0]

    def show(done: int, of: int) -> None:
        now = time.monotonic()
        if now - shown[0] < (0.5 if sys.stderr.isatty() else 20) and done < of:
            return
        shown[0] = now
        rate = done / max(1e-3, now - start)
        end = "\n" if done == of or not sys.stderr.isatty() else ""
        left = (of - done) / max(1e-3, rate)
        print(f"\r{what}: {done}/{of}, {rate:.0f} a second, {left:.0f} s left", end=end, file=sys.stderr, flush=True)

    return show
