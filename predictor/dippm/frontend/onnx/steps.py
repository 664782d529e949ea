"""ONNX nodes in the canonical vocabulary: kind and attributes of each, and the module scope its exporter left.

Spec: https://onnx.ai/onnx/operators. One `Step` is one operator as a framework runs it, before (`steps_of`) and after
fusion (`fuse`).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.node import OnnxNode
from dippm.graph import Attribute, TensorSpec

_NAMES_BY_KIND = {
    "linear": "Gemm", "matmul": "MatMul MatMulInteger", "einsum": "Einsum", "lstm": "LSTM", "gru": "GRU", "rnn": "RNN",
    "scaled_dot_product_attention": "Attention", "batch_norm": "BatchNormalization", "layer_norm": "LayerNormalization",
    "group_norm": "GroupNormalization", "instance_norm": "InstanceNormalization MeanVarianceNormalization",
    "rms_norm": "RMSNormalization", "local_response_norm": "LRN", "relu": "Relu ThresholdedRelu",
    "leaky_relu": "LeakyRelu", "prelu": "PRelu", "elu": "Elu Celu", "selu": "Selu", "gelu": "Gelu", "silu": "Swish",
    "sigmoid": "Sigmoid", "hardsigmoid": "HardSigmoid", "hardswish": "HardSwish", "tanh": "Tanh",
    "softplus": "Softplus Softsign", "mish": "Mish", "softmax": "Softmax", "log_softmax": "LogSoftmax",
    "dropout": "Dropout", "interpolate": "Resize Upsample", "grid_sample": "GridSample AffineGrid", "add": "Add Sum",
    "subtract": "Sub", "multiply": "Mul", "divide": "Div", "power": "Pow", "maximum": "Max", "minimum": "Min",
    "remainder": "Mod", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg",
    "sin": "Sin Tan Sinh Asin Atan Asinh Atanh", "cos": "Cos Cosh Acos Acosh", "erf": "Erf", "clamp": "Clip Shrink",
    "round": "Round", "floor": "Floor Ceil", "reciprocal": "Reciprocal",
    "bitwise": "And Or Xor Not BitwiseAnd BitwiseOr BitwiseXor BitwiseNot BitShift",
    "compare": "Equal Greater GreaterOrEqual Less LessOrEqual IsNaN IsInf Sign", "where": "Where",
    "cast": "Cast CastLike QuantizeLinear DequantizeLinear DynamicQuantizeLinear", "mean": "ReduceMean Mean",
    "sum": "ReduceSum ReduceSumSquare ReduceLogSum ReduceLogSumExp", "max": "ReduceMax", "min": "ReduceMin",
    "prod": "ReduceProd", "norm": "ReduceL1 ReduceL2 LpNormalization", "argmax": "ArgMax ArgMin Hardmax",
    "cumsum": "CumSum", "topk": "TopK", "concat": "Concat", "pad": "Pad", "gather": "GatherElements",
    "scatter": "ScatterElements ScatterND Scatter", "index": "Gather GatherND", "repeat": "Tile",
    "flip": "ReverseSequence",
    "tril": "Trilu", "one_hot": "OneHot", "full": "ConstantOfShape EyeLike", "arange": "Range", "reshape": "Reshape",
    "permute": "Transpose", "expand": "Expand", "slice": "Slice", "split": "Split", "squeeze": "Squeeze",
    "unsqueeze": "Unsqueeze", "flatten": "Flatten", "pixel_shuffle": "DepthToSpace SpaceToDepth",
    "identity": "Identity",
    "adaptive_max_pool2d": "GlobalMaxPool", "conv": "Conv ConvTranspose ConvInteger",
    "pool": "MaxPool AveragePool LpPool GlobalAveragePool",
}  # fmt: skip
_LEFT_OUT = frozenset({"axis", "epsilon", "momentum", "training_mode", "stash_type", "to", "saturate"})
"""Attributes that PyTorch's calls of the same kind do not carry: an operator has one signature whatever its door."""
_KIND_BY_NAME = {name: kind for kind, names in _NAMES_BY_KIND.items() for name in names.split()}


@dataclass
class Step:
    """One operator: what it reads and puts out by value name, and the nodes it is made of."""

    kind: str
    target: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Attribute]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    converter: str = ""
    """Which ATen call it is written down as (`aten`): the ONNX operator, or what several were put together to."""
    given: dict[str, Attribute] = field(default_factory=dict)
    """Attributes of the ONNX node as they stand there; of a merged step none."""
    in_place: bool = False
    """Whether it is taken to overwrite its first input."""
    took_norm_in: bool = False
    """Whether it is a convolution that a batch norm was folded into, which is put back after it."""
    without_bias: bool = False
    """Whether a convolution's bias came from the batch norm that is put back after it."""
    path: tuple[str, ...] | None = None
    """Module paths, where the node's own are not this operator's."""
    trace: str | None = None
    """Stack trace, where the node's own is not this operator's."""

    @property
    def recorded(self) -> str:
        """The ATen call that it was exported from, where the exporter says so: `aten.view.default`."""
        found = _TARGET.search(metadata(self.nodes[-1], FX_NODE)) if self.nodes else None
        return found[1] if found else ""


FX_NODE = "pkg.torch.onnx.fx_node"
"""Property of the dynamo exporter's nodes: the exported program's call that one comes from."""
_TARGET = re.compile(r"call_function\[target=torch\.ops\.(aten\.[\w.]+)\]")


