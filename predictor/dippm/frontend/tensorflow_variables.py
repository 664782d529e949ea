"""TensorFlow graphs without their variables: typed placeholders and constants of made-up values stand for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from dippm.errors import UnsupportedOperator
from dippm.frontend.tensorflow_graph import node_of

LARGEST_VECTOR = 1 << 20
"""Vectors of at most so many elements are constants of made-up values: tf2onnx can only move a transpose past a bias or
a batch norm whose vectors it knows. All other weights are placeholders, which it cannot fold into one another."""
LARGEST_IN_LOOP = 1 << 25
"""Weights of a loop likewise: tf2onnx only knows an LSTM or a GRU in it by its constants."""
_CALLS = frozenset(
    {"While", "StatelessWhile", "If", "StatelessIf", "Case", "PartitionedCall", "StatefulPartitionedCall"}
)
_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_PASSED_ON = frozenset({"Identity", "Enter", "RefIdentity", "ReadVariableOp"})


@dataclass(frozen=True)
class Weightless:
    """A graph whose variables are placeholders and constants."""

    definition: Any
    weights: Mapping[str, tuple[str, tuple[int, ...]]]
    """Placeholders that stand for weights, as tensors (`node:0`): dtype and shape."""


def without_variables(definition: Any) -> Weightless:
    """Variables as placeholders and, where they are vectors, constants; what reads them reads those."""
    definition = _without_variables_in_loops(definition)
    variables = {n.name: n for n in definition.node if n.op in _VARIABLES}
    weights: dict[str, tuple[str, tuple[int, ...]]] = {}
    kept = tf.compat.v1.GraphDef()
    kept.versions.CopyFrom(definition.versions)
    kept.library.CopyFrom(definition.library)
    nodes = {n.name: n for n in definition.node}

    def variable_of(name: str) -> Any:
        node = nodes.get(node_of(name))
        while node is not None and node.op in _PASSED_ON and node.input:
            node = nodes.get(node_of(node.input[0]))
        return node if node is not None and node.op in _VARIABLES else None

    for number, node in enumerate(definition.node):
        if node.op in _VARIABLES:
            dtype, shape = tf.as_dtype(node.attr["dtype"].type), _shape(node.attr["shape"].shape)
            if dtype.is_floating and _is_placeholder(shape):
                weights[f"{node.name}:0"] = (dtype.name, shape)
                _typed(kept.node.add(op="Placeholder", name=node.name), dtype, node.attr["shape"].shape)
            else:
                _constant(kept.node.add(op="Const", name=node.name), dtype, shape, number)
        elif node.op in _PASSED_ON and (held := variable_of(node.input[0])) is not None:
            read = kept.node.add(op="Identity", name=node.name)
            read.input.append(held.name)
            read.attr["T"].type = held.attr["dtype"].type
        elif node.op == "ResourceGather" and (held := variable_of(node.input[0])) is not None:
            axis = kept.node.add(op="Const", name=f"{node.name}/dippm_axis")
            axis.attr["dtype"].type = tf.int32.as_datatype_enum
            axis.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(node.attr["batch_dims"].i, tf.int32))
            gather = kept.node.add(op="GatherV2", name=node.name)
            gather.input.extend([held.name, node.input[1], axis.name])
            gather.attr["Tparams"].type = node.attr["dtype"].type
            gather.attr["Tindices"].type = node.attr["Tindices"].type
            gather.attr["Taxis"].type = tf.int32.as_datatype_enum
            gather.attr["batch_dims"].i = node.attr["batch_dims"].i
        else:
            added = kept.node.add()
            added.CopyFrom(node)
            inputs = [i for i in added.input if not (i.startswith("^") and node_of(i) in variables)]
            del added.input[:]
            added.input.extend(inputs)
    return Weightless(kept, weights)


def _shape(shape: Any) -> tuple[int, ...]:
    if shape.unknown_rank or any(d.size < 0 for d in shape.dim):
        raise UnsupportedOperator("a variable of the TensorFlow graph has no static shape, which is not supported")
    return tuple(d.size for d in shape.dim)


def _is_placeholder(shape: tuple[int, ...]) -> bool:
    elements = np.prod(shape, dtype=np.float64)
    return bool(elements > max(shape, default=1) or elements > LARGEST_VECTOR)


def _typed(node: Any, dtype: Any, shape: Any) -> None:
    node.attr["dtype"].type = dtype.as_datatype_enum
    node.attr["shape"].shape.CopyFrom(shape)


def _constant(node: Any, dtype: Any, shape: tuple[int, ...], seed: int) -> None:
    node.attr["dtype"].type = dtype.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(_made_up(dtype, shape, seed), dtype))


def _made_up(dtype: Any, shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    """Values that no two weights share: equal constants would be taken for one."""
    if not dtype.is_floating:
        return np.zeros(shape, dtype.as_numpy_dtype)
    values: np.ndarray[Any, Any] = np.random.default_rng(seed).random(shape, np.float32) + 0.5
    return values.astype(dtype.as_numpy_dtype)


class _Constants(convert_to_constants._ConverterData):  # type: ignore[misc]  # TensorFlow ships no types
    """What TensorFlow's own conversion asks for: the value of each variable that is to be a constant."""

    def __init__(self, definition: Any, names: frozenset[str]) -> None:
        super().__init__(definition)
        for number, node in enumerate(definition.node):
            if node.name in names:
                dtype, shape = tf.as_dtype(node.attr["dtype"].type), _shape(node.attr["shape"].shape)
                if np.prod(shape, dtype=np.float64) > LARGEST_IN_LOOP:
                    raise UnsupportedOperator(
                        f"the loop that reads {node.name} is not supported: its weight has more than "
                        f"{LARGEST_IN_LOOP} elements"
                    )
                self._tensor_data[node.name] = convert_to_constants._TensorData(
                    numpy=_made_up(dtype, shape, number), dtype=node.attr["dtype"].type, index=None
                )


def _without_variables_in_loops(definition: Any) -> Any:
    """Variables that loops and branches take become constants, inside their functions too.

    A function that was put in place leaves an `Identity` of each of its arguments: what a loop takes is behind it.
    """
    nodes = {n.name: n for n in definition.node}
    direct = tf.compat.v1.GraphDef()
    direct.CopyFrom(definition)
    taken = set()
    for node in direct.node:
        if node.op not in _CALLS:
            continue
        node.attr.pop("_output_shapes", None)  # a resource's shape is not that of what it holds
        for place, tensor in enumerate(node.input):
            source = nodes[node_of(tensor)]
            while source.op == "Identity" and source.attr["T"].type == tf.resource.as_datatype_enum:
                source = nodes[node_of(source.input[0])]
            if source.op == "VarHandleOp" and not tensor.startswith("^"):
                node.input[place] = source.name
                taken.add(source.name)
    if not taken:
        return definition
    definition = direct
    return convert_to_constants._replace_variables_by_constants(_Constants(definition, frozenset(taken)))[0]
