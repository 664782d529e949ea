"""Batch norms folded into the convolutions before them, as runtimes that optimise a graph when they load it run it.

ONNX Runtime does so at its basic level (`ConvBNFusion`); PyTorch does not. A graph has its batch norms whatever file it
came from (`dippm.frontend`), and this takes them out again for a runtime that never runs them.
"""

from __future__ import annotations

from dataclasses import replace

from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


def fold_batch_norms(graph: ModelGraph) -> tuple[ModelGraph, int]:
    """The graph without the batch norms that a convolution can take in, and how many those were.

    A norm is taken in where it alone reads the convolution's output; the convolution gets a bias if it had none.
    """
    folded = _foldable(graph)
    if not folded:
        return graph, 0
    values = list(graph.values)
    operators: list[Operator] = []
    gone: set[int] = set()
    for index, operator in enumerate(graph.operators):
        norm = folded.get(index)
        if norm is not None:
            after = graph.operators[norm]
            inputs = operator.inputs
            if len(inputs) == 2:
                spec = TensorSpec(values[inputs[1]].spec.shape[:1], values[inputs[1]].spec.dtype)
                inputs = (*inputs, len(values))
                values.append(Value(spec, ValueKind.PARAMETER, name=f"{values[inputs[1]].name}.folded_bias"))
            gone.update(operator.outputs)
            operator = replace(operator, inputs=inputs, outputs=after.outputs)
        elif index in folded.values():
            gone.update(i for i in operator.inputs[1:] if graph.values[i].kind is not ValueKind.RESULT)
            continue
        operators.append(operator)
    gone -= {i for operator in operators for i in (*operator.inputs, *operator.outputs)}
    return _renumbered(graph, values, operators, gone), len(folded)


def _foldable(graph: ModelGraph) -> dict[int, int]:
    """The norm of each convolution that can take it in, by their indices."""
    readers: dict[int, list[int]] = {}
    for index, operator in enumerate(graph.operators):
        for value in operator.inputs:
            readers.setdefault(value, []).append(index)
    found = {}
    for index, operator in enumerate(graph.operators):
        if (
            operator.kind != "batch_norm"
            or not operator.inputs
            or graph.values[operator.outputs[0]].alias_of is not None
        ):
            continue
        value = operator.inputs[0]
        producer = graph.values[value].producer
        single = readers[value] == [index] and value not in graph.outputs
        if producer is not None and single and graph.operators[producer].kind in _CONVOLUTIONS:
            found[producer] = index
    return found


def _renumbered(graph: ModelGraph, values: list[Value], operators: list[Operator], gone: set[int]) -> ModelGraph:
    kept = [i for i in range(len(values)) if i not in gone]
    place = {old: new for new, old in enumerate(kept)}
    producers = {output: index for index, operator in enumerate(operators) for output in operator.outputs}
    return replace(
        graph,
        values=tuple(
            replace(
                values[i],
                producer=producers.get(i),
                alias_of=None if (alias := values[i].alias_of) is None else place[alias],
            )
            for i in kept
        ),
        operators=tuple(
            replace(o, inputs=tuple(place[i] for i in o.inputs), outputs=tuple(place[i] for i in o.outputs))
            for o in operators
        ),
        inputs=tuple(place[i] for i in graph.inputs),
        outputs=tuple(place[i] for i in graph.outputs),
    )
