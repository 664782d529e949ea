"""Measured calls written for every batch and precision at once: `F[B,197,768]` instead of `float16[32,197,768]`.

`F` is the dtype that the case's precision holds floating-point tensors in, `B` its batch, `B*4` four times that. Which
dimensions follow the batch is told by the network's graph, made at a prime batch; where the graph does not know a
shape, the first dimension is taken to follow the batch if it is a multiple of it. Whatever is taken, what is written
reads back as what was measured: a wrong guess only costs another row in the table of calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from dippm.data.rows import MeasuredCall, TensorRow
from dippm.graph import DTYPE_BYTES, ModelGraph

Symbols = tuple[str, ...]
SymbolicCall = tuple[str, str, str, str, str]
"""target, inputs, arguments, outputs, views: a row of `calls.parquet`."""
FLOAT, OUTPUT = "$F", "$0"


class Shapes:
    """What is known of the shapes of one network at one batch."""

    def __init__(self, template: ModelGraph | None, batch: int) -> None:
        self.batch = batch
        self._results: dict[tuple[int, ...], Symbols] = {}
        self._parameters: dict[tuple[int, ...], Symbols] = {}
        if template is None:
            return
        for value in template.values:
            fixed = value.kind.is_state
            known = self._parameters if fixed else self._results
            symbols = tuple(_symbol(d, 0 if fixed else template.batch) for d in value.spec.shape)
            known.setdefault(_at(symbols, batch), symbols)
        for shape, symbols in list(self._parameters.items()):
            if len(shape) == 2:
                self._parameters.setdefault(shape[::-1], symbols[::-1])

    def symbols(self, shape: tuple[int, ...], *, weight: bool) -> Symbols:
        """The shape with the batch taken out; `weight`: more likely a parameter's than a result's."""
        order = (self._parameters, self._results) if weight else (self._results, self._parameters)
        for known in order:
            if (found := known.get(shape)) is not None:
                return found
        follows = bool(shape) and shape[0] > 0 and shape[0] % self.batch == 0
        return tuple(_symbol(d, self.batch if follows and i == 0 else 0) for i, d in enumerate(shape))


def _symbol(size: int, batch: int) -> str:
    if not batch or size <= 0 or size % batch:
        return str(size)
    return "B" if size == batch else f"B*{size // batch}"


def _at(symbols: Iterable[str], batch: int) -> tuple[int, ...]:
    return tuple(int(s[2:] or 1) * batch if s[0] == "B" else int(s) for s in symbols)


def symbolic(call: MeasuredCall, shapes: Shapes, dtype: str) -> SymbolicCall:
    """The call without its allocations, written for every batch and precision."""
    outputs = " ".join(_spelled(t, shapes, dtype, weight=False) for t in call.outputs)
    inputs = " ".join(_spelled(t, shapes, dtype, weight=i > 0) for i, t in enumerate(call.inputs))
    arguments = call.arguments
    if "$" in arguments:
        raise ValueError(f"{call.target}: arguments with a $ cannot be written: {arguments[:100]}")
    if call.outputs and "B" in outputs.partition("]")[0]:
        arguments = arguments.replace(_listed(call.outputs[0][0]), OUTPUT)
    arguments = arguments.replace(dtype, FLOAT)
    return call.target, inputs, arguments, outputs, " ".join(map(str, call.views))


def concrete(call: SymbolicCall, batch: int, dtype: str) -> tuple[tuple[TensorRow, ...], str, tuple[TensorRow, ...]]:
    """(inputs, arguments, outputs) of a written call at a batch, in a precision."""
    _, given, arguments, made, _ = call
    inputs, outputs = _tensors(given, batch, dtype), _tensors(made, batch, dtype)
    if "$" in arguments:
        arguments = arguments.replace(FLOAT, dtype)
        if outputs:
            arguments = arguments.replace(OUTPUT, _listed(outputs[0][0]))
    return inputs, arguments, outputs


def _listed(shape: Iterable[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"


def _spelled(tensor: TensorRow, shapes: Shapes, dtype: str, *, weight: bool) -> str:
    shape, given, layout = tensor
    body = ",".join(shapes.symbols(shape, weight=weight))
    return f"{'F' if given == dtype else given}[{body}]{':' + layout if layout else ''}"


@lru_cache(maxsize=200_000)
def _tensors(text: str, batch: int, dtype: str) -> tuple[TensorRow, ...]:
    return tuple(_tensor(item, batch, dtype) for item in text.split(" ")) if text else ()


@lru_cache(maxsize=200_000)
def _tensor(text: str, batch: int, dtype: str) -> TensorRow:
    kind, _, rest = text.partition("[")
    body, _, layout = rest.partition("]")
    return _at(body.split(","), batch) if body else (), dtype if kind == "F" else kind, layout[1:]


def nbytes(tensor: TensorRow) -> int:
    """Bytes of a dense tensor, before the allocator's rounding."""
    return math.prod(tensor[0]) * DTYPE_BYTES[tensor[1]]
