"""Where tensors lie in an ONNX file, by field number (onnx.proto3). Imports nothing: whoever fetches needs it too."""

STRIP_BYTES = 16 * 1024
"""Tensors that take at least so many bytes in the file are weights; smaller ones may be shapes and are kept."""
CHILDREN = {"model": {7: "graph"}, "graph": {1: "node", 5: "tensor"}, "node": {5: "attribute"},
            "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph"}}  # fmt: skip
"""Fields to look into: message, field number, message."""
TENSOR_DATA = frozenset({4, 5, 6, 7, 9, 10, 11})
"""Fields of TensorProto that hold elements: float_data, int32_data, string_data, int64_data, raw_data, ..."""
