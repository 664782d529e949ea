"""`as_strided`, which ONNX does not have: exporters flatten the tensor and gather its elements by a table of positions.

PyTorch's own decompositions call it to give the result of a pooling to one pixel other strides, which moves nothing
(https://github.com/pytorch/pytorch/blob/v2.6.0/aten/src/ATen/native/AdaptiveAveragePooling.cpp). The exporter's
metadata has the call, with sizes and strides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import onnx

from dippm.frontend.onnx.node import OnnxNode
from dippm.graph import TensorSpec

_CALL = re.compile(
    r"aten\.as_strided\.default\]\(args = \(%\w+, \[(?P<sizes>[^\]]*)\], \[(?P<strides>[^\]]*)\](?:, 0)?\)"
)


def as_identity(node: OnnxNode, maker: OnnxNode | None, specs: Mapping[str, TensorSpec]) -> OnnxNode | None:
    """What gathers a tensor's elements in their own order, as the Identity that it is.

    `maker` is what put out the flat tensor. None where the node is something else, or changes the shape.
    """
    if node.kind != "Gather" or maker is None or maker.kind != "Reshape":
        return None
    found = next((f for p in node.proto.metadata_props if (f := _CALL.search(p.value))), None)
    if found is None:
        return None
    source = specs[maker.inputs[0]].shape
    sizes, strides = (found[part].replace(" ", "").split(",") for part in ("sizes", "strides"))
    if len(sizes) != len(source) or not all(s.isdecimal() for s in (*sizes[1:], *strides)):
        return None  # the first may be a symbol, `%sym_size_int`: what is left of the elements
    shape = (source[0], *map(int, sizes[1:]))
    dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    if shape != source or any(n > 1 and int(s) != d for n, s, d in zip(shape, strides, dense, strict=True)):
        return None
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    proto.op_type = "Identity"
    del proto.attribute[:]
    del proto.input[:]
    proto.input.append(maker.inputs[0])
    return OnnxNode(proto)
