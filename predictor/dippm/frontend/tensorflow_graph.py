"""TensorFlow graphs (`GraphDef`) rewritten: function calls put in place, variables typed, batch norms put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2, rewriter_config_pb2
from tensorflow.python.framework import convert_to_constants
from tensorflow.python.grappler import tf_optimizer

from dippm.errors import UnsupportedOperator

LARGEST_VECTOR = 1 << 20
"""Vectors of at most so many elements are constants of made-up values: tf2onnx can only move a transpose past a bias or
a batch norm whose vectors it knows. All other weights are placeholders, which it cannot fold into one another."""
LARGEST_IN_LOOP = 1 << 25
"""Weights of a loop likewise: tf2onnx only knows an LSTM or a GRU in it by its constants."""
_CALLS = frozenset(
    {"While", "StatelessWhile", "If", "StatelessIf", "Case", "PartitionedCall", "StatefulPartitionedCall"}
)
_NOT_INLINED = ("_XlaMustCompile", "_noinline")
"""Marks of calls that stay calls: Keras has XLA compile its grouped convolutions."""
_VARIABLES = frozenset({"VarHandleOp", "VariableV2", "Variable"})
_PASSED_ON = frozenset({"Identity", "Enter", "RefIdentity", "ReadVariableOp"})


@dataclass(frozen=True)
class Weightless:
    """A graph whose variables are placeholders and constants."""

    definition: Any
    weights: Mapping[str, tuple[str, tuple[int, ...]]]
    """Placeholders that stand for weights, as tensors (`node:0`): dtype and shape."""


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
    meta = tf.compat.v1.train.export_meta_graph(graph_def=definition, graph=_imported(definition))
    ends = meta_graph_pb2.CollectionDef()
    ends.node_list.value.extend([*inputs, *outputs])
    meta.collection_def["train_op"].CopyFrom(ends)
    flat = tf_optimizer.OptimizeGraph(config, meta)
    names = [end.split(":")[0] for end in (*inputs, *outputs)]
    return tf.compat.v1.graph_util.extract_sub_graph(flat, names)


def _imported(definition: Any) -> Any:
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
        node = nodes.get(_node(name))
        while node is not None and node.op in _PASSED_ON and node.input:
            node = nodes.get(_node(node.input[0]))
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
            inputs = [i for i in added.input if not (i.startswith("^") and _node(i) in variables)]
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
            source = nodes[_node(tensor)]
            while source.op == "Identity" and source.attr["T"].type == tf.resource.as_datatype_enum:
                source = nodes[_node(source.input[0])]
            if source.op == "VarHandleOp" and not tensor.startswith("^"):
                node.input[place] = source.name
                taken.add(source.name)
    if not taken:
        return definition
    definition = direct
    return convert_to_constants._replace_variables_by_constants(_Constants(definition, frozenset(taken)))[0]


def _node(tensor: str) -> str:
    return tensor.removeprefix("^").split(":")[0]


class _Graph:
    """A graph's nodes by name; what they read, with `Identity` and casts to the same type left out."""

    def __init__(self, definition: Any) -> None:
        self._nodes = {n.name: n for n in definition.node}
        self._typed = _imported(definition)

    def source(self, tensor: str) -> Any:
        """The node behind a tensor."""
        node = self._nodes[_node(tensor)]
        while node.op == "Identity" or (node.op == "Cast" and node.attr["SrcT"].type == node.attr["DstT"].type):
            node = self._nodes[_node(node.input[0])]
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


@dataclass(frozen=True)
class _BatchNorm:
    """The operands of a batch norm, as tensors; `scale` and `offset` are vectors, or empty."""

    x: str
    mean: str
    variance: str
    scale: str
    offset: str
    epsilon: float
    channels_last: bool
    channels: int


def with_batch_norms(definition: Any) -> Any:
    """`tf.nn.batch_normalization` on a batch of images, which Keras 3 writes out, as the one operator that it is.

    inverse = rsqrt(variance + epsilon) * scale
    y = x * inverse + (offset - mean * inverse)
    """
    graph = _Graph(definition)
    found = {n.name: norm for n in definition.node if n.op in _SUM and (norm := _batch_norm(graph, n)) is not None}
    result = tf.compat.v1.GraphDef()
    result.versions.CopyFrom(definition.versions)
    result.library.CopyFrom(definition.library)
    for node in definition.node:
        if node.name in found:
            _add_batch_norm(result, node, found[node.name])
        else:
            result.node.add().CopyFrom(node)
    return result


_SUM = ("AddV2", "Add")


