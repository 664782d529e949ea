"""The declared networks (`families.yaml`), spelled out with their input shapes, and random ones beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from random import Random
from typing import Any

import yaml

from dippm.zoo.breadth import breadth
from dippm.zoo.case import InputShape, Network


@dataclass(frozen=True, slots=True)
class Member:
    """A network and the families that decide with whom it is held back."""

    network: Network
    family: str
    super_family: str


def _variants(entry: dict[str, Any]) -> Iterator[Network]:
    kwargs = dict(entry.get("kwargs", {}))
    name, source = entry["name"], entry["source"]
    model = entry.get("model", name)
    for side in entry.get("sizes", ()):
        fixed = {"img_size": side} if entry.get("fixed") else {}
        yield Network(name, source, model, {**kwargs, **fixed}, (InputShape((3, side, side)),))
    for steps in entry.get("tokens", {}).get("steps", ()):
        long = {"n_positions": steps} if model == "gpt2" and steps > 1024 else {}
        yield Network(
            name, source, model, {**kwargs, **long}, (InputShape((steps,), "int64", entry["tokens"]["high"]),)
        )
    for shape in entry.get("features", ()):
        inputs = [InputShape(tuple(shape))]
        if ids := entry.get("ids"):
            inputs.append(InputShape((ids["steps"],), "int64", ids["high"]))
        yield Network(name, source, model, kwargs, tuple(inputs))


def declared() -> list[Member]:
    """Every network of `families.yaml`, one for each input shape that it names."""
    body = yaml.safe_load(files("dippm.zoo").joinpath("families.yaml").read_text())
    return [
        Member(network, family, entry["super"])
        for family, entry in body["families"].items()
        for item in entry["networks"]
        for network in _variants(item)
    ]


def broad() -> list[Member]:
    """Every network of `families.yaml` and of `breadth.yaml`, each once."""
    members = {member.network.key: member for member in declared()}
    for network, family, super_family in breadth():
        members.setdefault(network.key, Member(network, family, super_family))
    return list(members.values())


def random_members(count: int, seed: int) -> list[Member]:
    """`count` random networks, each of its own seed, at a picture size drawn for it."""
    random = Random(f"random networks {seed}")
    members = []
    for index in range(count):
        side = random.choice((64, 96, 128, 160, 192, 224, 224, 256, 320))
        network = Network(
            f"random_{index:04d}", "random", "random", {"seed": seed * 100_000 + index}, (InputShape((3, side, side)),)
        )
        members.append(Member(network, "random", "random"))
    return members
