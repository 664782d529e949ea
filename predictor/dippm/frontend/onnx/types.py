"""ONNX's tensor types as `TensorSpec`s, and back."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import helper

from dippm.errors import UnsupportedOperator
from dippm.graph import TensorSpec

Elements = np.ndarray[Any, Any]


def type_of(spec: TensorSpec) -> onnx.TypeProto:
    """Inverse of `spec_of`."""
    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = _NUMBERS[spec.dtype]
    dims = kind.tensor_type.shape.dim
    kind.tensor_type.shape.SetInParent()
    for size in spec.shape:
        dims.add().dim_value = size
    return kind


def spec_of(kind: onnx.TypeProto) -> TensorSpec:
    """Shape and dtype of a typed tensor with static dimensions.

    Raises UnsupportedOperator for sequences, strings and the like.
    """
    if not kind.HasField("tensor_type"):
        raise UnsupportedOperator("ONNX sequences, maps and optionals are not supported: export with tensors only")
    tensor = kind.tensor_type
    return TensorSpec(tuple([d.dim_value for d in tensor.shape.dim]), dtype_of(tensor.elem_type))


def spec_of_array(array: Elements) -> TensorSpec:
    """Shape and dtype of a constant. Raises UnsupportedOperator for strings and the like."""
    return TensorSpec(array.shape, _dtype_of_array(array.dtype))


@cache
def _dtype_of_array(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.name in _NUMBERS else dtype_of(helper.np_dtype_to_tensor_dtype(dtype))


def dtype_of(number: int) -> str:
    """Relax's name of an ONNX tensor's element type. Raises UnsupportedOperator for strings and the like."""
    dtype = _DTYPES.get(number)
    if dtype is None:
        known = number in onnx.TensorProto.DataType.values()
        name = onnx.TensorProto.DataType.Name(number) if known else f"number {number}"
        raise UnsupportedOperator(f"ONNX tensors of type {name} are not supported")
    return dtype


_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16",
    onnx.TensorProto.DOUBLE: "float64", onnx.TensorProto.INT64: "int64", onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT16: "int16", onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.UINT16: "uint16", onnx.TensorProto.UINT32: "uint32", onnx.TensorProto.UINT64: "uint64",
    onnx.TensorProto.BOOL: "bool",
}  # fmt: skip
_NUMBERS = {name: number for number, name in _DTYPES.items()}