def with_plain_operators(definition: Any) -> Any:
    """Operators that tf2onnx lacks or expands at length, in others that do the same.

    `erfc(x)`, by which TensorFlow writes GELU, as `erf(-x) + 1`; and an index that counts from the end where it is
    negative (Keras's `take`), which no embedding is asked for, as the index.
    """
    graph = _Graph(definition)
    result = tf.compat.v1.GraphDef()
    result.versions.CopyFrom(definition.versions)
    result.library.CopyFrom(definition.library)
    for node in definition.node:
        if node.op == "Erfc":
            _add_erf(result, graph, node)
        elif node.op == "SelectV2" and _wraps_index(graph, node):
            same = result.node.add(op="Identity", name=node.name, input=[node.input[2]])
            same.attr["T"].type = node.attr["T"].type
        else:
            result.node.add().CopyFrom(node)
    return result


def _add_erf(result: Any, graph: _Graph, node: Any) -> None:
    """`erfc(-x * c)` is `erf(x * c) + 1`."""
    kind = node.attr["T"].type
    product = graph.source(node.input[0])
    negated = graph.source(product.input[0]) if product.op == "Mul" else product
    if negated.op == "Neg" and product.op == "Mul":
        inner = result.node.add(op="Mul", name=f"{node.name}/dippm_scaled", input=[negated.input[0], product.input[1]])
    else:
        inner = result.node.add(op="Neg", name=f"{node.name}/dippm_negated", input=[node.input[0]])
    erf = result.node.add(op="Erf", name=f"{node.name}/dippm_erf", input=[inner.name])
    one = result.node.add(op="Const", name=f"{node.name}/dippm_one")
    one.attr["dtype"].type = kind
    one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(1.0, tf.as_dtype(kind)))
    total = result.node.add(op="AddV2", name=node.name, input=[erf.name, one.name])
    for added in (inner, erf, total):
        added.attr["T"].type = kind


def _wraps_index(graph: _Graph, node: Any) -> bool:
    """Whether it is `where(index < 0, index + size, index)` of whole numbers."""
    condition, shifted, index = (graph.source(i) for i in node.input)
    return bool(
        tf.as_dtype(node.attr["T"].type).is_integer
        and condition.op == "Less"
        and graph.number(condition.input[1]) == 0
        and shifted.op in _SUM
        and graph.source(condition.input[0]).name == index.name == graph.source(shifted.input[0]).name
    )


def _batch_norm(graph: _Graph, node: Any) -> _BatchNorm | None:
    """The batch norm whose last operator this sum is. The operands' order is that of `tf.nn.batch_normalization`."""
    product, rest = graph.source(node.input[0]), graph.source(node.input[1])
    if product.op != "Mul" or rest.op != "Sub" or graph.rank(product.input[0]) != 4:
        return None
    inverse, centred = graph.source(product.input[1]), graph.source(rest.input[1])
    if centred.op != "Mul" or graph.source(centred.input[1]).name != inverse.name:
        return None
    root = graph.source(inverse.input[0]) if inverse.op == "Mul" else inverse
    if root.op != "Rsqrt" or (shifted := graph.source(root.input[0])).op not in _SUM:
        return None
    parts = [centred.input[0], shifted.input[0], rest.input[0]]
    if inverse.op == "Mul":
        parts.append(inverse.input[1])
    vectors = [graph.vector(part) for part in parts]
    epsilon = graph.number(shifted.input[1])
    if epsilon is None or any(v is None for v in vectors):
        return None
    names = [v[0] for v in vectors if v is not None]
    lasts = {v[1] for v in vectors if v is not None}
    if len(lasts) != 1:
        return None
    return _BatchNorm(
        x=product.input[0],
        mean=names[0],
        variance=names[1],
        offset=names[2],
        scale=names[3] if len(names) > 3 else "",
        epsilon=epsilon,
        channels_last=lasts.pop(),
        channels=graph.length(names[0]),
    )


def _add_batch_norm(result: Any, node: Any, norm: _BatchNorm) -> None:
    scale = norm.scale
    if not scale:
        # A batch norm without scale: one of ones, as long as its mean (`mean / mean` would not be folded away).
        ones = result.node.add(op="Const", name=f"{node.name}/dippm_scale")
        ones.attr["dtype"].type = node.attr["T"].type
        ones.attr["value"].tensor.CopyFrom(
            tf.make_tensor_proto(np.ones(norm.channels), tf.as_dtype(node.attr["T"].type))
        )
        scale = ones.name
    added = result.node.add(op="FusedBatchNormV3", name=node.name)
    added.input.extend([norm.x, scale, norm.offset, norm.mean, norm.variance])
    added.attr["T"].type = node.attr["T"].type
    added.attr["U"].type = tf.float32.as_datatype_enum
    added.attr["data_format"].s = b"NHWC" if norm.channels_last else b"NCHW"
    added.attr["epsilon"].f = norm.epsilon
    added.attr["is_training"].b = False
