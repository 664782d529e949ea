"""What paddle2onnx writes otherwise than a program has it, put right.

- An `Identity` stands for a dropout that does nothing, a cast to the same type, a second name of a result: it goes.
- The bias of a convolution, which Paddle adds in an operator of its own (`Conv`, `Reshape` of the bias to (1, channels,
  1, ...), `Add`), is the convolution's again: other frameworks call one convolution with its bias.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import onnx

_CHANNELS = {"Conv": 0, "ConvTranspose": 1}
"""Which dimension of the weight counts the outputs of a group."""


def without_identities(graph: onnx.GraphProto) -> None:
    """Leave out every `Identity` but one that gives a graph's output its name; a graph with branches is left alone."""
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for n in graph.node for a in n.attribute):
        return
    outputs = {output.name for output in graph.output}
    same: dict[str, str] = {}
    kept = []
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = same.get(name, name)
        if node.op_type == "Identity" and node.output[0] not in outputs:
            same[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _keep(graph, kept)


def with_biases(graph: onnx.GraphProto, parameters: Mapping[str, tuple[str, list[int]]]) -> None:
    """Give convolutions their bias; `parameters` has element type and shape by name."""
    producers = {output: node for node in graph.node for output in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    gone: set[str] = set()
    for add in graph.node:
        if add.op_type != "Add":
            continue
        for position in (0, 1):
            conv, reshape = producers.get(add.input[position]), producers.get(add.input[1 - position])
            if conv is None or reshape is None or conv.op_type not in _CHANNELS or len(conv.input) != 2:
                continue
            if readers[conv.output[0]] != 1 or reshape.op_type != "Reshape":
                continue
            if _channels(conv, parameters) == parameters.get(reshape.input[0], ("", []))[1]:
                conv.input.append(reshape.input[0])
                gone.add(conv.output[0])
                conv.output[0] = add.output[0]
                break
    _keep(graph, [node for node in graph.node if node.op_type != "Add" or not gone & set(node.input)])


def _channels(conv: onnx.NodeProto, parameters: Mapping[str, tuple[str, list[int]]]) -> list[int] | None:
    """The shape that its bias has; None where the weight is no parameter."""
    if conv.input[1] not in parameters:
        return None
    groups = next((a.i for a in conv.attribute if a.name == "group"), 1)
    count = parameters[conv.input[1]][1][_CHANNELS[conv.op_type]]
    return [count if conv.op_type == "Conv" else count * groups]


def _keep(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
