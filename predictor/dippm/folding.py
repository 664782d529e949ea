"""Graphs as runtimes that optimise them when they load them run them; PyTorch does not.

ONNX Runtime folds batch norms into the convolutions before them (`ConvBNFusion`) and computes what hangs on no input
(`ConstantFolding`), both at its basic level. A graph has its batch norms and its tables of positions whatever file it
came from (`dippm.frontend`), and this takes them out again for a runtime that never runs them.
"""

from __future__ import annotations

import re
from dataclasses import replace

from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind

_FIXED = frozenset({ValueKind.PARAMETER, ValueKind.BUFFER, ValueKind.CONSTANT})
_RANDOM = re.compile(r"rand|bernoulli|multinomial|normal_|uniform", re.IGNORECASE)
_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


def as_loaded(graph: ModelGraph) -> tuple[ModelGraph, int]:
    """The graph as ONNX Runtime runs it, and how many batch norms convolutions have taken in."""
    graph, norms = fold_batch_norms(graph)
    return fold_constants(graph), norms


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


def fold_constants(graph: ModelGraph) -> ModelGraph:
    """The graph without the operators that hang on no input; what the others read of them is held like a weight.

    Where the file leaves its batch open, what looks so may hang on the shape of an input: nothing is folded then. Nor
    is what draws at random, or a result of the model.
    """
    if graph.open_batch:
        return graph
    values = list(graph.values)
    folded: set[int] = set()
    operators: list[Operator] = []
    for operator in graph.operators:
        fixed = all(values[i].kind in _FIXED or i in folded for i in operator.inputs)
        if fixed and not _RANDOM.search(operator.target) and not set(operator.outputs) & set(graph.outputs):
            folded.update(operator.outputs)
        else:
            operators.append(operator)
    if not folded:
        return graph
    read = {i for operator in operators for i in operator.inputs}
    for i in folded & read:
        values[i] = Value(values[i].spec, ValueKind.BUFFER, name=values[i].name)
    before = {i for o in graph.operators if set(o.outputs) <= folded for i in o.inputs}
    gone = (folded - read) | {i for i in before - read if values[i].kind in _FIXED and i not in graph.outputs}
    gone -= {values[i].alias_of for i in range(len(values)) if i not in gone}
    return _renumbered(graph, values, operators, gone)


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
