"""Which operators are taken to overwrite their input: ONNX does not say, and PyTorch's convolutional networks do.

1. An activation that is a module of its own, whose input a convolution, a batch norm or an addition puts out and
   nothing else reads: networks of timm and torchvision make these with `inplace=True`. In a file of another framework
   every such activation is: TensorFlow's executor hands a buffer on that nobody else reads, and so does
   PaddlePaddle's inference.
2. An addition whose source line says `x += y`.
"""

from __future__ import annotations

import re

from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.scopes import paths_of, trace_of
from dippm.frontend.onnx.step_graph import StepGraph
from dippm.frontend.onnx.steps import Step

_ACTIVATIONS = frozenset({"relu", "relu6", "silu", "hardswish"})
_BEFORE = frozenset({"batch_norm", "add"})
_AUGMENTED = re.compile(r"\n\s+[\w.]+ \+= .*\s*$")


def mark_in_place(steps: list[Step], static: StaticGraph, outputs: frozenset[str], *, by_pytorch: bool) -> None:
    """Sets `Step.in_place` where a step is taken to overwrite its first input."""
    graph = StepGraph(steps, static, outputs)
    for step in steps:
        before = graph.producer.get(step.inputs[0]) if step.inputs else None
        if before is None or not graph.single(step.inputs[0]):
            continue
        if step.kind in _ACTIVATIONS:
            alone = len(paths_of(step.nodes[-1])) > 1 or not by_pytorch
            step.in_place = alone and (before.kind in _BEFORE or before.kind.startswith("conv"))
        elif step.kind == "add":
            step.in_place = bool(_AUGMENTED.search(trace_of(step)))
