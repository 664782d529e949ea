"""Which cases are for training and which for looking: fixed by file and hash, so that a growing data set moves nothing.

`splits.yaml` holds the super-families (`super:` in `dippm/zoo/families.yaml` says which families belong to one): six
are locked, the others lie in five folds. A network drawn at random has no relatives: its name decides its fold.

    python -m dippm.data.splits cases.jsonl     # adds the super-families of a list that the file does not hold yet
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

FOLDS = 5
RANDOM = "random"
"""Super-family of networks drawn at random."""
LOCKED, SEED, ENOUGH = 6, 1, 8
"""So many super-families are locked, drawn by this seed among those of so many architectures."""
PAPERS = frozenset({
    "efficientnet", "mobile", "resnet", "vgg", "swin", "vit", "densenet", "visformer", "poolformer", RANDOM,
})  # fmt: skip
"""Super-families of the paper's ten families: never locked, since the comparison with it needs them."""
PARTS = (("train", 0.70), ("validation", 0.85), ("test", 1.0))
"""Parts of the random split, by where their share ends."""
_FILE = "splits.yaml"


@cache
def _body() -> Mapping[str, Any]:
    body: Mapping[str, Any] = yaml.safe_load(files("dippm.data").joinpath(_FILE).read_text())
    return body


def locked() -> frozenset[str]:
    """Super-families that no network is trained on and no figure is of, until a release looks at them once."""
    return frozenset(_body()["locked"])


def fold_of(super_family: str, architecture: str) -> int | None:
    """The fold in which a case is held back; None where the file does not know the super-family, or has it locked."""
    if super_family == RANDOM:
        return int(draw("fold", architecture) * FOLDS)
    return next((i for i, names in enumerate(_body()["folds"]) if super_family in names), None)


def part_of(case_id: str) -> str:
    """`train`, `validation` or `test` of the random split (70/15/15, the paper's), by the case's id."""
    share = draw("part", case_id)
    return next(name for name, end in PARTS if share < end)


def draw(what: str, name: str) -> float:
    """A number in [0, 1) that only depends on a name."""
    digest = hashlib.sha256(f"{what} {SEED} {name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def draw_locked(architectures: Mapping[str, int], looked_at: Collection[str]) -> list[str]:
    """Six super-families with enough architectures that rules were not made by; none of the paper's."""
    eligible = [
        name
        for name, count in architectures.items()
        if count >= ENOUGH and name not in PAPERS and name not in looked_at
    ]
    return sorted(sorted(eligible, key=lambda name: draw("locked", name))[:LOCKED])


def extend(body: Mapping[str, Any], networks: Mapping[str, int], sources: Mapping[str, str]) -> dict[str, Any]:
    """The file's body with super-families that it does not hold yet, largest first.

    Each goes into the fold with the fewest networks of its source (timm: pictures, transformers: mostly language), then
    the fewest networks: no fold takes all of a kind out of training.
    """
    folds = [list(names) for names in body["folds"]]
    known = {name for names in folds for name in names} | set(body["locked"]) | {RANDOM}
    load: Counter[tuple[int, str]] = Counter()
    for name in sorted(networks, key=lambda n: (n not in known, -networks[n], n)):
        place = next((i for i, names in enumerate(folds) if name in names), None)
        if place is None:
            if name in known:
                continue
            place = min(range(FOLDS), key=lambda i: (load[i, sources[name]], load[i, ""], i))
            folds[place].append(name)
        load[place, sources[name]] += networks[name]
        load[place, ""] += networks[name]
    return {**body, "folds": [sorted(names) for names in folds]}


def main(arguments: Sequence[str]) -> int:
    """Extends the file by the super-families of a list of cases; draws the locked ones if it holds none."""
    networks: dict[str, set[str]] = defaultdict(set)
    architectures: dict[str, set[str]] = defaultdict(set)
    sources: dict[str, Counter[str]] = defaultdict(Counter)
    for line in Path(arguments[0]).read_text().splitlines():
        case = json.loads(line)
        sources[case["super_family"]][case["network"]["source"]] += 1
        networks[case["super_family"]].add(json.dumps(case["network"], sort_keys=True))
        architectures[case["super_family"]].add(case["network"]["architecture"])
    path = Path(str(files("dippm.data").joinpath(_FILE)))
    text = path.read_text()
    body = yaml.safe_load(text)
    if not body["locked"]:
        counts = {name: len(found) for name, found in architectures.items()}
        body["locked"] = draw_locked(counts, body["looked_at"])
    usual = {name: found.most_common(1)[0][0] for name, found in sources.items()}
    extended = extend(body, {name: len(found) for name, found in networks.items()}, usual)
    head = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    path.write_text(head + yaml.safe_dump(extended, default_flow_style=None, width=110, sort_keys=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