def metadata(node: onnx.NodeProto, key: str) -> str:
    """A node's metadata property, or nothing."""
    properties = node.metadata_props
    if not properties:
        return ""
    found = next((p.value for p in properties if p.key == key), "")
    return found if isinstance(found, str) else ""  # bytes: protobuf's answer to text that is no UTF-8


def steps_of(static: StaticGraph) -> list[Step]:
    """One step a node."""
    known: dict[Hashable, dict[str, Attribute]] = {}
    steps = []
    for node in static.nodes:
        given = known.get(node.signature) if node.signature is not None else None
        if given is None:
            given = known[node.signature] = _attributes(node)
        steps.append(_step(node, given, static))
    return steps


def _attributes(node: OnnxNode) -> dict[str, Attribute]:
    return {a.name: plain_attribute(onnx.helper.get_attribute_value(a)) for a in node.proto.attribute}


def _step(node: OnnxNode, given: Mapping[str, Attribute], static: StaticGraph) -> Step:
    specs = [static.specs[i] for i in node.inputs if i]
    kind, attributes = _canonical(node, given, specs, static)
    inputs = [i for i in node.inputs if i and (i not in static.constants or not is_setting(node, i))]
    return Step(
        kind=kind,
        target=f"onnx.{node.kind}",
        inputs=inputs,
        outputs=[o for o in node.outputs if o],
        attributes={k: v for k, v in attributes.items() if v is not None},
        nodes=[node.proto],
        converter=node.kind,
        given=dict(given),
    )


def is_setting(node: OnnxNode, name: str) -> bool:
    """Whether a constant operand only sets the operator up (a target shape, axes, pads)."""
    return node.kind in _WITH_SETTINGS and name in node.inputs[1:]


_WITH_SETTINGS = frozenset({
    "Reshape", "Expand", "Slice", "Squeeze", "Unsqueeze", "Split", "Pad", "Resize", "Upsample", "Tile", "ReduceMean",
    "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
    "ReduceLogSumExp", "Clip", "TopK", "CumSum", "Dropout", "ConstantOfShape", "Pow", "Trilu", "OneHot",
})  # fmt: skip


def plain_attribute(value: Any) -> Attribute:
    """An ONNX attribute as JSON can carry it; None for tensors and graphs."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, tuple)) or hasattr(value, "__len__"):
        items = list(value)
        if all(isinstance(i, int) for i in items):
            return tuple(int(i) for i in items)
        return ",".join(i.decode(errors="replace") if isinstance(i, bytes) else str(i) for i in items)
    return None


def _canonical(
    node: OnnxNode, given: Mapping[str, Attribute], specs: Sequence[TensorSpec], static: StaticGraph
) -> tuple[str, dict[str, Attribute]]:
    name = node.kind
    kind = _KIND_BY_NAME.get(name, "unknown")
    rank = len(specs[0].shape) if specs else 0
    if kind == "conv":
        suffix = "_transpose" if name == "ConvTranspose" else ""
        return f"conv{rank - 2}d{suffix}", {"groups": given.get("group", 1)}
    if kind == "pool":
        if name == "GlobalAveragePool":
            return f"adaptive_avg_pool{min(rank - 2, 2)}d", {}
        return f"{'max' if name == 'MaxPool' else 'avg'}_pool{rank - 2}d", {}
    if kind in ("reshape", "expand"):
        return kind, {}
    if kind == "matmul":
        second = specs[1].shape if len(specs) > 1 else ()
        return ("batch_matmul" if min(rank, len(second)) > 2 else "matmul"), {}
    if name == "Gemm":
        return "linear", {}
    if name == "Clip":
        low = given.get("min", _scalar(node, 1, static))
        high = given.get("max", _scalar(node, 2, static))
        return ("relu6" if (low, high) == (0, 6) else "clamp"), {}
    if name == "Resize":
        return kind, {"mode": given.get("mode", "nearest")}
    if name in ("Softmax", "LogSoftmax"):
        axis = given.get("axis", -1)
        return kind, {"dim": axis if not isinstance(axis, int) or axis != rank - 1 else -1}
    if name == "Gather" and node.inputs[0] in static.weights and len(specs[0].shape) == 2 and not given.get("axis"):
        return "embedding", {}
    if name in ("Concat", "Split", "Gather", "GatherElements", "CumSum", "TopK", "ArgMax", "ArgMin"):
        return kind, {"dim": given.get("axis")}
    if name == "ReduceMean" and "pooling.AdaptiveAvgPool" in metadata(node.proto, "pkg.torch.onnx.class_hierarchy"):
        return f"adaptive_avg_pool{rank - 2}d", {}
    if name.startswith("Reduce"):
        axes = static.constants.get(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] else None
        return kind, {"dim": given.get("axes") if axes is None else tuple(int(a) for a in axes)}
    return kind, {k: v for k, v in given.items() if k not in _LEFT_OUT and (k, v) != ("approximate", "none")}


def _scalar(node: OnnxNode, position: int, static: StaticGraph) -> float | None:
    name = node.inputs[position] if len(node.inputs) > position else ""
    array: np.ndarray[Any, Any] | None = static.constants.get(name)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def same_padding(
    shape: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int], *, at_end: bool
) -> list[int]:
    """Padding before, then after each spatial dimension, so that the output is the input over the stride."""
    before, after = [], []
    for size, k, s, d in zip(shape, kernel, stride, dilation, strict=True):
        whole = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        small, large = whole // 2, whole - whole // 2
        before.append(small if at_end else large)
        after.append(large if at_end else small)
    return before + after
