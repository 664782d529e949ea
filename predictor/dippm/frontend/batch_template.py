"""A graph at any batch, from the same graph at two: every size that differs is a line through the two."""

from __future__ import annotations

from typing import Any

from dippm.frontend.inputs import MAX_DIM, MAX_NUMEL
from dippm.graph import ModelGraph

_SIZE = "~"
"""Key of a size `offset + slope x batch`; no key of a graph's JSON form is called so."""


class NotLinear(Exception):
    """The two graphs are not the same one at two batches."""


def template_of(first: ModelGraph, second: ModelGraph) -> dict[str, Any]:
    """What both are at their batch (JSON form with `{"~": [offset, slope]}` for sizes). Raises NotLinear."""
    template: dict[str, Any] = _line(first.to_dict(), first.batch, second.to_dict(), second.batch)
    return template


def at_batch(template: dict[str, Any], batch: int) -> ModelGraph | None:
    """The graph at a batch; None where a tensor would be larger than is believed (its door says so by name)."""
    graph = ModelGraph.from_dict(_filled(template, batch))
    for value in graph.values:
        elements = 1
        for size in value.spec.shape:
            elements *= size
            if not 0 <= size <= MAX_DIM:
                return None
        if elements > MAX_NUMEL:
            return None
    return graph


def _line(one: Any, at_one: int, other: Any, at_other: int) -> Any:
    if type(one) is not type(other):
        raise NotLinear
    if isinstance(one, dict):
        if one.keys() != other.keys():
            raise NotLinear
        return {key: _line(value, at_one, other[key], at_other) for key, value in one.items()}
    if isinstance(one, list):
        if len(one) != len(other):
            raise NotLinear
        return [_line(a, at_one, b, at_other) for a, b in zip(one, other, strict=True)]
    if one == other:
        return one
    if type(one) is not int or (other - one) % (at_other - at_one):
        raise NotLinear
    slope = (other - one) // (at_other - at_one)
    return {_SIZE: [one - slope * at_one, slope]}


def _filled(template: Any, batch: int) -> Any:
    if isinstance(template, dict):
        if (size := template.get(_SIZE)) is not None:
            return size[0] + size[1] * batch
        return {key: _filled(value, batch) for key, value in template.items()}
    if isinstance(template, list):
        return [_filled(value, batch) for value in template]
    return template
