"""The paper's features: 32 numbers a node (Algorithm 1) and five for the whole model (equation 1).

Panner Selvam and Brorsson, "DIPPM: a Deep Learning Inference Performance Predictive Model using Graph Neural Networks",
Euro-Par 2023, section 3.2 and 3.3. A node's features are its operator (one-hot), its attributes, its output shape.

What differs from the authors' code: an operator outside the list has a slot of its own instead of sixteen zeros; ReLU,
which equation 1 counts, has one too; batch norm takes that of Relay's `bias_add`, which is no operator of a framework;
padding is two numbers, not four; the shape is that of the output, not of the weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dippm.graph import Attribute, ModelGraph, Operator, TensorSpec

OPERATORS: tuple[str, ...] = (
    "unknown", "conv2d", "conv2d_transpose", "dense", "batch_matmul", "batch_norm", "softmax", "dropout", "layer_norm",
    "reshape", "transpose", "add", "split", "multiply", "squeeze", "adaptive_avg_pool2d", "max_pool2d", "relu",
)  # fmt: skip
"""The one-hot part, in order (columns 0 to 17)."""
ATTRIBUTES: tuple[str, ...] = ("stride", "padding", "dilation", "kernel_size")
"""Two numbers each (columns 18 to 25, the last spatial dimension second), then groups and output channels (26, 27)."""
SHAPE_DIMS = 4
"""The first four dimensions of the output's shape (columns 28 to 31), zeros where it has fewer."""
NODE_FEATURES = len(OPERATORS) + 2 * len(ATTRIBUTES) + 2 + SHAPE_DIMS

_SLOT_BY_KIND: Mapping[str, str] = {
    **{name: name for name in OPERATORS},
    "conv1d": "conv2d", "conv3d": "conv2d", "conv1d_transpose": "conv2d_transpose",
    "conv3d_transpose": "conv2d_transpose",
    "linear": "dense", "matmul": "dense", "einsum": "batch_matmul", "scaled_dot_product_attention": "batch_matmul",
    "log_softmax": "softmax", "flatten": "reshape", "unsqueeze": "squeeze", "permute": "transpose",
    "adaptive_avg_pool1d": "adaptive_avg_pool2d", "max_pool1d": "max_pool2d", "max_pool3d": "max_pool2d",
}  # fmt: skip

RECURRENT = frozenset({"lstm", "gru", "rnn"})


@dataclass(frozen=True, slots=True)
class StaticFeatures:
    """Equation 1, for one forward pass of the whole batch."""

    macs: int
    """Multiply-accumulates of the batch: convolutions (transposed ones too), dense and batched matrix products. The two
    products inside fused attention count as batched products, those of recurrent layers at every step."""
    batch: int
    convs: int
    denses: int
    relus: int

    def as_array(self) -> npt.NDArray[np.float32]:
        """[5], in the paper's order: macs, batch, convs, denses, relus."""
        return np.array([self.macs, self.batch, self.convs, self.denses, self.relus], dtype=np.float32)


def node_features(graph: ModelGraph) -> npt.NDArray[np.float32]:
    """Algorithm 1: float32 [n_operators, 32], raw (not scaled), in the graph's order of operators."""
    table = np.zeros((len(graph.operators), NODE_FEATURES), dtype=np.float32)
    slots = {name: index for index, name in enumerate(OPERATORS)}
    for row, operator in zip(table, graph.operators, strict=True):
        row[slots[_SLOT_BY_KIND.get(operator.kind, "unknown")]] = 1.0
        column = len(OPERATORS)
        for name in ATTRIBUTES:
            row[column : column + 2] = _pair(operator.attributes.get(name))
            column += 2
        shape = graph.values[operator.outputs[0]].spec.shape if operator.outputs else ()
        if "conv" in operator.kind:
            row[column] = _number(operator.attributes.get("groups", 1))
            row[column + 1] = shape[1] if len(shape) > 1 else 0
        column += 2
        dims = shape[:SHAPE_DIMS]
        row[column : column + len(dims)] = dims
    return table


def static_features(graph: ModelGraph) -> StaticFeatures:
    """Equation 1 of the paper."""
    kinds = [o.kind for o in graph.operators]
    return StaticFeatures(
        macs=sum(operator_macs(graph, o) for o in graph.operators),
        batch=graph.batch,
        convs=sum(k.startswith("conv") for k in kinds),
        denses=kinds.count("linear") + kinds.count("matmul"),
        relus=kinds.count("relu"),
    )


def operator_macs(graph: ModelGraph, operator: Operator) -> int:
    """Multiply-accumulates of one operator; 0 for all but convolutions, products of matrices and recurrent layers."""
    kind = operator.kind
    inputs = [graph.values[i].spec for i in operator.inputs]
    if not operator.outputs or len(inputs) < 2:
        return 0
    output = graph.values[operator.outputs[0]].spec
    if kind.startswith("conv"):
        weight = inputs[1].shape
        # (out, in / groups, *kernel), or (in, out / groups, *kernel) where it is transposed and each input is spread
        spread = inputs[0].numel if kind.endswith("_transpose") else output.numel
        return spread * math.prod(weight[1:])
    if kind == "linear":
        # addmm(bias, x, weight) has its product second; linear(x, weight, bias) first
        x = inputs[1] if operator.target.startswith("aten.addmm") else inputs[0]
        return output.numel * (x.shape[-1] if x.shape else 1)
    if kind in ("matmul", "batch_matmul"):
        x = inputs[1] if operator.target.startswith("aten.baddbmm") else inputs[0]
        return output.numel * (x.shape[-1] if x.shape else 1)
    if kind == "scaled_dot_product_attention" and len(inputs) >= 3:
        query, key, value = (i.shape for i in inputs[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    if kind in RECURRENT:
        steps = math.prod(inputs[0].shape[:-1])
        return steps * sum(weight.numel for weight in recurrent_weights(operator.target, inputs))
    return 0


def recurrent_weights(target: str, inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """The matrices that a recurrent operator applies at every step, among what it is given.

    PyTorch gives them as matrices, beside states of three dimensions; ONNX as `W` and `R`, one matrix a direction.
    """
    if target.startswith("onnx."):
        return [weight for weight in inputs[1:3] if len(weight.shape) == 3]
    return [weight for weight in inputs[1:] if len(weight.shape) == 2]


def _pair(value: Attribute) -> tuple[float, float]:
    if isinstance(value, tuple) and value:
        return (float(value[0]), float(value[1])) if len(value) > 1 else (0.0, float(value[0]))
    return (0.0, 0.0)


def _number(value: Attribute) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0
