"""The case: everything besides the model graph that decides what a forward pass needs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Precision(StrEnum):
    """Numbers that weights and activations are held in, and the arithmetic used on them."""

    FP32 = "fp32"
    """PyTorch's default: convolutions in TF32, matrix products in true FP32; 4 bytes an element."""
    TF32 = "tf32"
    """TF32 for convolutions and matrix products; 4 bytes an element."""
    FP16 = "fp16"
    BF16 = "bf16"

    @property
    def float_dtype(self) -> str:
        """The dtype of weights and floating-point activations, spelled as Relax spells it."""
        return {"fp16": "float16", "bf16": "bfloat16"}.get(self.value, "float32")


class Mode(StrEnum):
    """How the forward pass treats gradients."""

    INFERENCE = "inference"
    NO_GRAD = "no_grad"
    AUTOGRAD = "autograd"
    """Gradients on, one graph alive: how the paper's own labels were measured."""


class Runtime(StrEnum):
    """Who runs the operators, and so how long each tensor lives."""

    AUTO = "auto"
    """The one that the file's format is usually run by; resolved before anything is predicted."""
    EAGER = "eager"
    """Python modules: arguments live until the module returns, locals until rebound."""
    GRAPH = "graph"
    """A loaded exported program: a tensor dies at its last use."""
    TORCHSCRIPT = "torchscript"
    ONNXRUNTIME = "onnxruntime"
    TENSORFLOW = "tensorflow"
    PADDLE = "paddle"

    @property
    def is_eager(self) -> bool:
        """Whether a model's own Python runs; `auto` is taken for it where nobody resolved it."""
        return self in (Runtime.EAGER, Runtime.AUTO)


class Allocator(StrEnum):
    """PyTorch's caching allocator, as configured by `PYTORCH_CUDA_ALLOC_CONF`."""

    DEFAULT = "default"
    EXPANDABLE = "expandable"
    """`expandable_segments:True`."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of the predictor beside the graph (whose shapes already hold the batch)."""

    batch: int
    precision: Precision = Precision.FP32
    mode: Mode = Mode.INFERENCE
    runtime: Runtime = Runtime.AUTO
    allocator: Allocator = Allocator.DEFAULT
    device: str = "A100-SXM4-40GB"
    """Product name as GPU Feature Discovery gives it, without `NVIDIA-`."""
