"""TensorFlow graphs in other operators that do the same: batch norms put together, and what tf2onnx lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from dippm.frontend.tensorflow_graph import Graph


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
    graph = Graph(definition)
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
    graph = Graph(definition)
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


def _add_erf(result: Any, graph: Graph, node: Any) -> None:
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


def _wraps_index(graph: Graph, node: Any) -> bool:
    """Whether it is `where(index < 0, index + size, index)` of whole numbers."""
    condition, shifted, index = (graph.source(i) for i in node.input)
    return bool(
        tf.as_dtype(node.attr["T"].type).is_integer
        and condition.op == "Less"
        and graph.number(condition.input[1]) == 0
        and shifted.op in _SUM
        and graph.source(condition.input[0]).name == index.name == graph.source(shifted.input[0]).name
    )


def _batch_norm(graph: Graph, node: Any) -> _BatchNorm | None:
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
