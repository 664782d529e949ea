"""TensorFlow graphs (`GraphDef`): function calls put in place, and the nodes behind a tensor."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
from tensorflow.python.framework import convert_to_constants
from tensorflow.python.grappler import tf_optimizer

from dippm.errors import UnsupportedOperator

_NOT_INLINED = ("_XlaMustCompile", "_noinline")
"""Marks of calls that stay calls: Keras has XLA compile its grouped convolutions."""


def inlined(definition: Any, inputs: list[str], outputs: list[str]) -> Any:
    """The graph with its function calls put in place, pruned to what leads to `outputs`. Nothing of it is run."""
    definition = convert_to_constants.disable_lower_using_switch_merge(definition)
    for nodes in (definition.node, *(function.node_def for function in definition.library.function)):
        for node in nodes:
            for mark in _NOT_INLINED:
                node.attr.pop(mark, None)
    for function in definition.library.function:
        for mark in _NOT_INLINED:
            function.attr.pop(mark, None)
    config = config_pb2.ConfigProto()
    options = config.graph_options.rewrite_options
    options.optimizers[:] = ["function"]
    options.function_optimization = rewriter_config_pb2.RewriterConfig.AGGRESSIVE
    options.min_graph_nodes = -1
    meta = tf.compat.v1.train.export_meta_graph(graph_def=definition, graph=imported(definition))
    ends = meta_graph_pb2.CollectionDef()
    ends.node_list.value.extend([*inputs, *outputs])
    meta.collection_def["train_op"].CopyFrom(ends)
    flat = tf_optimizer.OptimizeGraph(config, meta)
    names = [end.split(":")[0] for end in (*inputs, *outputs)]
    return tf.compat.v1.graph_util.extract_sub_graph(flat, names)


def imported(definition: Any) -> Any:
    """The graph as TensorFlow types it. Raises UnsupportedOperator."""
    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.graph_util.import_graph_def(definition, name="")
        except (ValueError, tf.errors.OpError) as error:
            first = " ".join(str(error).split())[:200]
            raise UnsupportedOperator(
                f"the TensorFlow graph has an operator that is not TensorFlow's: {first}"
            ) from None
    return graph


def node_of(tensor: str) -> str:
    """Name of the node that puts a tensor out."""
    return tensor.removeprefix("^").split(":")[0]


class Graph:
    """A graph's nodes by name; what they read, with `Identity` and casts to the same type left out."""

    def __init__(self, definition: Any) -> None:
        self._nodes = {n.name: n for n in definition.node}
        self._typed = imported(definition)

    def source(self, tensor: str) -> Any:
        """The node behind a tensor."""
        node = self._nodes[node_of(tensor)]
        while node.op == "Identity" or (node.op == "Cast" and node.attr["SrcT"].type == node.attr["DstT"].type):
            node = self._nodes[node_of(node.input[0])]
        return node

    def rank(self, tensor: str) -> int | None:
        """How many dimensions a tensor has, where that is known."""
        name = tensor if ":" in tensor else f"{tensor}:0"
        rank: int | None = self._typed.get_tensor_by_name(name).shape.rank
        return rank

    def length(self, vector: str) -> int:
        """How many elements a vector has."""
        return int(self._typed.get_tensor_by_name(vector if ":" in vector else f"{vector}:0").shape[0])

    def number(self, tensor: str) -> float | None:
        """A constant scalar."""
        node = self.source(tensor)
        values = tf.make_ndarray(node.attr["value"].tensor) if node.op == "Const" else np.zeros(0)
        return float(values.reshape(-1)[0]) if values.size == 1 else None

    def vector(self, tensor: str) -> tuple[str, bool] | None:
        """The vector behind a tensor that may be reshaped for broadcasting, and whether it lies along the last axis."""
        node = self.source(tensor)
        if node.op != "Reshape":
            return (tensor, True) if self.rank(tensor) == 1 else None
        target = self.source(node.input[1])
        if target.op != "Const" or self.rank(node.input[0]) != 1:
            return None
        shape = tf.make_ndarray(target.attr["value"].tensor).tolist()
        if len(shape) != 4 or shape[0] != 1 or shape[2] != 1 or 1 not in (shape[1], shape[3]):
            return None
        return node.input[0], shape[1] == 1
