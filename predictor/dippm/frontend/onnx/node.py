"""A node of an ONNX graph, its fields read from the protobuf once.

Protobuf makes new Python objects at every look at a field, and a deep network has thousands of nodes that are looked at
a dozen times each.
"""

from __future__ import annotations

from collections.abc import Hashable

import onnx

_WITH_GRAPHS = frozenset({"If", "Loop", "Scan", "SequenceMap"})


class OnnxNode:
    """Operator, name, operands and results; `signature` is operator and attributes as a key."""

    __slots__ = ("inputs", "kind", "name", "outputs", "proto", "signature")

    def __init__(self, proto: onnx.NodeProto) -> None:
        self.proto = proto
        self.kind: str = proto.op_type
        self.name: str = proto.name
        self.inputs: list[str] = proto.input[:]  # a slice is a list, and made in half the time of list()
        """Names of the values read; empty where an optional one is left away."""
        self.outputs: list[str] = proto.output[:]
        self.signature: Hashable | None = None
        """None where an attribute is a graph, which may read what is around it."""
        if self.kind not in _WITH_GRAPHS:
            self.signature = (self.kind, *[a.SerializePartialToString() for a in proto.attribute])

    def read_instead(self, position: int, name: str) -> None:
        """Read another value in the place of an operand."""
        self.inputs[position] = self.proto.input[position] = name
