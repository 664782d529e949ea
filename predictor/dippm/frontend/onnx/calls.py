"""Where the ATen calls of ONNX operators are written down, and what their converters read.

`elementwise`, `layers`, `reductions` and `views` have the converters, `program` writes the
calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch import fx

from dippm.frontend.onnx.steps import Step
from dippm.graph import TensorSpec

if TYPE_CHECKING:
    from dippm.frontend.onnx.fold import StaticGraph

Emitted = fx.Node | Sequence[fx.Node] | None


class Calls(Protocol):
    """Where calls are written down (`program`)."""

    static: StaticGraph

    def read(self, name: str) -> fx.Node:
        """The node of a value; weights and constants become graph inputs when first read."""

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write one call down and run it on the meta device."""

    def part(self, node: fx.Node, index: int) -> fx.Node:
        """One output of a call with several."""

    def value(self, node: fx.Node) -> Any:
        """What a node puts out on the meta device."""


class Given:
    """One operator's operands and attributes, as its converter reads them."""

    def __init__(self, calls: Calls, step: Step) -> None:
        self.calls = calls
        self.step = step
        self.node = step.nodes[-1]
        self.call = calls.call

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute of the ONNX node as it stands there."""
        return self.step.given.get(name, default)

    def has(self, position: int) -> bool:
        """Whether an optional operand is given."""
        return position < len(self.node.input) and bool(self.node.input[position])

    def x(self, position: int = 0) -> fx.Node:
        """An operand."""
        return self.calls.read(self.node.input[position])

    def optional(self, position: int) -> fx.Node | None:
        """An operand, or None."""
        return self.x(position) if self.has(position) else None

    def spec(self, position: int = 0) -> TensorSpec:
        """Shape and dtype of an operand."""
        return self.calls.static.specs[self.node.input[position]]

    @property
    def out(self) -> TensorSpec:
        """Shape and dtype of the first output."""
        return self.calls.static.specs[self.step.outputs[0]]

    @property
    def rank(self) -> int:
        """Dimensions of the first operand."""
        return len(self.spec().shape)

    def constant(self, position: int) -> np.ndarray[Any, Any] | None:
        """The elements of a constant operand."""
        return self.calls.static.constants.get(self.node.input[position]) if self.has(position) else None

    def constant_of(self, name: str) -> np.ndarray[Any, Any] | None:
        """The elements of a value that hangs on no input, where they are known."""
        return self.calls.static.constants.get(name)

    def numbers(self, position: int, attribute: str = "") -> list[int] | None:
        """Integers of a constant operand, or of the attribute that older opsets have in its place."""
        array = self.constant(position)
        if array is not None:
            return [int(i) for i in array.reshape(-1)]
        given = self.attribute(attribute)
        return None if given is None else [given] if isinstance(given, int) else list(given)

    def scalar(self, position: int) -> Any:
        """The number that a constant operand of one element stands for; None where it is a tensor."""
        array = self.constant(position)
        if array is None or array.size != 1 or array.ndim > 1 or array.dtype.kind not in "fiub":
            return None
        return array.reshape(-1)[0].item()


Converter = Callable[[Given], Emitted]
