"""Images that come channels last and are turned before anything reads them: taken as they are read, channels first.

TensorFlow's images are (batch, height, width, channels), and tf2onnx turns them at the door. The network behind is the
one that PyTorch has, so its graph is too: how an image lies is the caller's affair, and no operator of the network.
"""

from __future__ import annotations

from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.step_graph import StepGraph
from dippm.frontend.onnx.steps import Step
from dippm.graph import TensorSpec

_TO_FIRST = {3: (0, 2, 1), 4: (0, 3, 1, 2), 5: (0, 4, 1, 2, 3)}


def channels_first(
    steps: list[Step], static: StaticGraph, inputs: dict[str, TensorSpec], outputs: frozenset[str]
) -> tuple[list[Step], dict[str, TensorSpec]]:
    """The steps without such turns, and the inputs as they are read then."""
    graph = StepGraph(steps, static, outputs)
    left_out: set[int] = set()
    bound: dict[str, TensorSpec] = {}
    for name, spec in inputs.items():
        readers = graph.readers_of(name)
        turned = {r.outputs[0] for r in readers if r.target == "onnx.Transpose" and _turns(r, len(spec.shape))}
        if len(turned) != 1 or len(readers) != 1 or not outputs.isdisjoint({name, *turned}):
            bound[name] = spec
            continue
        left_out.add(id(readers[0]))
        bound[turned.pop()] = static.specs[readers[0].outputs[0]]
    return [s for s in steps if id(s) not in left_out], bound


def _turns(step: Step, rank: int) -> bool:
    return rank in _TO_FIRST and step.given.get("perm") == _TO_FIRST[rank]
