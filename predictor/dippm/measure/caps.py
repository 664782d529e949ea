"""The smallest allocator cap under which a case still runs as if it were free: what a slice must really offer.

Every trial is a process of its own: after a failure cuDNN keeps the smaller plan that it fell back to, so a process
that failed once can no longer tell. The processes are forked from one that constructed the module and never touched
CUDA. Device time under the cap is not compared (trials run side by side); a plan can only change after an
out-of-memory inside cuDNN's path, which `num_ooms` counts.

With no retry allowed at all the answer is always the reserved peak: whatever the allocator gives back under a cap, it
counts as a retry (14 of 14 cases searched that way ended there). So what is searched is the cap under which a process
settles: loading and the first pass may make the allocator give cached blocks back, the later passes may not, and no
allocation may fail for good.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

import torch

from dippm.case import Mode
from dippm.measure import counters
from dippm.measure.counters import MIB
from dippm.measure.memory import gradient_mode, set_allocator, set_precision
from dippm.zoo.build import construct, example_inputs, fill, float_dtype, place
from dippm.zoo.case import ZooCase

RESOLUTION = 0.01
PASSES = 3


@dataclass(frozen=True, slots=True)
class Trial:
    """What one process under one cap said."""

    passed: bool
    allocated_mib: float
    reserved_mib: float


def _run(case: ZooCase, module: torch.nn.Module, cap_mib: float | None) -> Trial:
    set_allocator(case.allocator)
    set_precision(case.precision)
    device, dtype = torch.device("cuda", 0), float_dtype(case.precision)
    if cap_mib is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(cap_mib * MIB / total, 0)
    try:
        place(module, device, dtype)
        fill(module)
        inputs = example_inputs(case.network.inputs, case.batch, device, dtype)
        settled = 0
        for index in range(PASSES):
            with gradient_mode(case.mode):
                out = module(*inputs)
            del out
            if index == 0:
                settled = counters.read().retries
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        return Trial(False, 0.0, 0.0)
    except RuntimeError as error:
        if "memory" in str(error).lower() or "ALLOC_FAILED" in str(error) or "CUDNN" in str(error):
            return Trial(False, 0.0, 0.0)
        raise
    now = counters.read()
    return Trial(now.retries == settled and now.ooms == 0, now.allocated_peak / MIB, now.reserved_peak / MIB)


def trial(case: ZooCase, module: torch.nn.Module, cap_mib: float | None) -> Trial:
    """Runs one trial in a forked process. Raises RuntimeError if that process died for another reason than memory."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            result = _run(case, module, cap_mib)
            os.write(write, struct.pack("?dd", result.passed, result.allocated_mib, result.reserved_mib))
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    try:
        answer = os.read(read, struct.calcsize("?dd"))
    finally:
        os.close(read)
        os.waitpid(child, 0)
    if len(answer) != struct.calcsize("?dd"):
        raise RuntimeError(f"the trial process of {case.id} under {cap_mib} MiB died")
    return Trial(*struct.unpack("?dd", answer))


def smallest_cap(case: ZooCase) -> dict[str, float | int]:
    """Bisects between the allocated peak (sure to be needed) and the reserved one (sure to suffice), to 1 %."""
    if case.mode is Mode.AUTOGRAD:
        raise ValueError(f"{case.id}: the smallest cap is searched for forward passes without gradients only")
    module = construct(case.network)
    module.requires_grad_(False)
    free = trial(case, module, None)
    if not free.passed:
        raise torch.OutOfMemoryError(f"{case.id} does not fit in the whole GPU")
    low, high, trials = free.allocated_mib * 0.995, free.reserved_mib, 1
    while high - low > RESOLUTION * high:
        middle = (low + high) / 2
        outcome = trial(case, module, middle)
        trials += 1
        if outcome.passed:
            high = min(middle, max(outcome.reserved_mib, low))
        else:
            low = middle
    return {
        "min_cap_steady_mib": high, "cap_failed_mib": low, "cap_trials": trials,
        "cap_allocated_mib": free.allocated_mib, "cap_reserved_mib": free.reserved_mib,
    }  # fmt: skip
