"""Workspace of scaled dot-product attention: which kernel PyTorch picks, and what that one allocates.

PyTorch chooses by rank, dtype, head width and mask (`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`): flash for
half precision without a mask, the memory-efficient kernel for float32 and for masks whose last dimension is dense, the
plain mathematical form for everything else. The first two keep next to nothing, the last keeps the scores. So it is a
rule and no matter of statistics; its constants were read off the rows measured on an H200 under PyTorch 2.11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dippm.case import Runtime
from dippm.graph import ModelGraph, Operator, TensorSpec, ValueKind
from dippm.strides import Strides

KIND = "scaled_dot_product_attention"
FLASH_WIDTH = 256
"""Widest head that the flash kernel takes."""
MASKING = frozenset({"where", "masked_fill", "add"})
"""How a bias and a mask are made one; the result lies in memory as its operands do."""
HALF = ("float16", "bfloat16")


def attention_workspace(graph: ModelGraph, operator: Operator, strides: Sequence[Strides], runtime: Runtime) -> int:
    """Bytes that one attention allocates beside its output."""
    query, key, value = (graph.values[i].spec for i in operator.inputs[:3])
    mask_id = operator.inputs[3] if len(operator.inputs) > 3 else None
    mask = None if mask_id is None else graph.values[mask_id].spec
    half = query.dtype in HALF
    repeated = _is_repeated(graph, operator.inputs[1])
    if runtime is Runtime.EAGER and mask is not None and mask.dtype == "bool":
        # Transformers leaves a mask that hides nothing away when it runs eagerly; an exported graph keeps it.
        mask = mask_id = None
        if repeated and not half:
            # ... and gives grouped heads as they are, which only the mathematical form takes in float32.
            return _mathematical(query, key) + key.nbytes + value.nbytes
    plain = len(query.shape) == 4 and query.shape[1] == key.shape[1]
    if mask is None:
        fitting = half or query.shape[-1] % 4 == 0
        if not plain or not fitting:
            return _mathematical(query, key)
        return _fused(query, key) if half else 0
    assert mask_id is not None
    dense = _is_dense(graph, mask_id, strides)
    converted = mask.numel * (query.nbytes // max(1, query.numel)) if mask.dtype == "bool" else 0
    if not plain or not dense:
        return _mathematical(query, key) + converted
    if mask.shape[-1] % 8:
        rows = mask.numel // max(1, mask.shape[-1])
        return rows * -(-mask.shape[-1] // 8) * 8 * (query.nbytes // max(1, query.numel))
    return converted


def _fused(query: TensorSpec, key: TensorSpec) -> int:
    """Flash: padded copies where the head's width is no multiple of 8; too wide: an accumulator in float32."""
    width = query.shape[-1]
    if width > FLASH_WIDTH:
        return 2 * query.nbytes
    if width % 8 == 0:
        return 0
    padded = -(-width // 8) * 8 / width
    return round(padded * (query.nbytes + 2 * key.nbytes)) + 4 * math.prod(query.shape[:-1])


def _mathematical(query: TensorSpec, key: TensorSpec) -> int:
    """Scaled copies of query and key beside the scores, or scores, softmax and what it compares: whichever is more.

    Half precision is computed in float32.
    """
    scores = 4 * math.prod(query.shape[:-1]) * key.shape[-2]
    if query.dtype in HALF:
        copies = 5 * query.nbytes + 8 * key.nbytes
        return max(copies + scores, 3 * query.nbytes + 4 * key.nbytes + 9 * scores // 4)
    return max(query.nbytes + 2 * key.nbytes + scores, 9 * scores // 4)


def _is_dense(graph: ModelGraph, mask: int, strides: Sequence[Strides]) -> bool:
    """Whether a mask's rows lie densely: no expanded one, and none that took its order from a permuted operand."""
    value = graph.values[mask]
    if strides[mask][-1:] != (1,) or 0 in _used(value.spec, strides[mask])[-2:]:
        return False
    producer = None if value.producer is None else graph.operators[value.producer]
    operands = producer.inputs if producer is not None and producer.kind in MASKING else ()
    return all(
        _used(graph.values[i].spec, strides[i])[-1] in (0, 1)
        for i in operands
        if len(graph.values[i].spec.shape) == len(value.spec.shape)
    )


def _used(spec: TensorSpec, strides: Strides) -> list[int]:
    """Strides of the dimensions that have more than one element; 1 for the others."""
    return [s if n > 1 else 1 for n, s in zip(spec.shape, strides, strict=True)]


def _is_repeated(graph: ModelGraph, value: int) -> bool:
    """Whether a key was made of fewer heads, by `expand` and `reshape`."""
    for _ in range(3):
        entry = graph.values[value]
        if entry.kind is not ValueKind.RESULT or entry.producer is None:
            return False
        producer = graph.operators[entry.producer]
        if producer.kind == "expand":
            return True
        if producer.kind not in ("reshape", "copy", "repeat"):
            return False
        value = producer.inputs[0]
    return False
