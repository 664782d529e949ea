"""A call that PyTorch has no operator for, written down under the name that the file's own framework gives it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from dippm.graph import Attribute, TensorSpec


@dataclass(frozen=True, eq=False)
class ForeignCall:
    """The target of an fx node; calling it gives what it puts out, on the meta device."""

    kind: str
    """Canonical name, from `dippm.vocabulary.KINDS`."""
    name: str
    """The framework's own name, e.g. `onnx.LSTM`."""
    outputs: tuple[TensorSpec, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def __name__(self) -> str:
        return self.name

    def __call__(self, *operands: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Meta tensors of the outputs' shapes."""
        made = tuple(torch.empty(s.shape, dtype=getattr(torch, s.dtype), device="meta") for s in self.outputs)
        return made[0] if len(made) == 1 else made
