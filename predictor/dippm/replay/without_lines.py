"""What local names of eager Python hold where a file has scopes and no source lines: what is so in every model known.

TorchScript and the files of the exporter that is based on it tell which module runs an operator, and not which line.
`x = f(x)` lets go what `y = f(x)` holds, so that nothing is guessed of most tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dippm.graph import ModelGraph

Held = tuple[Sequence[int], int]
"""Storages, and the last operator during which a name holds them."""


def held_without_lines(
    graph: ModelGraph, reads: Sequence[Sequence[int]], results: Sequence[Sequence[int]]
) -> Iterator[Held]:
    """What names hold; `reads` and `results` are the storages that each operator reads and puts out."""
    yield from _dense_layers(graph, reads, results)
    yield from _embeddings(graph, reads, results)


def _dense_layers(
    graph: ModelGraph, reads: Sequence[Sequence[int]], results: Sequence[Sequence[int]]
) -> Iterator[Held]:
    """What a DenseNet's layer concatenates is named until its first convolution is done.

    So it is in torchvision and in timm. A layer is a module that concatenates what a sibling before it did, and more:
    the features of the block, of which each layer adds its own.
    """
    features: dict[tuple[str, ...], set[tuple[int, ...]]] = {}
    for index, operator in enumerate(graph.operators):
        if operator.kind != "concat" or operator.source or len(operator.scope) < 2:
            continue
        read = tuple(reads[index])
        before = features.setdefault(operator.scope[:-1], set())
        if any(read[:count] in before for count in range(1, len(read))):
            yield results[index], _first_convolution(graph, index)
        before.add(read)


def _first_convolution(graph: ModelGraph, begin: int) -> int:
    """The next convolution of the same module call, itself or in a child; `begin` where there is none."""
    for index in range(begin + 1, _end(graph, begin, graph.operators[begin].scope) + 1):
        if graph.operators[index].kind.startswith("conv"):
            return index
    return begin


def _embeddings(graph: ModelGraph, reads: Sequence[Sequence[int]], results: Sequence[Sequence[int]]) -> Iterator[Held]:
    """What an embedding module puts out is named by its caller, until that returns.

    `inputs_embeds = self.wte(input_ids)`: so do 330 of 331 embeddings in the data set's graphs of transformers, by 15
    model types, as their lines say. What is put together with others at once (the tables of a recommender) goes into a
    list of no name.
    """
    operators = graph.operators
    for index, operator in enumerate(operators):
        if operator.kind != "embedding" or operator.source or len(operator.scope) < 2:
            continue
        put_out = set(results[index])
        reader = next((i for i in range(index + 1, len(operators)) if not put_out.isdisjoint(reads[i])), None)
        if reader is not None and operators[reader].kind not in ("concat", "stack"):
            yield results[index], _end(graph, index, operator.scope[:-1])


def _end(graph: ModelGraph, begin: int, scope: tuple[str, ...]) -> int:
    """The last operator of the module call `scope` that the operator `begin` runs in."""
    end = begin
    while end + 1 < len(graph.operators) and graph.operators[end + 1].scope[: len(scope)] == scope:
        end += 1
    return end
