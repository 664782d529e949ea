"""Files that are walked by hand: what a walk sees is what a parser of protobuf sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from dippm.errors import ModelFormatError
from dippm.frontend.onnx import file as onnx_file
from dippm.frontend.onnx.file import _strip, checked
from dippm.frontend.tensorflow_safety import operators_of


def varint(value: int) -> bytes:
    return onnx_file._varint(value)


def saved_model(op_tag: int) -> bytes:
    """One graph with one node, whose operator (field 2 of NodeDef) is `ReadFile`."""
    body = varint(op_tag) + b"\x08ReadFile"
    for field in (1, 2, 2):  # node of the graph, graph of the meta graph, meta graph
        body = varint(field << 3 | 2) + varint(len(body)) + body
    return body


def test_a_field_is_not_hidden_behind_a_tag_of_more_than_32_bits() -> None:
    """Some parsers read the lower bits of such a tag: the field that the walk took for another."""
    assert operators_of(saved_model(2 << 3 | 2), "m") == {"ReadFile"}
    with pytest.raises(ModelFormatError, match="m is a damaged SavedModel: 536870914 is no field number"):
        operators_of(saved_model(1 << 32 | 2 << 3 | 2), "m")
    with pytest.raises(ModelFormatError, match="m is a damaged ONNX file: 536870919 is no field number"):
        _strip(memoryview(varint(1 << 32 | 7 << 3 | 2) + b"\x00"), "model", "m")


@pytest.mark.parametrize("walk", [operators_of, lambda data, shown: _strip(memoryview(data), "model", shown)])
def test_there_is_no_field_0(walk: Any) -> None:
    with pytest.raises(ModelFormatError, match="0 is no field number"):
        walk(b"\x02\x00", "m")


def test_constants_without_their_data_become_weights_and_the_other_nodes_stay() -> None:
    nodes = []
    for n in range(50):
        left_out = onnx.TensorProto(data_type=1, dims=[8, 8])
        nodes += [
            helper.make_node("Constant", [], [f"c{n}"], value=left_out),
            helper.make_node("Add", ["x", f"c{n}"], [f"y{n}"]),
        ]
    nodes.append(helper.make_node("Constant", [], ["d"], value=numpy_helper.from_array(np.ones(1))))
    x, y = (helper.make_tensor_value_info(name, 1, [8, 8]) for name in ("x", "y49"))
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 17)])
    found = checked(model, "m")
    assert {name: spec.shape for name, spec in found.weights.items()} == {f"c{n}": (8, 8) for n in range(50)}
    kept = [*(f"y{n}" for n in range(50)), "d"]
    assert [node.outputs[0] for node in found.nodes] == [node.output[0] for node in found.model.graph.node] == kept
