"""Types of Relax, and what plain Python has for them."""

from __future__ import annotations

from typing import Any

import torch
from tvm import relax


def tensor_type(tensor: torch.Tensor) -> Any:
    """The Relax type of a meta tensor."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return relax.TensorType([int(d) for d in tensor.shape], _RELAX_DTYPE.get(dtype, dtype))


_RELAX_DTYPE = {"complex64": "int64", "complex128": "int64"}
"""Relax has no complex numbers: another dtype stands in, inside the Relax module only."""


def static_dim(dim: Any) -> int | None:
    """A dimension as a number; None for a symbol."""
    value = getattr(dim, "value", dim)
    return value if isinstance(value, int) else None


def dtype_of(kind: Any) -> str:
    """The dtype of a tensor type, by name."""
    dtype = kind.dtype
    return str(getattr(dtype, "dtype", dtype))
