"""When each tensor of a graph is allocated and freed, by the rules of the runtime.

`graph`: the generated code of an exported program sets a name to None after its last use, so a tensor dies there.

`eager`: Python holds longer (`dippm.replay.eager`).

Tensors that share a storage (views, in-place operators) live and die together. The graph's inputs are the caller's
and outlive the pass; its outputs live until the pass is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dippm.attention import copied_outputs, masks_left_out
from dippm.case import Mode, Runtime
from dippm.graph import ModelGraph, ValueKind
from dippm.replay.eager import held_by_python
from dippm.replay.saved import kept_for_backward

_RETURNS_ITS_INPUT = frozenset({"dropout", "identity"})
"""Kinds that in evaluation return the very tensor that they were given, whatever the exported graph says."""


@dataclass(frozen=True)
class Lifetimes:
    """Storages by the operator that allocates them and the operator after which they are freed.

    A storage goes by the id of the value that owns it. Weights, constants and graph inputs are in neither list:
    they are there before the pass and after it.
    """

    allocated: tuple[tuple[int, ...], ...]
    """Per operator: storages that it allocates for its outputs, in output order."""
    freed: tuple[tuple[int, ...], ...]
    """Per operator: storages freed once it is done, before the next one starts."""
    kept: tuple[int, ...]
    """Storages of the graph's outputs, and of what is saved for backward: freed when the result is released."""
    extras: tuple[int, ...]
    """Per operator: bytes beside its outputs that it leaves behind for the backward pass, freed as late."""


def storages(
    graph: ModelGraph, copied: frozenset[int] = frozenset(), stands_for: Mapping[int, int] = MappingProxyType({})
) -> tuple[int, ...]:
    """Per value the id of the value that owns its storage, dropout in evaluation seen as the alias that it is.

    What is `copied` is no view and what `stands_for` another is that, whatever the graph says (`dippm.attention`).
    """
    owner: list[int] = []
    for index, value in enumerate(graph.values):
        source = stands_for.get(index, value.alias_of)
        if source is None and value.producer is not None:
            operator = graph.operators[value.producer]
            if operator.kind in _RETURNS_ITS_INPUT and operator.inputs:
                source = operator.inputs[0]
        owner.append(index if source is None else source)
    for index in range(len(owner)):
        root = index
        while owner[root] != root:
            root = owner[root]
        owner[index] = root
    if not copied:
        return tuple(owner)
    parted = list(range(len(owner)))
    for index, value in enumerate(graph.values):
        if owner[index] != index and index not in copied:
            inputs = () if value.producer is None else graph.operators[value.producer].inputs
            parted[index] = parted[next((i for i in inputs if owner[i] == owner[index]), owner[index])]
    return tuple(parted)


def lifetimes(graph: ModelGraph, runtime: Runtime, mode: Mode = Mode.INFERENCE) -> Lifetimes:
    """Lifetimes of the storages of one forward pass of `graph`.

    `auto` is taken as `eager`. With `mode` autograd, what the backward pass would need is kept until the pass is over
    (`dippm.replay.saved`).

    `torchscript` frees at the last use, as `graph` does: its interpreter moves a value out of its register where it is
    read last, and an operator drops its arguments when it returns; calls of modules are inlined and hold nothing. (What
    a GPU's fuser makes one kernel of, from the third pass on, is not taken into account.) `onnxruntime` is not
    replayed from lifetimes: `dippm.replay.onnxruntime`.
    """
    left_out = masks_left_out(graph, runtime)
    owner = storages(graph, copied_outputs(graph, runtime), left_out.stands_for)
    born: dict[int, int] = {}
    until: dict[int, int] = {}
    for index, operator in enumerate(graph.operators):
        for value in operator.outputs:
            storage = owner[value]
            if graph.values[storage].kind is ValueKind.RESULT and value not in left_out.values:
                born.setdefault(storage, index)
                until[storage] = index
        for value in operator.inputs:
            if owner[value] in born:
                until[owner[value]] = index
    if runtime.is_eager:
        for storage, end in held_by_python(graph, owner, born, dict(until)).items():
            until[storage] = max(until[storage], end)
    at_the_end = [owner[value] for value in graph.outputs]
    extras = (0,) * len(graph.operators)
    if mode is Mode.AUTOGRAD:
        backward = kept_for_backward(graph, runtime)
        at_the_end += [owner[value] for value in backward.values]
        extras = backward.extras
    kept = tuple(storage for storage in dict.fromkeys(at_the_end) if storage in born)
    allocated: list[list[int]] = [[] for _ in graph.operators]
    freed: list[list[int]] = [[] for _ in graph.operators]
    for storage, index in born.items():
        allocated[index].append(storage)
    for storage in born.keys() - set(kept):
        freed[until[storage]].append(storage)
    return Lifetimes(tuple(map(tuple, allocated)), tuple(tuple(sorted(ids)) for ids in freed), kept, extras)
