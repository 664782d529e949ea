"""Workspace of scaled dot-product attention: what the kernel that PyTorch picks (`dippm.attention`) allocates.

It is a rule and no matter of statistics; its constants were read off the rows measured on an H200 under PyTorch 2.11.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dippm.attention import HALF, AttentionCall, attention_call
from dippm.case import Runtime
from dippm.graph import ModelGraph, Operator, TensorSpec
from dippm.strides import Strides

FLASH_WIDTH = 256
"""Widest head that the flash kernel takes."""


def attention_workspace(graph: ModelGraph, operator: Operator, strides: Sequence[Strides], runtime: Runtime) -> int:
    """Bytes that one attention allocates beside its output."""
    call = attention_call(graph, operator, strides, runtime)
    query, mask = call.query, call.mask
    width = query.nbytes // max(1, query.numel)
    converted = mask.numel * width if mask is not None and mask.dtype == "bool" else 0
    if call.mathematical:
        return _mathematical(call) + converted
    if mask is None:
        return _flash(query, call.key) if query.dtype in HALF else 0
    if mask.shape[-1] % 8:
        rows = mask.numel // max(1, mask.shape[-1])
        return rows * -(-mask.shape[-1] // 8) * 8 * width
    return converted


def _flash(query: TensorSpec, key: TensorSpec) -> int:
    """Padded copies where the head's width is no multiple of 8; too wide: an accumulator in float32."""
    width = query.shape[-1]
    if width > FLASH_WIDTH:
        return 2 * query.nbytes
    if width % 8 == 0:
        return 0
    padded = -(-width // 8) * 8 / width
    return round(padded * (query.nbytes + 2 * key.nbytes)) + 4 * math.prod(query.shape[:-1])


def _mathematical(call: AttentionCall) -> int:
    """Scaled copies of query and key beside the scores, or scores, softmax and what it compares: whichever is more.

    Half precision is computed in float32.
    """
    query, key, scores = call.query, call.key, 4 * call.scores
    if query.dtype in HALF:
        copies = 5 * query.nbytes + 8 * key.nbytes
        return max(copies + scores, 3 * query.nbytes + 4 * key.nbytes + 9 * scores // 4)
    expanded = key.nbytes + call.value.nbytes if call.grouped else 0
    return max(query.nbytes + 2 * key.nbytes + scores, 9 * scores // 4) + expanded
