"""Workspace of matrix products: the operands that ATen copies before it calls cuBLAS.

`matmul` folds a batch of rows into one matrix, or expands both operands to one batch and reshapes them to three
dimensions (`_matmul_impl` and `should_fold`, `aten/src/ATen/native/LinearAlgebra.cpp`). Where an operand's strides
allow no view the reshape copies it, expanded. cuBLAS then wants one of a matrix's two dimensions dense; what has
neither is copied too (`prepare_batch_matrix_for_cublas`, `prepare_matrix_for_cublas`,
`aten/src/ATen/native/cuda/Blas.cpp`). All of this is arithmetic on shapes and strides: nothing is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from dippm.graph import ModelGraph, Operator
from dippm.strides import Strides, contiguous, expanded, is_contiguous, reshaped

MATMUL, BATCHED, LINEAR = "aten.matmul.", "aten.bmm.", "aten.linear."


@dataclass(frozen=True, slots=True)
class Operand:
    """A factor: its sizes, its strides in elements, and whether it requires a gradient (as a weight does)."""

    shape: tuple[int, ...]
    strides: Strides
    needs_gradient: bool = False

    @property
    def turned(self) -> Operand:
        """With its last two dimensions swapped (`mT`)."""
        shape, strides = self.shape, self.strides
        return Operand((*shape[:-2], shape[-1], shape[-2]), (*strides[:-2], strides[-1], strides[-2]))


@dataclass(frozen=True, slots=True)
class Copies:
    """Elements that a product allocates beside its result."""

    first: int = 0
    """The first operand made contiguous by `reshape`: with gradients recorded the backward pass keeps the copy."""
    second: int = 0
    """The same of the second operand."""
    dense: int = 0
    """Operands copied once more on cuBLAS's behalf, and a result that is turned round."""

    @property
    def total(self) -> int:
        """Elements of all copies: they are alive together."""
        return self.first + self.second + self.dense


def product_copies(
    graph: ModelGraph, operator: Operator, strides: Sequence[Strides], needs: Sequence[bool] | None = None
) -> Copies | None:
    """Copies of one `aten.matmul`, `aten.bmm` or `aten.linear`; None for any other call.

    `needs`: of each value whether it requires a gradient, where gradients are recorded
    (`dippm.replay.saved.require_gradients`). Without it no weight does: so was measured (`requires_grad_(False)`).
    """
    if len(operator.inputs) < 2 or not operator.target.startswith((MATMUL, BATCHED, LINEAR)):
        return None
    first, second = (
        Operand(
            graph.values[i].spec.shape,
            strides[i],
            needs is not None and needs[i],
        )
        for i in operator.inputs[:2]
    )
    if operator.target.startswith(BATCHED):
        return Copies(dense=_batched(first, second))
    if operator.target.startswith(MATMUL):
        return matmul_copies(first, second)
    return linear_copies(first, second, biased=len(operator.inputs) > 2, recorded=needs is not None)


def linear_copies(given: Operand, weight: Operand, *, biased: bool, recorded: bool = False) -> Copies:
    """Copies of `linear` (`aten/src/ATen/native/Linear.cpp`): one product with a bias where rows lie densely.

    With gradients `recorded` the turned weight requires one where the weight does.
    """
    if len(weight.shape) != 2:
        return Copies()
    turned = replace(weight.turned, needs_gradient=recorded and weight.needs_gradient)
    if biased and len(given.shape) > 2 and is_contiguous(given.shape, given.strides):
        return Copies()
    return matmul_copies(given, turned)


def matmul_copies(first: Operand, second: Operand) -> Copies:
    """Copies that `torch.matmul` makes of two operands (ATen's `_matmul_impl`)."""
    ranks = len(first.shape), len(second.shape)
    if not all(ranks) or not math.prod(first.shape) or not math.prod(second.shape):
        return Copies()
    if max(ranks) <= 2:
        return Copies(dense=_matrices(first, second)) if ranks == (2, 2) else Copies()
    if _folds(first, second):
        return _folded(first, second)
    if ranks == (3, 3) and first.shape[0] != second.shape[0]:
        # One batch is broadcast: a weight is folded rather than expanded.
        if first.shape[0] == 1 and first.needs_gradient:
            return matmul_copies(replace(first, shape=first.shape[1:], strides=first.strides[1:]), second)
        if second.shape[0] == 1 and second.needs_gradient:
            return matmul_copies(first, replace(second, shape=second.shape[1:], strides=second.strides[1:]))
    batch = _broadcast(first.shape[:-2], second.shape[:-2])
    left, copied = _flattened(first if ranks[0] > 1 else _row(first), batch)
    right, copied_too = _flattened(second if ranks[1] > 1 else _column(second), batch)
    return Copies(copied, copied_too, _batched(left, right))


