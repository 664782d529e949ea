"""Recurrent layers that Keras writes as a loop over steps, as ONNX's GRU and RNN (in place).

tf2onnx knows an LSTM in its loop and Keras 2's GRU, but neither Keras 3's GRU nor its SimpleRNN. Which layer a loop's
body is is found out by running it: one step on made-up numbers, held against the layer's own equations
(https://keras.io/api/layers/recurrent_layers/gru, https://onnx.ai/onnx/operators/onnx__GRU.html). Only `onnx` is
imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = np.ndarray[Any, Any]
_STEPS = 3
"""Rows of the batch that a body is run on."""


@dataclass(frozen=True)
class _Loop:
    """A loop over the first dimension of a tensor, which carries one state."""

    node: onnx.NodeProto
    x: str
    """What it goes over: (steps, batch, features)."""
    state: int
    """Position of the state (batch, units) among what is carried."""
    steps: int
    """Position of the states of all steps among the loop's outputs."""
    units: int
    weights: Mapping[str, tuple[int, ...]]
    """Shape of each, by the name that the body reads."""
    body: onnx.ModelProto
    """One step: `x` and the state and the weights in, the new state out."""
    inputs: tuple[str, str]
    """Names of `x` and the state in there."""


@dataclass(frozen=True)
class _Cell:
    """A layer's equation: `step(x, h, w, r, b)` with the weights as Keras has them."""

    operator: str
    gates: int
    biases: int
    """Rows of the bias; 0 where it has none."""
    attributes: Mapping[str, Any]
    step: Callable[[Array, Array, Array, Array, Array], Array]


def put_layers_back(model: onnx.ModelProto) -> None:
    """Replace every loop that is a recurrent layer; others stay."""
    graph = model.graph
    initializers = {t.name: tuple(t.dims) for t in graph.initializer}
    producers = {o: n for n in graph.node for o in n.output}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        loop = _loop_of(node, initializers, model) if node.op_type == "Loop" else None
        cell = None if loop is None else _cell_of(loop)
        nodes.extend([node] if loop is None or cell is None else _layer(graph, loop, cell, producers))
    del graph.node[:]
    graph.node.extend(nodes)


def _loop_of(node: onnx.NodeProto, initializers: Mapping[str, tuple[int, ...]], model: onnx.ModelProto) -> _Loop | None:
    body: onnx.GraphProto = next(a.g for a in node.attribute if a.name == "body")
    carried = [value.name for value in body.input[2:]]
    made = {o: n for n in body.node for o in n.output}

    def origin(name: str) -> str:
        while name in made and made[name].op_type == "Identity":
            name = made[name].input[0]
        return name

    results = [origin(value.name) for value in body.output[1:]]
    outer = dict(zip(carried, node.input[2:], strict=True))
    weights = {
        name: initializers[outer[name]]
        for name, result in zip(carried, results, strict=False)
        if name == result and outer[name] in initializers
    }
    known = {*made, *carried, *(value.name for value in body.input), *(t.name for t in body.initializer)}
    read = dict.fromkeys(i for n in body.node for i in n.input if i and i not in known)
    weights |= {name: initializers[name] for name in read if name in initializers}
    taken = [n for n in body.node if n.op_type == "Gather" and n.input[0] in read and n.input[1] in carried]
    states = [
        place for place, name in enumerate(carried)
        if name not in weights and len(body.input[2 + place].type.tensor_type.shape.dim) == 2
    ]  # fmt: skip
    scans = [place for place, result in enumerate(results) if place >= len(carried)]
    if len(taken) != 1 or len(states) != 1 or len(scans) != 1 or results[scans[0]] != results[states[0]]:
        return None
    (gather,), (state,) = taken, states
    if set(read) - set(weights) != {gather.input[0]} or any(a.name == "axis" and a.i for a in gather.attribute):
        return None
    units = body.input[2 + state].type.tensor_type.shape.dim[1].dim_value
    names = (gather.output[0], carried[state])
    step = helper.make_graph(
        [n for n in body.node if n is not gather], "step",
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in (*names, *weights)],
        [helper.make_tensor_value_info(results[state], onnx.TensorProto.FLOAT, None)], body.initializer,
    )  # fmt: skip
    alone = helper.make_model(_what_leads_to(step), opset_imports=model.opset_import)
    return _Loop(node, gather.input[0], state, scans[0], units, weights, alone, names)


def _what_leads_to(graph: onnx.GraphProto) -> onnx.GraphProto:
    """The graph without what its output does not read (the loop's own counting)."""
    wanted = {graph.output[0].name}
    kept = []
    for node in reversed(graph.node):
        if not wanted.isdisjoint(node.output):
            kept.append(node)
            wanted.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    return graph


def _cell_of(loop: _Loop) -> _Cell | None:
    """The layer whose equation the body computes; None where it is another, or has no names for its weights."""
    for cell in _CELLS:
        found = _roles(loop, cell)
        if found is None:
            continue
        kernel, recurrent, bias = found
        random = np.random.default_rng(0)
        fed = {n: random.normal(0, 0.4, s).astype(np.float32) for n, s in loop.weights.items()}
        width = loop.weights[kernel][0]
        x, h = (random.normal(0, 1, (_STEPS, n)).astype(np.float32) for n in (width, loop.units))
        b = fed[bias] if bias else np.zeros(0, np.float32)
        try:
            (made,) = ReferenceEvaluator(loop.body).run(None, {loop.inputs[0]: x, loop.inputs[1]: h, **fed})
        except (RuntimeError, TypeError, ValueError, NotImplementedError, IndexError, KeyError, AttributeError):
            return None
        wanted = cell.step(x, h, fed[kernel], fed[recurrent], b)
        if np.shape(made) == wanted.shape and np.allclose(made, wanted, atol=1e-4):
            return cell
    return None


