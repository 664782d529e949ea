"""Small graphs for the network's tests: a residual CNN and a token mixer, at any width and batch."""

from __future__ import annotations

from collections.abc import Sequence

from dippm.graph import Attribute, ModelGraph, Operator, TensorSpec, Value, ValueKind


class Builder:
    """Collects values and operators in the order in which they are called."""

    def __init__(self, batch: int, dtype: str = "float32") -> None:
        self.batch, self.dtype = batch, dtype
        self.values: list[Value] = []
        self.operators: list[Operator] = []

    def value(self, kind: ValueKind, *shape: int, dtype: str | None = None) -> int:
        """A new input, parameter or constant."""
        self.values.append(Value(TensorSpec(shape, dtype or self.dtype), kind))
        return len(self.values) - 1

    def call(
        self,
        kind: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        alias: int | None = None,
        **attributes: Attribute,
    ) -> int:
        """One operator with one output."""
        self.values.append(
            Value(TensorSpec(tuple(shape), self.dtype), ValueKind.RESULT, producer=len(self.operators), alias_of=alias)
        )
        output = len(self.values) - 1
        self.operators.append(Operator(kind, f"aten.{kind}.default", tuple(inputs), (output,), attributes))
        return output

    def graph(self, inputs: Sequence[int], outputs: Sequence[int]) -> ModelGraph:
        """The finished graph."""
        return ModelGraph(
            tuple(self.values), tuple(self.operators), tuple(inputs), tuple(outputs), self.batch, format="pt2"
        )


def residual_network(
    batch: int, width: int = 16, blocks: int = 2, size: int = 16, dtype: str = "float32"
) -> ModelGraph:
    """conv, then blocks of conv, batch_norm, relu and an addition, then a mean and a linear layer."""
    b = Builder(batch, dtype)
    image = b.value(ValueKind.INPUT, batch, 3, size, size)
    x = b.call(
        "conv2d", (image, b.value(ValueKind.PARAMETER, width, 3, 3, 3)), (batch, width, size, size),
        kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1,
    )  # fmt: skip
    for _ in range(blocks):
        y = b.call(
            "conv2d", (x, b.value(ValueKind.PARAMETER, width, width, 3, 3)), (batch, width, size, size),
            kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1,
        )  # fmt: skip
        y = b.call(
            "batch_norm", (y, *(b.value(ValueKind.PARAMETER, width) for _ in range(4))), (batch, width, size, size)
        )
        y = b.call("relu", (y,), (batch, width, size, size), alias=y)
        x = b.call("add", (x, y), (batch, width, size, size))
    x = b.call("adaptive_avg_pool2d", (x,), (batch, width, 1, 1), output_size=(1, 1))
    x = b.call("flatten", (x,), (batch, width), alias=x)
    x = b.call("linear", (x, b.value(ValueKind.PARAMETER, 10, width), b.value(ValueKind.PARAMETER, 10)), (batch, 10))
    return b.graph((image,), (x,))


def token_mixer(batch: int, width: int = 32, tokens: int = 12, layers: int = 2, dtype: str = "float32") -> ModelGraph:
    """Layers of layer_norm, linear, gelu, linear and an addition."""
    b = Builder(batch, dtype)
    x = start = b.value(ValueKind.INPUT, batch, tokens, width)
    for _ in range(layers):
        norm = (x, b.value(ValueKind.PARAMETER, width), b.value(ValueKind.PARAMETER, width))
        y = b.call("layer_norm", norm, (batch, tokens, width))
        y = b.call("linear", (y, b.value(ValueKind.PARAMETER, 4 * width, width)), (batch, tokens, 4 * width))
        y = b.call("gelu", (y,), (batch, tokens, 4 * width))
        y = b.call("linear", (y, b.value(ValueKind.PARAMETER, width, 4 * width)), (batch, tokens, width))
        x = b.call("add", (x, y), (batch, tokens, width))
    return b.graph((start,), (x,))
