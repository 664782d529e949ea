"""Which kernel PyTorch picks for scaled dot-product attention.

By rank, dtype, head width and mask (`aten/src/ATen/native/transformers/cuda/sdp_utils.cpp`): flash for half precision
without a mask, the memory-efficient kernel for float32 and for masks whose last dimension is dense, the plain
mathematical form for everything else. The first two keep next to nothing, the last keeps the scores.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dippm.case import Runtime
from dippm.graph import ModelGraph, Operator, TensorSpec, ValueKind
from dippm.strides import Strides, iterated, strides_of, view

KIND = "scaled_dot_product_attention"
MASKING = frozenset({"where", "masked_fill", "add"})
"""How a bias and a mask are made one; the result lies in memory as its operands do."""
HALF = ("float16", "bfloat16")
_OF_SHAPES = ("full", "arange")
"""Kinds that look at the shape of what they read alone (`ones_like`)."""
_MAKES_MASKS = re.compile(r"modeling_\w+\.py:\d+: .*(\bcreate_\w*mask|\b_create_attention_mask|\bmask_function)\w*\(")
"""Lines of transformers' models that ask `masking_utils` for a mask."""
_ORDERS = ("aten.gt.", "aten.ge.", "aten.lt.", "aten.le.")


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One attention as PyTorch runs it."""

    query: TensorSpec
    key: TensorSpec
    value: TensorSpec
    mask: TensorSpec | None
    """The mask that is really handed over."""
    mathematical: bool
    """Whether it is computed in plain products and a softmax, half precision in float32 (`_math`)."""
    grouped: bool
    """Whether that form expands grouped heads itself."""

    @property
    def scores(self) -> int:
        """Elements of the matrix of scores."""
        rows = self.query.numel // max(1, self.query.shape[-1])
        return rows * self.key.shape[-2]


def attention_call(
    graph: ModelGraph, operator: Operator, strides: Sequence[Strides], runtime: Runtime
) -> AttentionCall:
    """What becomes of an operator of kind `scaled_dot_product_attention`; `strides` as `strides_of` gives them."""
    query, key, value = (graph.values[i].spec for i in operator.inputs[:3])
    mask_id = operator.inputs[3] if len(operator.inputs) > 3 else None
    mask = None if mask_id is None else graph.values[mask_id].spec
    half = query.dtype in HALF
    if runtime.is_eager and mask_id is not None and _is_not_made(graph, mask_id):
        mask = mask_id = None
        if _repeated(graph, operator.inputs[1]) is not None and not half:
            # Grouped heads come as they are then, which only the mathematical form takes in float32.
            return AttentionCall(query, key, value, None, mathematical=True, grouped=True)
    if runtime.is_eager and mask_id is not None and (joined := _joined_bias(graph, mask_id)) is not None:
        mask_id = joined.inputs[1]
        mask = graph.values[mask_id].spec
    plain = len(query.shape) == 4 and query.shape[1] == key.shape[1]
    fused = plain and ((half or query.shape[-1] % 4 == 0) if mask_id is None else _is_dense(graph, mask_id, strides))
    return AttentionCall(query, key, value, mask, mathematical=not fused, grouped=False)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What an exported graph computes for its masks, and eager Python does not."""

    values: frozenset[int] = frozenset()
    """Never made."""
    stands_for: Mapping[int, int] = field(default_factory=dict)
    """Of a bias that the graph joins with a mask, and of heads that it repeats: what is handed over instead."""


def masks_left_out(graph: ModelGraph, runtime: Runtime) -> LeftOut:
    """Masks that transformers does not make where it runs eagerly, and what they are made of. A bias (T5's) then comes
    to the kernel as it is, and so do grouped heads.
    """
    if not runtime.is_eager:
        return LeftOut()
    unread: set[tuple[int, int]] = set()
    """(operator, value) of the reads that do not happen."""
    stands_for: dict[int, int] = {}
    handed_over: set[int] = set()
    readers: dict[int, list[int]] = {}
    for index, operator in enumerate(graph.operators):
        for value in operator.inputs:
            readers.setdefault(value, []).append(index)
    gone: set[int] = set()
    for index in range(len(graph.operators) - 1, -1, -1):
        operator = graph.operators[index]
        if operator.kind == KIND and len(operator.inputs) > 3:
            mask = operator.inputs[3]
            joined = _joined_bias(graph, mask)
            handed: list[tuple[int, int | None]] = []
            if _is_not_made(graph, mask):
                unread.add((index, mask))
                handed = [(value, _repeated(graph, value)) for value in operator.inputs[1:3]]
            elif joined is not None:
                handed = [(mask, joined.inputs[1])]
            for value, instead in handed:
                producer = graph.values[value].producer
                only_here = all(graph.operators[r].kind == KIND for r in readers[value])
                if instead is not None and producer is not None and only_here:
                    stands_for[value] = instead
                    handed_over.add(instead)
                    unread.update((producer, i) for i in graph.operators[producer].inputs if i != instead)
        elif operator.outputs and all(
            value in readers
            and value not in handed_over
            and value not in graph.outputs
            and all((r, value) in unread for r in readers[value])
            for value in operator.outputs
        ):
            gone.update(operator.outputs)
            unread.update((index, value) for value in operator.inputs)
    return LeftOut(frozenset(gone), stands_for)


