"""Which runtime a case is predicted for, and which measured one stands in for it."""

from __future__ import annotations

from dataclasses import dataclass

from dippm.case import Runtime

USUAL = {
    "onnx": Runtime.ONNXRUNTIME,
    "pt2": Runtime.GRAPH,
    "torchscript": Runtime.TORCHSCRIPT,
    "huggingface": Runtime.EAGER,
    "safetensors": Runtime.EAGER,
    "pytorch": Runtime.EAGER,
    "savedmodel": Runtime.TENSORFLOW,
    "keras": Runtime.TENSORFLOW,
    "tflite": Runtime.TENSORFLOW,
    "paddle": Runtime.PADDLE,
}
"""The runtime that a file of each format is usually run by."""

STAND_INS = dict.fromkeys((Runtime.TORCHSCRIPT, Runtime.TENSORFLOW, Runtime.PADDLE), Runtime.GRAPH)
"""The measured runtime nearest to one that never was: each of these frees a tensor at its last use."""

LEARNED_AS = {Runtime.ONNXRUNTIME: Runtime.GRAPH}
"""Runtimes whose memory is replayed by rules of their own, and the one whose operators the network is asked for."""

FOLDS = frozenset({Runtime.ONNXRUNTIME})
"""Runtimes that fold batch norms into convolutions, and compute what hangs on no input, when they load a graph."""

PROXY_FACTOR = 1.75
"""How much memory above weights and inputs is widened for a stand-in: the most that the measured runtimes differ.
A graph that frees at the last use came out up to 43 % lower than the Python module (120 cases), which is 1.75 times."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The runtime that was asked for, and the one whose figures are given."""

    asked: Runtime
    predicted: Runtime

    @property
    def learned(self) -> Runtime:
        """The runtime that the network is asked about."""
        return LEARNED_AS.get(self.predicted, self.predicted)

    @property
    def is_proxy(self) -> bool:
        """Whether a measured runtime stands in for one that was not."""
        return self.asked is not self.predicted


def resolve(runtime: Runtime, file_format: str) -> Resolved:
    """`auto` becomes what the format is usually run by (an exported program's own runtime where nothing is known)."""
    asked = USUAL.get(file_format, Runtime.GRAPH) if runtime is Runtime.AUTO else runtime
    return Resolved(asked, STAND_INS.get(asked, asked))
