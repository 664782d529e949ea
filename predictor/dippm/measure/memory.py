"""Memory labels of one case: weights, peak of the steady passes, reserved from an emptied cache, context."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dippm.case import Allocator, Mode, Precision, Runtime
from dippm.measure import counters
from dippm.measure.counters import MIB
from dippm.measure.nvml import Gpu
from dippm.measure.runtimes import UNSETTLED_PASSES, torchscript_forward
from dippm.zoo.build import batch_statistics, example_inputs, fill, float_dtype, normalises_batches, place
from dippm.zoo.case import ZooCase

STEADY_PASSES = 1
CALIBRATION_BATCH = 4


class NotFinite(RuntimeError):
    """The outputs hold an infinity or a NaN: the case's times would be those of broken numbers."""


class AllocatorRetried(RuntimeError):
    """The allocator ran short and tried again, or a plan was given up: the labels are not those of a free GPU."""


@dataclass(frozen=True, slots=True)
class MemoryLabels:
    """MiB, by the definitions of the design."""

    weights_mib: float
    """Allocated after the model and the inputs are on the device."""
    inputs_mib: float
    allocated_mib: float
    activations_mib: float
    reserved_mib: float
    reserved_before_mib: float
    """Reserved for weights and inputs before the first pass."""
    leaked_mib: float
    """Allocated before the case was loaded (0 where the process held nothing from earlier cases)."""
    context_mib: float | None
    footprint_mib: float | None


def set_precision(precision: Precision) -> None:
    """TF32 for convolutions always (PyTorch's default), for matrix products only under `tf32`."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = precision is Precision.TF32
    torch.backends.cudnn.benchmark = False


def set_allocator(allocator: Allocator) -> None:
    """Chooses the caching allocator's segments; before anything is allocated in this process."""
    expandable = allocator is Allocator.EXPANDABLE
    torch.cuda.memory._set_allocator_settings(f"expandable_segments:{expandable}")


@contextlib.contextmanager
def gradient_mode(mode: Mode) -> Iterator[None]:
    """The context in which a forward pass of this mode runs."""
    if mode is Mode.INFERENCE:
        with torch.inference_mode():
            yield
    elif mode is Mode.NO_GRAD:
        with torch.no_grad():
            yield
    else:
        with torch.enable_grad():
            yield


@dataclass(slots=True)
class Loaded:
    """A case on the GPU: call `forward` for one pass; `close` lets go of everything."""

    forward: Callable[[], Any]
    weights_bytes: int
    inputs_bytes: int
    reserved_bytes: int
    start_bytes: int
    """Allocated before the case was loaded: what earlier cases of this process leaked, zero if nothing."""
    steady_passes: int = STEADY_PASSES
    """Passes after the first whose peak counts."""

    def close(self) -> None:
        """Drops module and inputs and gives the memory back to the driver."""
        self.forward = _nothing
        release()


def _nothing() -> None:
    return None


def release() -> None:
    """Collects what Python still holds and empties the allocator's cache."""
    gc.collect()
    torch.cuda.synchronize()
    counters.empty()


def load(case: ZooCase, module: torch.nn.Module, *, calibrate: bool = True) -> Loaded:
    """Places the constructed module and its inputs, fills the weights, takes batch-norm statistics from a small pass.

    The small pass leaves nothing behind: the cache and cuBLAS's workspaces are emptied after it.
    """
    device, dtype = torch.device("cuda", 0), float_dtype(case.precision)
    set_precision(case.precision)
    release()
    start = counters.read().allocated
    place(module, device, dtype)
    fill(module)
    module.requires_grad_(case.mode is Mode.AUTOGRAD)
    weights = counters.read().allocated - start
    inputs = example_inputs(case.network.inputs, case.batch, device, dtype)
    if calibrate and normalises_batches(module):
        with torch.no_grad(), batch_statistics(module):
            module(*example_inputs(case.network.inputs, CALIBRATION_BATCH, device, dtype, seed=2))
    run: Callable[..., Any] = module
    if case.runtime is Runtime.GRAPH:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            run = torch.export.export(module, inputs).module()
    elif case.runtime is Runtime.TORCHSCRIPT:
        run = torchscript_forward(module, inputs)
    release()
    here = counters.read()
    placed, mode = here.allocated - start, case.mode

    def forward() -> Any:
        with gradient_mode(mode):
            return run(*inputs)

    steady = UNSETTLED_PASSES if case.runtime is Runtime.TORCHSCRIPT else STEADY_PASSES
    return Loaded(forward, weights, placed - weights, here.reserved, start, steady)


def measure_memory(loaded: Loaded, gpu: Gpu) -> MemoryLabels:
    """One pass from the emptied cache, then steady ones, the previous output released before each.

    Raises NotFinite, AllocatorRetried, or torch.OutOfMemoryError.
    """
    before = counters.read()
    out = loaded.forward()
    torch.cuda.synchronize()
    if not finite(out):
        raise NotFinite("the outputs are not finite")
    del out
    counters_reserved = counters.read().reserved_peak
    counters.reset_peak()
    for _ in range(loaded.steady_passes):
        out = loaded.forward()
        del out
    torch.cuda.synchronize()
    after = counters.read()
    if (after.retries, after.ooms) != (before.retries, before.ooms):
        raise AllocatorRetried(
            f"num_alloc_retries {before.retries} -> {after.retries}, num_ooms {before.ooms} -> {after.ooms}"
        )
    reserved = max(counters_reserved, after.reserved_peak)
    process = gpu.process_mib()
    context = None if process is None else process - after.reserved / MIB
    placed = loaded.weights_bytes + loaded.inputs_bytes
    return MemoryLabels(
        weights_mib=placed / MIB,
        inputs_mib=loaded.inputs_bytes / MIB,
        allocated_mib=(after.allocated_peak - loaded.start_bytes) / MIB,
        activations_mib=(after.allocated_peak - loaded.start_bytes - placed) / MIB,
        reserved_mib=reserved / MIB,
        reserved_before_mib=loaded.reserved_bytes / MIB,
        leaked_mib=loaded.start_bytes / MIB,
        context_mib=context,
        footprint_mib=None if context is None else context + reserved / MIB,
    )


def finite(out: Any) -> bool:
    """Whether the first tensor of an output is finite throughout and not constant.

    Looks at no more than the first eighth of a million elements, so that looking does not raise the peak.
    """
    first = next(leaf for leaf in torch.utils._pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor))
    with torch.no_grad():
        values = first.detach().flatten()[:131072].float() if first.is_contiguous() else first.detach()[:1].float()
        return bool(torch.isfinite(values).all()) and bool(values.numel() == 1 or values.std() > 0)