def _folds(first: Operand, second: Operand) -> bool:
    """ATen's `should_fold`: the larger operand becomes one matrix."""
    first_larger = len(first.shape) >= len(second.shape)
    larger, smaller = (first, second) if first_larger else (second.turned, first)
    if len(larger.shape) < 3 or len(smaller.shape) > 2:
        return False
    if smaller.needs_gradient:
        return True
    if len(first.shape) == 2:
        return False
    return all(larger.strides[d] == larger.strides[d + 1] * larger.shape[d + 1] for d in range(len(larger.shape) - 2))


def _folded(first: Operand, second: Operand) -> Copies:
    turned = len(second.shape) > len(first.shape)
    larger, smaller = (second.turned, first) if turned else (first, second)
    if turned and len(first.shape) == 2:
        smaller = first.turned
    folded = (math.prod(larger.shape[:-1]), larger.shape[-1])
    seen = reshaped(larger.shape, larger.strides, folded)
    copied = 0 if seen else math.prod(folded)
    dense = 0
    if len(smaller.shape) == 2:
        dense = _matrices(Operand(folded, seen or contiguous(folded)), smaller)
        dense += folded[0] * smaller.shape[1] if turned else 0
    return Copies(second=copied, dense=dense) if turned else Copies(first=copied, dense=dense)


def _row(vector: Operand) -> Operand:
    return Operand((1, *vector.shape), (vector.shape[0] * vector.strides[0], *vector.strides))


def _column(vector: Operand) -> Operand:
    return Operand((*vector.shape, 1), (*vector.strides, 1))


def _broadcast(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    pairs = zip_longest(reversed(first), reversed(second), fillvalue=1)
    return tuple(b if a == 1 else a for a, b in pairs)[::-1]


def _flattened(operand: Operand, batch: tuple[int, ...]) -> tuple[Operand, int]:
    """The operand expanded to a batch and reshaped to three dimensions, and the elements that this copies."""
    wide = (*batch, *operand.shape[-2:])
    shape = (math.prod(batch), *operand.shape[-2:])
    seen = reshaped(wide, expanded(operand.shape, operand.strides, wide), shape)
    return Operand(shape, seen or contiguous(shape)), 0 if seen else math.prod(shape)


def _batched(first: Operand, second: Operand) -> int:
    """Elements that `bmm_out_cuda_impl` copies: matrices whose strides fit neither of cuBLAS's orders.

    A dimension of size 1 may have any stride as long as the other one is dense.
    """
    m, n, k = first.shape[1], second.shape[2], first.shape[2]
    if k == 0:
        return 0
    # cuBLAS counts by columns. The result is contiguous, so it is seen turned unless its rows are one element wide.
    if n == 1:
        return _unfit(first, 1, 2, m, k) + _unfit(second, 1, 2, k, n)
    return _unfit(second, 2, 1, n, k) + _unfit(first, 2, 1, k, m)


def _unfit(matrix: Operand, fast: int, leading: int, rows: int, columns: int) -> int:
    """`prepare_batch_matrix_for_cublas`: elements of the copy, 0 where the matrix is taken as it is."""
    steps = matrix.strides
    if steps[fast] == 1 and steps[leading] >= max(1, rows):
        return 0
    if steps[leading] == 1 and steps[fast] >= max(1, columns):
        return 0
    if is_contiguous(matrix.shape, steps) and steps[1] and steps[2]:
        return 0
    return math.prod(matrix.shape)


def _matrices(first: Operand, second: Operand) -> int:
    """`prepare_matrix_for_cublas` for both: elements that are copied."""
    return sum(math.prod(m.shape) for m in (first, second) if not _is_fit(m))


def _is_fit(matrix: Operand) -> bool:
    (rows, columns), (across, along) = matrix.shape, matrix.strides
    if is_contiguous(matrix.shape, matrix.strides) or is_contiguous(matrix.shape[::-1], matrix.strides[::-1]):
        return True
    return (across == 1 and along >= max(1, rows)) or (along == 1 and across >= max(1, columns))
