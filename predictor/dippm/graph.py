"""The model graph: one node per operator as the framework runs it, in the order it runs them.

This is the value that the frontends hand on. The data set, the memory replay and the network speak of its nodes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any

DTYPE_BYTES: Mapping[str, int] = {
    "float64": 8, "int64": 8, "uint64": 8, "complex64": 8, "complex128": 16,
    "float32": 4, "int32": 4, "uint32": 4,
    "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1,
}  # fmt: skip
FLOAT_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})

Attribute = int | float | bool | str | None | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape (elements per dimension, batch included) and dtype (as Relax spells it) of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of a dense tensor of this shape, before the allocator's rounding."""
        return self.numel * DTYPE_BYTES[self.dtype]


class ValueKind(StrEnum):
    """Where a value comes from."""

    INPUT = "input"
    PARAMETER = "parameter"
    """A weight: on the device before the forward pass, alive throughout. So are buffers of files that do not tell them
    from weights (ONNX)."""
    BUFFER = "buffer"
    """Held like a weight, but nothing that is trained: running statistics, tables of positions and frequencies."""
    CONSTANT = "constant"
    """A literal inside the graph (shape arithmetic, scalars, baked-in tables)."""
    RESULT = "result"
    """Put out by an operator."""

    @property
    def is_state(self) -> bool:
        """Whether the module holds it (a weight or a buffer), at any batch the same."""
        return self in (ValueKind.PARAMETER, ValueKind.BUFFER)


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of the graph. Its id is its index in `ModelGraph.values`."""

    spec: TensorSpec
    kind: ValueKind
    producer: int | None = None
    """Index of the operator that puts it out; None unless `kind` is RESULT."""
    alias_of: int | None = None
    """Id of the value whose storage it shares (a view, or an in-place operator's input); None if it owns its own."""
    name: str = ""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator as the framework runs it (`conv2d` with its bias is one operator, whatever Relax makes of it)."""

    kind: str
    """Canonical name, from `dippm.vocabulary.KINDS`; `unknown` is a slot of its own."""
    target: str
    """The framework's own name, e.g. `aten.conv2d.default` or `onnx.Conv`."""
    inputs: tuple[int, ...]
    """Ids of the values read, in argument order, weights included."""
    outputs: tuple[int, ...]
    """Ids of the values put out."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """Canonical attributes, e.g. kernel_size, stride, padding, dilation, groups (tuples of ints for spatial ones)."""
    scope: tuple[str, ...] = ()
    """Module paths, outermost first, each the full path (`("", "layer1", "layer1.0", "layer1.0.conv1")`).

    A call counts: a module called twice gets `@1` appended. Empty if the file has none.
    """
    source: str = ""
    """Source line that called it (`file.py:123: x = self.relu(x)`), empty if the file has none."""
    relax: tuple[str, ...] = ()
    """Names of the Relax operators that express it, in order (`relax.nn.conv2d`, `relax.reshape`, `relax.add`)."""


@dataclass(frozen=True)
class ModelGraph:
    """A model at one batch size: values, operators in execution order, graph inputs and outputs."""

    values: tuple[Value, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    batch: int
    format: str = ""
    """The door it came through: `pt2`, `torchscript`, `onnx`, ..."""
    stored_dtype: str = ""
    """Float dtype of the weights in the file, where the door builds them in another; empty: that of the parameters."""
    notes: tuple[str, ...] = ()
    """What the door did that whoever reads the figures should know, each a sentence."""
    restored: int = 0
    """Batch norms that the file's exporter had folded into convolutions, and that the door put back."""
    open_batch: bool = False
    """Whether the file leaves its batch open: a runtime that plans by the file knows no shape that is computed."""

    @cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Data-flow edges (producer operator, consumer operator), each pair once, sorted."""
        pairs = {
            (producer, index)
            for index, operator in enumerate(self.operators)
            for value in operator.inputs
            if (producer := self.values[value].producer) is not None
        }
        return tuple(sorted(pairs))

    @cached_property
    def parameter_ids(self) -> tuple[int, ...]:
        """Ids of the weights and buffers that own their storage."""
        return tuple(i for i, v in enumerate(self.values) if v.kind.is_state and v.alias_of is None)

    @cached_property
    def digest(self) -> str:
        """`sha256:` over the canonical JSON form without scopes and sources: the same graph, the same digest.

        An open batch belongs to it, as ONNX Runtime plans such a file in another way; it is written only where it is
        true, so other graphs keep their digest. Keys are sorted and nothing is spaced. The text is put together here:
        most operators and values differ in nothing but the ids.
        """
        known: dict[Hashable, tuple[str, ...]] = {}
        body = (
            f'"batch":{self.batch}',
            f'"inputs":{_ids(self.inputs)}',
            *(('"open_batch":true',) if self.open_batch else ()),
            f'"operators":[{",".join([_operator_text(o, known) for o in self.operators])}]',
            f'"outputs":{_ids(self.outputs)}',
            f'"values":[{",".join([_value_text(v, known) for v in self.values])}]',
        )
        return "sha256:" + hashlib.sha256(f"{{{','.join(body)}}}".encode()).hexdigest()

    def storage(self, value: int) -> int:
        """Id of the value that owns the storage of `value`."""
        while (owner := self.values[value].alias_of) is not None:
            value = owner
        return value

    def cast(self, float_dtype: str) -> ModelGraph:
        """The same graph with every floating-point tensor held in `float_dtype` (`float32`, `float16`, `bfloat16`)."""
        values = tuple(
            replace(v, spec=TensorSpec(v.spec.shape, float_dtype))
            if v.spec.dtype in FLOAT_DTYPES and v.spec.dtype != float_dtype
            else v
            for v in self.values
        )
        return replace(self, values=values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` reads it back."""
        body: dict[str, Any] = {
            "batch": self.batch,
            "format": self.format,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "values": [_value_to_dict(v) for v in self.values],
            "operators": [_operator_to_dict(o) for o in self.operators],
        }
        if self.stored_dtype:
            body["stored_dtype"] = self.stored_dtype
        if self.notes:
            body["notes"] = list(self.notes)
        if self.restored:
            body["restored"] = self.restored
        if self.open_batch:
            body["open_batch"] = True
        return body

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> ModelGraph:
        """Inverse of `to_dict`."""
        return cls(
            values=tuple(_value_from_dict(v) for v in body["values"]),
            operators=tuple(_operator_from_dict(o) for o in body["operators"]),
            inputs=tuple(body["inputs"]),
            outputs=tuple(body["outputs"]),
            batch=body["batch"],
            format=body["format"],
            stored_dtype=body.get("stored_dtype", ""),
            notes=tuple(body.get("notes", ())),
            restored=body.get("restored", 0),
            open_batch=body.get("open_batch", False),
        )


def _ids(ids: Sequence[int]) -> str:
    return f"[{','.join(map(str, ids))}]"


def _value_text(value: Value, known: dict[Hashable, tuple[str, ...]]) -> str:
    """Canonical JSON of a value without its name."""
    key = (value.spec, value.kind)
    if key not in known:
        spec = value.spec
        known[key] = f'"dtype":"{spec.dtype}","kind":"{value.kind.value}",', f'"shape":{_ids(spec.shape)}'
    kind, shape = known[key]
    alias = "" if value.alias_of is None else f'"alias_of":{value.alias_of},'
    producer = "" if value.producer is None else f'"producer":{value.producer},'
    return f"{{{alias}{kind}{producer}{shape}}}"


def _operator_text(operator: Operator, known: dict[Hashable, tuple[str, ...]]) -> str:
    """Canonical JSON of an operator without its place."""
    key = (operator.kind, operator.target, operator.relax, repr(operator.attributes))  # 1, 1.0 and True are equal
    if key not in known:
        attributes = f'"attributes":{_plain(operator.attributes)},' if operator.attributes else ""
        relax = f'"relax":{_plain(operator.relax)},' if operator.relax else ""
        known[key] = attributes, f'"kind":{_plain(operator.kind)}', f'{relax}"target":{_plain(operator.target)}'
    attributes, kind, rest = known[key]
    return f'{{{attributes}"inputs":{_ids(operator.inputs)},{kind},"outputs":{_ids(operator.outputs)},{rest}}}'


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _value_to_dict(value: Value) -> dict[str, Any]:
    body: dict[str, Any] = {"shape": list(value.spec.shape), "dtype": value.spec.dtype, "kind": value.kind.value}
    if value.producer is not None:
        body["producer"] = value.producer
    if value.alias_of is not None:
        body["alias_of"] = value.alias_of
    if value.name:
        body["name"] = value.name
    return body


def _value_from_dict(body: Mapping[str, Any]) -> Value:
    return Value(
        spec=TensorSpec(tuple(body["shape"]), body["dtype"]),
        kind=ValueKind(body["kind"]),
        producer=body.get("producer"),
        alias_of=body.get("alias_of"),
        name=body.get("name", ""),
    )


def _operator_to_dict(operator: Operator) -> dict[str, Any]:
    body: dict[str, Any] = {
        "kind": operator.kind,
        "target": operator.target,
        "inputs": list(operator.inputs),
        "outputs": list(operator.outputs),
    }
    if operator.attributes:
        body["attributes"] = {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(operator.attributes.items())}
    if operator.relax:
        body["relax"] = list(operator.relax)
    if operator.scope:
        body["scope"] = list(operator.scope)
    if operator.source:
        body["source"] = operator.source
    return body


def _operator_from_dict(body: Mapping[str, Any]) -> Operator:
    return Operator(
        kind=body["kind"],
        target=body["target"],
        inputs=tuple(body["inputs"]),
        outputs=tuple(body["outputs"]),
        attributes={k: tuple(v) if isinstance(v, list) else v for k, v in body.get("attributes", {}).items()},
        scope=tuple(body.get("scope", ())),
        source=body.get("source", ""),
        relax=tuple(body.get("relax", ())),
    )
