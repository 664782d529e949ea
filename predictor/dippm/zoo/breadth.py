"""Networks beyond the hand-picked ones (`breadth.yaml`): one for each name of timm, and draws from constructor choices.

Every draw depends on the entry's own name and index alone, so that entries may be added without moving others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from random import Random
from typing import Any

import yaml

from dippm.zoo.case import InputShape, Network

SIDES = (128, 160, 192, 256, 288, 320, 384, 448)
OWN_SIDE_SHARE = 0.5
"""How often a network that takes any side is drawn at its own."""


def breadth() -> Iterator[tuple[Network, str, str]]:
    """(network, family, super-family) of every entry."""
    body = yaml.safe_load(files("dippm.zoo").joinpath("breadth.yaml").read_text())
    for family, entry in body["pictures"].items():
        for free in (False, True):
            for word in entry.get("free" if free else "fixed", "").split():
                yield _picture(word, free), family, entry["super"]
    for name, entry in body["drawn"].items():
        for index in range(entry["count"]):
            yield _drawn(name, entry, Random(f"breadth {name} {index}"), index), entry["family"], entry["super"]


def _picture(word: str, free: bool) -> Network:
    name, _, own = word.partition(":")
    side = int(own or 224)
    random = Random(f"side {name}")
    if free and random.random() > OWN_SIDE_SHARE:
        side = random.choice(SIDES)
    return Network(name, "timm", name, {}, (InputShape((3, side, side)),))


def _drawn(name: str, entry: Mapping[str, Any], random: Random, index: int) -> Network:
    kwargs: dict[str, Any] = {}
    for choice in entry["choices"]:
        if isinstance(choice, Mapping):
            kwargs |= {key: random.choice(values) for key, values in choice.items()}
        else:
            kwargs |= random.choice(choice)
    inputs = _inputs(entry, kwargs, random)
    model = entry["model"]
    chosen = model if isinstance(model, str) else random.choice(model)
    return Network(f"{name}_{index:03d}", entry["source"], chosen, kwargs, inputs)


def _inputs(entry: Mapping[str, Any], kwargs: dict[str, Any], random: Random) -> tuple[InputShape, ...]:
    if "fixed_sides" in entry:
        kwargs["img_size"] = random.choice(entry["fixed_sides"])
        return (InputShape((3, kwargs["img_size"], kwargs["img_size"])),)
    if "sides" in entry:
        side = random.choice(entry["sides"])
        return (InputShape((3, side, side)),)
    if "steps" in entry:
        tokens = InputShape((random.choice(entry["steps"]),), "int64", entry["high"])
        if not entry.get("cached"):
            return (tokens,)
        each = kwargs["width"] // kwargs["heads"]
        return tokens, InputShape((kwargs["layers"], 2, kwargs["kv_heads"], kwargs["context"], each))
    if "features" in entry:
        shape = random.choice(entry["features"])
        if "features" in kwargs:
            kwargs["features"] = shape[0]
        return (InputShape(tuple(shape)),)
    return tuple(_input(part) for part in random.choice(entry["inputs"]))


def _input(part: Sequence[int] | Mapping[str, Any]) -> InputShape:
    if isinstance(part, Mapping):
        return InputShape(tuple(part["shape"]), "int64", part["high"])
    return InputShape(tuple(part))