def _roles(loop: _Loop, cell: _Cell) -> tuple[str, str, str] | None:
    """Which weights are the kernel, the recurrent kernel and the bias (empty if none)."""
    rest = dict(loop.weights)
    wide = cell.gates * loop.units
    rows = {1: ((wide,), (1, wide)), 2: ((2, wide),)}.get(cell.biases, ())
    biases = [n for n, s in rest.items() if s in rows]
    if len(biases) != bool(cell.biases):
        return None
    bias = biases[0] if biases else ""
    rest.pop(bias, None)
    square = [n for n, s in rest.items() if s == (loop.units, wide)]
    others = [n for n, s in rest.items() if n not in square and len(s) == 2 and s[1] == wide]
    if len(rest) != 2 or len(square) + len(others) != 2 or not square:
        return None
    first = next(
        (n.input[1] for n in loop.body.graph.node if n.op_type == "MatMul" and n.input[0] == loop.inputs[0]), ""
    )
    kernel = others[0] if others else first
    if kernel not in rest:
        return None
    return kernel, next(n for n in rest if n != kernel), bias


def _layer(
    graph: onnx.GraphProto, loop: _Loop, cell: _Cell, producers: Mapping[str, onnx.NodeProto]
) -> Iterator[onnx.NodeProto]:
    """The layer's node, with weights without data, and what gives its results the loop's shapes."""
    node, units, name = loop.node, loop.units, loop.node.name or loop.node.output[0]
    roles = _roles(loop, cell)
    assert roles is not None
    width = loop.weights[roles[0]][0]
    inputs = [loop.x]
    for part, shape in (("W", (1, cell.gates * units, width)), ("R", (1, cell.gates * units, units))):
        _weight(graph, f"{name}/{part}", shape)
        inputs.append(f"{name}/{part}")
    if roles[2]:
        _weight(graph, f"{name}/B", (1, 2 * cell.gates * units))
        inputs.append(f"{name}/B")
    state = node.input[2 + loop.state]
    zero, one = f"{name}/axis_0", f"{name}/axis_1"
    graph.initializer.extend(
        numpy_helper.from_array(np.array([axis], np.int64), called) for axis, called in enumerate((zero, one))
    )
    if not _is_zero(graph, state, producers):
        yield helper.make_node("Unsqueeze", [state, zero], [f"{name}/h"], name=f"{name}/h")
        inputs = [*inputs, *[""] * (5 - len(inputs)), f"{name}/h"]
    results = [f"{name}/Y", f"{name}/Y_h"]
    yield helper.make_node(cell.operator, inputs, results, name=name, hidden_size=units, **cell.attributes)
    for result, axis, place in zip(results, (one, zero), (loop.steps, loop.state), strict=True):
        if node.output[place]:
            yield helper.make_node("Squeeze", [result, axis], [node.output[place]], name=f"{result}/Squeeze")


def _weight(graph: onnx.GraphProto, name: str, shape: tuple[int, ...]) -> None:
    graph.initializer.add(name=name, data_type=onnx.TensorProto.FLOAT).dims.extend(shape)


def _is_zero(graph: onnx.GraphProto, name: str, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether a state is zeros: ONNX's own first state."""
    node = producers.get(name)
    source = node.input[0] if node is not None and node.op_type == "Expand" else name
    tensor = next((t for t in graph.initializer if t.name == source), None)
    return tensor is not None and bool(tensor.raw_data) and not numpy_helper.to_array(tensor).any()


def _sigmoid(x: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-x))
    return result


def _gru(reset_after: bool) -> Callable[[Array, Array, Array, Array, Array], Array]:
    def step(x: Array, h: Array, w: Array, r: Array, b: Array) -> Array:
        given, held = (
            (b.reshape(2, -1) if reset_after else (b, 0 * b)) if b.size else (np.zeros(1), np.zeros(w.shape[1]))
        )
        xz, xr, xh = np.split(x @ w + given, 3, -1)
        rz, rr, rh = np.split(r, 3, -1)
        hz, hr, hh = np.split(np.broadcast_to(held, (w.shape[1],)), 3)
        z, reset = _sigmoid(xz + h @ rz + hz), _sigmoid(xr + h @ rr + hr)
        inner = reset * (h @ rh + hh) if reset_after else (reset * h) @ rh
        return z * h + (1 - z) * np.tanh(xh + inner)  # type: ignore[no-any-return]

    return step


def _rnn(activation: Callable[[Array], Array]) -> Callable[[Array, Array, Array, Array, Array], Array]:
    return lambda x, h, w, r, b: activation(x @ w + h @ r + (b.reshape(-1) if b.size else 0))


_CELLS = (
    _Cell("GRU", 3, 2, {"linear_before_reset": 1}, _gru(reset_after=True)),
    _Cell("GRU", 3, 0, {"linear_before_reset": 1}, _gru(reset_after=True)),
    _Cell("GRU", 3, 1, {}, _gru(reset_after=False)),
    _Cell("GRU", 3, 0, {}, _gru(reset_after=False)),
    _Cell("RNN", 1, 1, {"activations": ["Tanh"]}, _rnn(np.tanh)),
    _Cell("RNN", 1, 0, {"activations": ["Tanh"]}, _rnn(np.tanh)),
    _Cell("RNN", 1, 1, {"activations": ["Relu"]}, _rnn(lambda x: np.maximum(x, 0))),
    _Cell("RNN", 1, 0, {"activations": ["Relu"]}, _rnn(lambda x: np.maximum(x, 0))),
)
