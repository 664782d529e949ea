"""The corpus of a data set: featurised in some processes, network by network.

What was made of a network is kept in a file of its own, so that a stopped run goes on and a grown data set only adds
what is new. About 45 ms of one core a case (260 operators): graph 11, labels 11, features 22.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from pathlib import Path

from dippm.network import featurizer, workspace
from dippm.train.corpus import Corpus
from dippm.train.labels import MeasuredCase
from dippm.train.parallel import spread

Show = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Part:
    """The cases of a network and the file that their corpus is kept in."""

    cases: tuple[MeasuredCase, ...]
    path: Path


def in_reading_order(cases: Sequence[MeasuredCase]) -> list[MeasuredCase]:
    """The cases of a network next to each other: its graph is then put together once."""
    return sorted(cases, key=lambda case: case.network)


def corpus_of(
    cases: Sequence[MeasuredCase], path: Path, *, jobs: int = 1, show: Show = lambda done, of: None
) -> Corpus:
    """The corpus of cases in reading order, from the file where it is of these as they are, else made and kept there.

    Parts lie in a folder of the file's name.
    """
    parts = [_part(tuple(same), path.with_suffix("")) for _, same in groupby(cases, key=lambda case: case.network)]
    mark = sha256(" ".join(part.path.name for part in parts).encode()).hexdigest()
    stamp = path.with_suffix(".stamp")
    if path.exists() and stamp.exists() and stamp.read_text() == mark:
        return Corpus.load(path)
    missing = [part for part in parts if not part.path.exists()]
    done = len(cases) - sum(len(part.cases) for part in missing)
    for part, _ in zip(missing, spread(_make, missing, jobs), strict=True):
        done += len(part.cases)
        show(done, len(cases))
    corpus = Corpus.join([Corpus.load(part.path) for part in parts])
    corpus.save(path)
    stamp.write_text(mark)
    return corpus


def _part(cases: tuple[MeasuredCase, ...], folder: Path) -> Part:
    what = f"{featurizer.VERSION} {workspace.CLASSES} {[(case.id, case.source.mark) for case in cases]}"
    return Part(cases, folder / f"{sha256(what.encode()).hexdigest()[:24]}.npz")


def _make(part: Part) -> None:
    Corpus.of(part.cases).save(part.path)