def _joined_bias(graph: ModelGraph, mask: int) -> Operator | None:
    """The operator that made a mask where that is `where(shown, bias, number)`, made dense or not."""
    operator = None
    for _ in range(2):
        if (producer := graph.values[mask].producer) is None:
            return None
        operator = graph.operators[producer]
        if operator.kind != "copy":
            break
        mask = operator.inputs[0]
    if operator is None or operator.kind != "where" or len(operator.inputs) < 2:
        return None
    shown, bias, *others = operator.inputs
    numbers = all(graph.values[i].spec.numel == 1 for i in others)
    alike = graph.values[bias].spec.dtype == graph.values[mask].spec.dtype
    return operator if numbers and alike and _is_not_made(graph, shown) else None


def _is_not_made(graph: ModelGraph, mask: int) -> bool:
    """Whether a mask is one that transformers makes when a model is exported, and not when it runs.

    `_ignore_causal_mask_sdpa` and `_ignore_bidirectional_mask_sdpa` (`transformers/masking_utils.py`) leave it out
    where no token is padding and no window is shorter than the tokens. So: it is boolean, no input of the graph has a
    say in it, the lines that it comes from (where the file tells them) call transformers' own functions, and what it
    orders positions by is no offset of fewer tokens, nor a chunk.
    """
    spec = graph.values[mask].spec
    if spec.dtype != "bool":
        return False
    seen, ahead, makers = {mask}, [mask], list[Operator]()
    while ahead:
        value = graph.values[ahead.pop()]
        if value.kind is ValueKind.INPUT:
            return False
        if value.producer is None:
            continue
        makers.append(graph.operators[value.producer])
        if makers[-1].kind not in _OF_SHAPES:
            new = [i for i in makers[-1].inputs if i not in seen]
            seen.update(new)
            ahead += new
    sources = [maker.source for maker in makers if maker.source]
    if sources and not any(map(_MAKES_MASKS.search, sources)):
        return False
    return all(
        maker.kind != "floor_divide" and all(offset >= spec.shape[-1] for offset in _offsets(graph, maker))
        for maker in makers
    )


def _offsets(graph: ModelGraph, operator: Operator) -> list[int]:
    """The numbers that a comparison of positions by their order adds to one side, or compares their distance with."""
    if operator.kind != "compare" or not operator.target.startswith(_ORDERS):
        return []
    found = [operator]
    for value in operator.inputs:
        while (producer := graph.values[value].producer) is not None:
            if graph.operators[producer].kind in ("add", "subtract"):
                found.append(graph.operators[producer])
                break
            if graph.operators[producer].kind not in ("unsqueeze", "expand", "reshape", "transpose", "cast"):
                break
            value = graph.operators[producer].inputs[0]
    others = [one.attributes.get("other") for one in found]
    return [abs(other) for other in others if isinstance(other, int) and other]


def copied_outputs(graph: ModelGraph, runtime: Runtime) -> frozenset[int]:
    """Values that the graph has as views of an attention's output, its heads put side by side, and a GPU copies.

    Flash attention lays its output out as its query lies (`empty_like`, `mha_fwd` in `flash_api.cpp`): where heads come
    before positions there, as after a norm or a rotation of heads, `transpose(1, 2).reshape(...)` is no view.
    """
    calls = [o for o in graph.operators if o.kind == KIND]
    if not any(graph.values[o.inputs[0]].spec.dtype in HALF for o in calls):
        return frozenset()
    strides, lies = strides_of(graph), {}
    for operator in calls:
        call = attention_call(graph, operator, strides, runtime)
        if call.query.dtype in HALF and call.mask is None and not call.mathematical:
            lies[operator.outputs[0]] = iterated(call.query.shape, [(call.query.shape, strides[operator.inputs[0]])])
    found = set()
    for operator in graph.operators:
        source, output = operator.inputs[:1], operator.outputs[0]
        given = [graph.values[i].spec.shape for i in source]
        if source and source[0] in lies and graph.values[output].alias_of is not None:
            shape = graph.values[output].spec.shape
            seen = view(operator.kind, operator.attributes, given[0], lies[source[0]], shape)
            if seen is None:
                found.add(output)
            else:
                lies[output] = seen
    return frozenset(found)


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


def _repeated(graph: ModelGraph, value: int) -> int | None:
    """What a key or value was repeated from to have as many heads as the query, by `expand` and `reshape`."""
    for _ in range(3):
        entry = graph.values[value]
        if entry.kind is not ValueKind.RESULT or entry.producer is None:
            return None
        producer = graph.operators[entry.producer]
        value = producer.inputs[0]
        if producer.kind == "expand":
            return value
        if producer.kind not in ("reshape", "copy", "repeat"):
            return None
    return None
