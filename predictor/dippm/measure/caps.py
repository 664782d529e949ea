"""The smallest allocator cap under which a case still runs as if it were free: what a slice must really offer.

Trials run in a process that constructed no CUDA state but by trials that told the truth. After an out-of-memory that
cuDNN's caller swallowed, the process keeps the smaller plan that it fell back to, and can no longer tell: it is given
up, and the search goes on in a fresh one. An out-of-memory that ended the trial, or none at all, leaves nothing behind
once the cache is emptied. Device time under the cap is not compared (trials run side by side).

With no retry allowed at all the answer is always the reserved peak: whatever the allocator gives back under a cap, it
counts as a retry (14 of 14 cases searched that way ended there). So what is searched is the cap under which a process
settles: loading and the first pass may make the allocator give cached blocks back, the later passes may not, and no
allocation may fail for good.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from dippm.case import Allocator, Mode
from dippm.measure import counters
from dippm.measure.counters import MIB
from dippm.measure.memory import gradient_mode, release, set_allocator, set_precision
from dippm.processes import die_with_parent
from dippm.replay.search import search
from dippm.zoo.build import construct, duplicate, example_inputs, fill, float_dtype, place
from dippm.zoo.case import ZooCase

PASSES = 3
FIRST_TRIED = 0.991
"""Share of the reserved peak that is tried first: most cases need all of it, and one failure there is the answer."""
TRIAL_SECONDS = 90.0
"""Of one trial, construction and the start of CUDA included. One that hangs costs its row and its process."""
_LAST_SECONDS = 5.0
"""What a process has to be gone once it is killed; one that waits in the driver is left to the system."""
FAILED_FOR_MEMORY = ("memory", "alloc_failed", "cudnn", "cublas")
"""In the words of errors that are not `torch.OutOfMemoryError` and yet come of a cap."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What one run under one cap said."""

    passed: bool
    allocated_mib: float
    reserved_mib: float
    spoiled: bool
    """Whether the process may run otherwise from now on."""


def _run(case: ZooCase, module: torch.nn.Module, cap_mib: float | None) -> Trial:
    set_precision(case.precision)
    device, dtype = torch.device("cuda", 0), float_dtype(case.precision)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0 if cap_mib is None else cap_mib * MIB / total, 0)
    begun, passed, raised = counters.read(), False, 0
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
        passed = counters.read().retries == settled
    except torch.OutOfMemoryError:
        raised = 1
    except RuntimeError as error:
        if not any(word in str(error).lower() for word in FAILED_FOR_MEMORY):
            raise
        raised = -1
    now = counters.read()
    swallowed = now.ooms - begun.ooms != raised
    return Trial(
        passed and not swallowed, (now.allocated_peak - begun.allocated) / MIB, now.reserved_peak / MIB, swallowed
    )


def _serve(pipe: Connection, parents: Connection, allocator: Allocator) -> None:
    die_with_parent()  # a worker that is killed must not leave a model on the GPU
    parents.close()
    set_allocator(allocator)
    constructed: tuple[str, torch.nn.Module] | None = None
    while True:
        try:
            line, cap_mib = pipe.recv()
        except EOFError:
            return
        case = ZooCase.from_json(line)
        if constructed is None or constructed[0] != case.network.key:
            constructed = (case.network.key, construct(case.network).requires_grad_(False))
        try:
            release()
            trial = _run(case, duplicate(constructed[1]), cap_mib)
            release()
            left = counters.read().reserved > 0
            pipe.send((trial.passed, trial.allocated_mib, trial.reserved_mib, trial.spoiled or left))
        except Exception as error:  # a model that breaks says why in its row
            pipe.send(f"{type(error).__name__}: {error}"[:300])
            return


class Prober:
    """Serves trials from a process forked of this one, which must never have touched CUDA; another after a spoiled
    one."""

    def __init__(self) -> None:
        self._process: Any = None
        self._pipe: Connection | None = None
        self._allocator: Allocator | None = None

    def trial(self, case: ZooCase, cap_mib: float | None) -> Trial:
        """One run of the case under a cap (MiB; None: the whole GPU). Raises RuntimeError if it broke for another
        reason than memory, or took longer than TRIAL_SECONDS."""
        if self._pipe is None or self._allocator is not case.allocator:
            self._start(case.allocator)
        assert self._pipe is not None
        try:
            self._pipe.send((case.to_json(), cap_mib))
            if not self._pipe.poll(TRIAL_SECONDS):
                self.close()
                raise RuntimeError(
                    f"the trial of {case.id} under {cap_mib} MiB took longer than {TRIAL_SECONDS:g} s and was stopped"
                )
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self.close()
            raise RuntimeError(f"the trial process of {case.id} under {cap_mib} MiB died") from None
        if isinstance(answer, str):
            self.close()
            raise RuntimeError(answer)
        trial = Trial(*answer)
        if trial.spoiled:
            self.close()
        return trial

    def _start(self, allocator: Allocator) -> None:
        self.close()
        self._pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_serve, args=(theirs, self._pipe, allocator), daemon=True)
        self._process.start()
        self._allocator = allocator
        theirs.close()

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join(_LAST_SECONDS)
            self._pipe = self._process = None


def smallest_cap(case: ZooCase, prober: Prober) -> dict[str, float | int]:
    """Searches between the allocated peak (sure to be needed) and the reserved one (sure to suffice), to 1 %."""
    if case.mode is Mode.AUTOGRAD:
        raise ValueError(f"{case.id}: the smallest cap is searched for forward passes without gradients only")
    free = prober.trial(case, None)
    if not free.passed:
        raise torch.OutOfMemoryError(f"{case.id} does not fit in the whole GPU")

    def passes(cap_mib: float) -> float | None:
        trial = prober.trial(case, cap_mib)
        return trial.reserved_mib if trial.passed else None

    low, high = free.allocated_mib * 0.995, free.reserved_mib
    found = search(passes, guess=high * FIRST_TRIED, low=low, high=high)
    return {
        "min_cap_steady_mib": found.passed, "cap_failed_mib": found.failed, "cap_trials": found.trials + 1,
        "cap_allocated_mib": free.allocated_mib, "cap_reserved_mib": free.reserved_mib,
    }  # fmt: skip
