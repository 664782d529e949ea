"""One stored graph serves every batch size: the network is exported at a prime batch and its shapes are rescaled.

A dimension is taken to be proportional to the batch exactly when it is divisible by that prime. Few sizes of a network
are multiples of 61 (a recommender's 793 interactions are 13 x 61); `collides` finds the graphs in which one may be, and
`dippm.zoo.extract` stores these at the next prime. Every measured case checks this again, since its operator rows hold
the shapes that really came out (`dippm.data.join`).
"""

from __future__ import annotations

from dataclasses import replace

from dippm.graph import Attribute, ModelGraph, Operator, TensorSpec, Value

TEMPLATE_BATCHES = (61, 67, 71, 73)
"""Primes; a network whose own sizes are multiples of the first is stored at the next that is free of this."""
TEMPLATE_BATCH = TEMPLATE_BATCHES[0]
_SHAPE_ATTRIBUTES = frozenset({"shape", "size", "repeats", "sizes", "output_size", "split_size", "split_sizes", "end"})


def collides(template: ModelGraph) -> bool:
    """Whether a size may be a multiple of the template's batch by chance: in a weight, or beside the batch itself."""
    prime = template.batch
    return any(
        any(d and d % prime == 0 for d in value.spec.shape)
        if value.kind.is_state
        else value.spec.numel and value.spec.numel % prime**2 == 0
        for value in template.values
    )


def at_batch(template: ModelGraph, batch: int) -> ModelGraph:
    """The graph of `template` (made at one of `TEMPLATE_BATCHES`) at another batch; parameters stay as they are."""
    if template.batch not in TEMPLATE_BATCHES:
        raise ValueError(f"a template graph has a batch of {TEMPLATE_BATCHES}, this one has {template.batch}")
    prime = template.batch
    return replace(
        template,
        values=tuple(_value(v, prime, batch) for v in template.values),
        operators=tuple(_operator(o, prime, batch) for o in template.operators),
        batch=batch,
    )


def _scaled(size: int, prime: int, batch: int) -> int:
    return size // prime * batch if size > 0 and size % prime == 0 else size


def _value(value: Value, prime: int, batch: int) -> Value:
    if value.kind.is_state:
        return value
    shape = tuple(_scaled(d, prime, batch) for d in value.spec.shape)
    return value if shape == value.spec.shape else replace(value, spec=TensorSpec(shape, value.spec.dtype))


def _operator(operator: Operator, prime: int, batch: int) -> Operator:
    scaled: dict[str, Attribute] = {}
    for name in _SHAPE_ATTRIBUTES & operator.attributes.keys():
        given = operator.attributes[name]
        if isinstance(given, tuple):
            scaled[name] = tuple(_scaled(d, prime, batch) for d in given)
        elif isinstance(given, int) and not isinstance(given, bool):
            scaled[name] = _scaled(given, prime, batch)
    return replace(operator, attributes={**operator.attributes, **scaled}) if scaled else operator
