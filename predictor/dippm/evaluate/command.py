"""`dippm evaluate`: the error table, from held-back predictions or of a bundle on measured rows.

Held-back predictions are those that `dippm train` wrote beside its networks: each case by networks that never saw its
super-family. A bundle evaluated on rows that it was trained on tells nothing of new architectures; that way is for
rows measured later (another card, another model).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from dippm.errors import ArtifactUnreachable
from dippm.evaluate.errors import render
from dippm.evaluate.heldback import HeldBackRow, error_table, heavy, measured_footprints, read_rows
from dippm.evaluate.right_profile import near_boundary, profile_share
from dippm.profiles import NEAR
from dippm.train.split import FOLDS, RANDOM

DEVICES = ("A100-SXM4-40GB", "H200")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dippm evaluate`."""
    parser.add_argument("--heldback", type=Path, help="CSV of held-back predictions that dippm train wrote")
    parser.add_argument(
        "--fold", type=int, help="only this fold (a held-back fifth); default: all five, each held back once"
    )
    parser.add_argument("--data", type=Path, help="measured rows to evaluate a bundle on, instead of --heldback")
    parser.add_argument("--weights", type=Path, help="the bundle for --data; default: the one in the package")
    parser.add_argument("--out", type=Path, help="with --data: keep the predictions as CSV")
    parser.add_argument(
        "--unseen", type=Path, metavar="CSV",
        help="with --data: only architectures that are not in this file of held-back rows, which the bundle's training "
        "left: docs/accuracy/heldback.csv.gz for the one in the package",
    )  # fmt: skip
    parser.add_argument(
        "--sample",
        type=int,
        help="with --data: so many cases, drawn by a fixed seed (without --unseen: trained ones too)",
    )
    parser.add_argument(
        "--release", action="store_true",
        help="with --data: the six locked super-families, which nothing else reads; look once for a release",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print the table; 0. Raises ArtifactUnreachable where there is nothing to evaluate."""
    rows = _rows(options)
    if options.fold is not None and options.fold not in range(FOLDS):
        raise ArtifactUnreachable(f"fold {options.fold}: there are folds 0 to {FOLDS - 1}")
    if options.fold is not None:
        rows = [r for r in rows if r.fold == options.fold]
    if not rows:
        raise ArtifactUnreachable("no cases to evaluate: give --heldback FILE or --data FOLDER with measured rows")
    named = [r for r in rows if r.group != RANDOM]
    sections = {
        "named architectures": named,
        "of these, activations over a tenth of the peak": heavy(named),
        "of these, inference only": [r for r in named if r.mode == "inference"],
        "networks drawn at random": [r for r in rows if r.group == RANDOM],
    }
    footprints = measured_footprints(named)
    profiles = {device: profile_share(footprints, device) for device in DEVICES}
    near = {device: near_boundary(footprints, device) for device in DEVICES}
    close = {device: profile_share(pairs, device) for device, pairs in near.items()}
    if options.json:
        body = {
            "cases": len(rows),
            "of": _how(options),
            "architectures": len({r.architecture for r in rows}),
            "sections": {name: [asdict(e) for e in error_table(part)] for name, part in sections.items()},
            "right_profile_percent": profiles,
            "near_boundary_cases": {device: len(pairs) for device, pairs in near.items()},
            "right_profile_near_boundary_percent": close,
        }
        print(json.dumps(body))
        return 0
    print(f"{len(rows)} cases of {len({r.architecture for r in rows})} architectures, {_how(options)}")
    for name, part in sections.items():
        print(f"\n## {name} ({len(part)} cases)\n\n{render(error_table(part))}")
    print("\n## named architectures, without the graph level\n\n" + render(error_table(named, composed=True)))
    for device, share in profiles.items():
        print(
            f"\nright profile by footprint on {device}: {share:.1f} % of {len(footprints)} cases; "
            f"{close[device]:.1f} % of the {len(near[device])} within {NEAR:.0%} of a profile's limit"
        )
    return 0


def _how(options: argparse.Namespace) -> str:
    """Which cases these are, and whose predictions."""
    if options.release:
        return "of locked super-families, as the bundle predicts them"
    if options.heldback is not None:
        return "each held back"
    if options.unseen:
        return "of architectures that its training never saw, as the bundle predicts them"
    return "as the bundle predicts them, those that it was trained on among them (--unseen CSV leaves them out)"


def _rows(options: argparse.Namespace) -> list[HeldBackRow]:
    if options.release and options.data is None:
        raise ArtifactUnreachable("--release looks at the locked cases of a data set: name it with --data FOLDER")
    if options.heldback is not None:
        if not options.heldback.is_file():
            raise ArtifactUnreachable(f"{options.heldback} is no file: dippm train writes it as heldback.csv.gz")
        return read_rows(options.heldback)
    if options.data is None:
        return []
    if options.unseen is not None and not options.unseen.is_file():
        raise ArtifactUnreachable(f"{options.unseen} is no file: give the heldback.csv.gz of the bundle's training")
    from dippm.evaluate.bundle_rows import rows_of_bundle

    return rows_of_bundle(
        options.data, options.weights, options.out, progress("evaluating"),
        release=options.release, unseen=options.unseen, sample=options.sample,
    )  # fmt: skip


def progress(what: str) -> Callable[[int, int], None]:
    """A progress line on standard error: call it with how many of how many are done."""

    def show(done: int, of: int) -> None:
        if sys.stderr.isatty() or done == of or done % 50 == 0:
            end = "\n" if done == of or not sys.stderr.isatty() else ""
            print(f"\r{what}: {done}/{of}", end=end, file=sys.stderr, flush=True)

    return show
