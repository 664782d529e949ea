"""Workspace of recurrent layers: the buffers that cuDNN asks PyTorch for (`aten/src/ATen/native/cudnn/RNN.cpp`).

Read off 113 distinct LSTMs and GRUs measured on an H200 under PyTorch 2.11 (widths 48 to 1024, 16 to 400 steps, one to
three layers, both directions): the sum below is within 1.2 % of each. RNNs without gates were not measured; they are
counted as GRUs of one gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dippm.case import Mode
from dippm.features import recurrent_weights
from dippm.graph import ModelGraph, Operator
from dippm.network.workload import Workload

GATES: Mapping[str, int] = {"lstm": 4, "gru": 3, "rnn": 1}
_STATES: Mapping[str, tuple[int, int]] = {"lstm": (10, 12), "gru": (5, 7), "rnn": (5, 7)}
"""Copies of one step's state that a layer keeps in each direction, where there is one direction and where two."""
_OWN = 8 * 2**20
"""What cuDNN takes for itself, each layer and direction, bytes."""
_PERSISTENT_WIDTH = 128
"""Up to this width the kernel keeps the weights on the chip (not in bfloat16) and four times the gates in memory."""
_STEPS_AT_ONCE = 256
"""Steps whose gates a stack of several layers in one direction holds."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    directions: int
    layers: int
    steps: int
    width: int
    """Of the state, of one direction."""
    batch: int


def recurrent_workspace(graph: ModelGraph, operator: Operator, work: Workload, mode: Mode) -> int:
    """Bytes that a recurrent layer (a key of `GATES`) allocates beside its outputs.

    The weights packed anew (in bfloat16 once more, without gradients), the inputs twice (turned to steps first, and
    padded), outputs and gates of all steps, and each layer's states.
    """
    x, sizes, gates = graph.values[operator.inputs[0]].spec, _sizes(graph, operator), GATES[operator.kind]
    bfloat16, one_way = x.dtype == "bfloat16", sizes.directions == 1
    state = sizes.batch * sizes.width * (x.nbytes // max(1, x.numel))
    persistent = sizes.width <= _PERSISTENT_WIDTH and not bfloat16
    few = one_way and sizes.layers > 1 and not persistent
    steps_kept = min(sizes.steps, _STEPS_AT_ONCE) if few else sizes.steps
    states = gates * steps_kept * sizes.directions + sizes.steps * (1 if one_way else 6)
    if persistent:
        states += 4 * gates * sizes.steps
    own = sizes.layers * sizes.directions * (_OWN + _STATES[operator.kind][sizes.directions - 1] * state)
    packed = work.bytes_weight * (2 if bfloat16 and mode is not Mode.AUTOGRAD else 1)
    return packed + 2 * x.nbytes + states * state + own


def _sizes(graph: ModelGraph, operator: Operator) -> _Sizes:
    """PyTorch names directions and may give the batch first; ONNX's `W` is [directions, gates x width, k]."""
    inputs = [graph.values[i].spec for i in operator.inputs]
    matrices = recurrent_weights(operator.target, inputs)
    x, gates = inputs[0].shape, GATES[operator.kind]
    if operator.target.startswith("onnx."):
        directions, layers, rows = matrices[0].shape[0], 1, matrices[0].shape[1]
        batch_first = bool(operator.attributes.get("layout", 0))
    else:
        directions = 2 if operator.attributes.get("bidirectional") else 1
        layers, rows = max(1, len(matrices) // (2 * directions)), matrices[0].shape[0]
        batch_first = bool(operator.attributes.get("batch_first"))
    batch, steps = (1, x[0]) if len(x) == 2 else (x[0], x[1]) if batch_first else (x[1], x[0])
    return _Sizes(directions, layers, steps, rows // gates, batch)
