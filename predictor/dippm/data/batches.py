"""One stored graph serves every batch size: the network is exported at a prime batch and its shapes are rescaled.

A dimension is proportional to the batch exactly when it is divisible by that prime (61: no width, side, vocabulary or
sequence length of the zoo is a multiple of it). Every measured case checks this again, since its operator rows hold
the shapes that really came out (`dippm.data.join`).
"""

from __future__ import annotations

from dataclasses import replace

from dippm.graph import Attribute, ModelGraph, Operator, TensorSpec, Value, ValueKind

TEMPLATE_BATCH = 61
_SHAPE_ATTRIBUTES = frozenset({"shape", "size", "repeats", "sizes", "output_size", "split_size", "split_sizes", "end"})


def at_batch(template: ModelGraph, batch: int) -> ModelGraph:
    """The graph of `template` (made at `TEMPLATE_BATCH`) at another batch; parameters stay as they are."""
    if template.batch != TEMPLATE_BATCH:
        raise ValueError(f"a template graph has batch {TEMPLATE_BATCH}, this one has {template.batch}")
    return replace(
        template,
        values=tuple(_value(v, batch) for v in template.values),
        operators=tuple(_operator(o, batch) for o in template.operators),
        batch=batch,
    )


def _scaled(size: int, batch: int) -> int:
    return size // TEMPLATE_BATCH * batch if size > 0 and size % TEMPLATE_BATCH == 0 else size


def _value(value: Value, batch: int) -> Value:
    if value.kind is ValueKind.PARAMETER:
        return value
    shape = tuple(_scaled(d, batch) for d in value.spec.shape)
    return value if shape == value.spec.shape else replace(value, spec=TensorSpec(shape, value.spec.dtype))


def _operator(operator: Operator, batch: int) -> Operator:
    scaled: dict[str, Attribute] = {}
    for name in _SHAPE_ATTRIBUTES & operator.attributes.keys():
        given = operator.attributes[name]
        if isinstance(given, tuple):
            scaled[name] = tuple(_scaled(d, batch) for d in given)
        elif isinstance(given, int) and not isinstance(given, bool):
            scaled[name] = _scaled(given, batch)
    return replace(operator, attributes={**operator.attributes, **scaled}) if scaled else operator
