"""One ONNX Runtime session in a process of its own: what it takes of the GPU, and how long a pass lasts.

`trial` forks; the parent must never have touched CUDA or loaded ONNX Runtime's CUDA library. The child makes a bare
CUDA context, reads its memory, then creates the session, binds inputs that lie on the device and outputs that ONNX
Runtime allocates there, and runs. The driver's reading of the process (NVML) is taken between the phases; the arena's
own log says how it grew.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dippm.measure import onnxruntime_arena as arena
from dippm.measure.cudart import open_cudart
from dippm.measure.gpu_lock import GpuLock
from dippm.measure.nvml import open_gpu
from dippm.measure.onnxruntime_options import OrtOptions
from dippm.processes import die_with_parent
from dippm.replay.search import search

MIB = 2.0**20
PASSES = 3
"""The second pass lays the activations out in one block, so the third is the first that is like all later ones."""
PASSES_UNDER_LIMIT = 2
"""The third takes nothing that the second did not."""
LIMIT_RESOLUTION = 0.02
WARM_UPS = 5
TIMED_PASSES = 30
LONGEST_SECONDS = 0.8
"""A case of long passes takes fewer than 30 of them; how many is in the row."""
OUT_OF_MEMORY = (
    "available memory of", "failed to allocate memory", "bfc_arena", "bfcarena", "out of memory", "alloc_failed",
    "cuda failure 2",
)  # fmt: skip
"""What ONNX Runtime's sentences say when memory was short."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a trial is to do."""

    path: Path
    options: OrtOptions
    inputs: dict[str, Any]
    """NumPy arrays by the names of the model's inputs."""
    limit_bytes: int | None = None
    lock: GpuLock | None = None
    timed: bool = False
    complete: bool = False
    """Also look at the outputs."""
    search: bool = False
    """Then also see what the arena takes when it grows by no more than it is asked for, and search the smallest limit,
    above `least_mib`."""
    least_mib: float = 0.0
    provider: str = "CUDAExecutionProvider"


def trial(request: Request) -> dict[str, Any]:
    """The trial's row; `status` is `ok`, `oom` or `failed` with a `reason`. Raises RuntimeError if its process died."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            die_with_parent()
            os.close(read)
            _write(write, json.dumps(_guarded(request)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        raise RuntimeError(f"the process of the session died (exit code {os.waitstatus_to_exitcode(status)})")
    return dict(json.loads(answer))


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def is_out_of_memory(reason: str) -> bool:
    """Whether a failure of ONNX Runtime or CUDA was for want of memory."""
    return any(words in reason.lower() for words in OUT_OF_MEMORY)


def _guarded(request: Request) -> dict[str, Any]:
    try:
        return {"status": "ok", "reason": "", **_run(request)}
    except Exception as error:  # whatever a model does to a session costs its row alone
        reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:500]
        return {"status": "oom" if is_out_of_memory(reason) else "failed", "reason": reason}


def _run(request: Request) -> dict[str, Any]:
    lock = request.lock
    device = _Device.of(request.provider)
    with tempfile.TemporaryFile() as log, _standard_error_in(log.fileno()):
        with lock.shared() if lock else contextlib.nullcontext():
            bare = device.process_mib()
            import onnxruntime

            onnxruntime.set_default_logger_severity(1)
            begun = time.perf_counter()
            session = _session(onnxruntime, request, request.options)
            created, after_session = time.perf_counter() - begun, device.process_mib()
            addresses = {name: device.upload(array) for name, array in request.inputs.items()}
            forward, binding = _bound(session, request.inputs, addresses, device)
            first_ms, after_first = 0.0, None
            for index in range(PASSES):
                os.write(2, f"{arena.MARK}pass {index + 1}\n".encode())
                begun = time.perf_counter()
                forward()
                device.synchronize()
                if index == 0:
                    first_ms, after_first = (time.perf_counter() - begun) * 1e3, device.process_mib()
            process = device.process_mib()
        times = {}
        if request.timed:
            with lock.alone() if lock else contextlib.nullcontext():
                times = latency(forward, device.synchronize)
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
        grown = arena.regions(lines, device.arena)
        row = {
            "onnxruntime": onnxruntime.__version__, "providers": session.get_providers(), "context_mib": bare,
            "process_mib": process, "memory_mib": _less(process, bare), "weights_mib": _less(after_session, bare),
            "session_mib": after_session, "first_pass_mib": after_first,
            "arena_mib": arena.total(grown) / MIB, "reserved_mib": arena.reserved(grown) / MIB,
            "inputs_mib": sum(x.nbytes for x in request.inputs.values()) / MIB,
            "beside_arena_mib": _less(process, arena.total(grown) / MIB, device.held_mib(request.inputs)),
            "first_ms": first_ms, "copies": arena.copies(lines),
            "regions": [(r.phase, r.requested_bytes, r.bytes) for r in grown if not r.reserved],
            "session_seconds": round(created, 3), **times,
        }  # fmt: skip
        if request.complete:
            row |= _looked_at(binding)
            del session, binding, forward
            again = _Again(onnxruntime, request, addresses, device, log)
            if request.search:
                row["tight_arena_mib"] = again.tight_mib()
                row |= again.smallest_limit(row)
        return row


def _session(onnxruntime: Any, request: Request, options: OrtOptions) -> Any:
    """A session on the asked provider. Raises RuntimeError where ONNX Runtime went on without it."""
    settings = options.provider(request.limit_bytes) if request.provider.startswith("CUDA") else {}
    session = onnxruntime.InferenceSession(
        str(request.path), options.session(onnxruntime), providers=[(request.provider, settings)]
    )
    if request.provider not in session.get_providers():
        raise RuntimeError(f"{request.provider} did not load: {session.get_providers()} instead")
    return session


def _bound(
    session: Any, inputs: dict[str, Any], addresses: dict[str, int], device: _Device
) -> tuple[Callable[[], None], Any]:
    """One pass as a call, and the binding: inputs on the device, outputs allocated there by ONNX Runtime."""
    binding = session.io_binding()
    present = {value.name for value in session.get_inputs()}
    for name, array in inputs.items():
        if name in present:
            binding.bind_input(name, device.kind, 0, array.dtype.type, array.shape, addresses[name])
    for value in session.get_outputs():
        binding.bind_output(value.name, device.kind)
    return (lambda: session.run_with_iobinding(binding)), binding


def latency(forward: Callable[[], None], synchronize: Callable[[], None]) -> dict[str, float | int]:
    """Wall time of passes, each waited for, ms: mean, median and 90th percentile of 30 after 5 warm-ups."""

    def once() -> float:
        begun = time.perf_counter()
        forward()
        synchronize()
        return (time.perf_counter() - begun) * 1e3

    first = once()
    for _ in range(WARM_UPS - 1 if first < LONGEST_SECONDS * 1e3 / 8 else 1):
        once()
    count = max(3, min(TIMED_PASSES, int(LONGEST_SECONDS * 1e3 / max(once(), 1e-3))))
    times = sorted(once() for _ in range(count))
    return {
        "latency_ms": statistics.fmean(times), "latency_median_ms": statistics.median(times),
        "latency_p90_ms": times[min(count - 1, int(0.9 * count))], "latency_passes": count,
    }  # fmt: skip


def _looked_at(binding: Any) -> dict[str, Any]:
    import numpy

    first = binding.copy_outputs_to_cpu()[0].reshape(-1)[:131072].astype("float32")
    return {"finite": bool(numpy.isfinite(first).all()), "alive": bool(first.size == 1 or first.std() > 0)}


@dataclass(slots=True)
class _Again:
    """Further sessions in the process that ran free, one after the other."""

    onnxruntime: Any
    request: Request
    addresses: dict[str, int]
    device: _Device
    log: Any
    unclear: str = ""
    """What a limited session failed with, where that was not want of memory."""

    def arena_mib(self, request: Request, passes: int) -> float | None:
        """MiB of the arena after so many passes of a new session; None if it failed."""
        gc.collect()
        begin = self.log.seek(0, os.SEEK_END)
        try:
            with request.lock.shared() if request.lock else contextlib.nullcontext():
                session = _session(self.onnxruntime, request, request.options)
                forward, _ = _bound(session, request.inputs, self.addresses, self.device)
                for _ in range(passes):
                    forward()
                self.device.synchronize()
        except Exception as error:  # a limit that is too small ends in whatever the node at hand makes of it
            reason = f"{type(error).__name__}: {error}".replace("\n", " ")[:300]
            self.unclear = self.unclear if is_out_of_memory(reason) else reason
            return None
        self.log.seek(begin)
        lines = self.log.read().decode(errors="replace").splitlines()
        return arena.total(arena.regions(lines, self.device.arena)) / MIB

    def tight_mib(self) -> float | None:
        """The arena after one pass when it grows by just what is asked for, without the block laid out in advance."""
        tight = replace(self.request.options, arena_extend_strategy="kSameAsRequested", enable_mem_pattern="0")
        return self.arena_mib(replace(self.request, options=tight), 1)

    def smallest_limit(self, free: dict[str, Any]) -> dict[str, Any]:
        """Searches the smallest limit under which passes succeed."""

        def passes(limit_mib: float) -> float | None:
            return self.arena_mib(replace(self.request, limit_bytes=int(limit_mib * MIB)), PASSES_UNDER_LIMIT)

        low, high, tight = max(free["reserved_mib"], self.request.least_mib), free["arena_mib"], free["tight_arena_mib"]
        guess = (low + high) / 2 if tight is None else tight * 1.005
        found = search(passes, guess=guess, low=low, high=high, resolution=LIMIT_RESOLUTION)
        return {
            "min_cap_mib": found.passed, "cap_failed_mib": found.failed, "cap_trials": found.trials,
            "cap_unclear": self.unclear,
        }  # fmt: skip


def _less(whole: float | None, *parts: float | None) -> float | None:
    return None if whole is None or any(part is None for part in parts) else whole - sum(p for p in parts if p)


@contextlib.contextmanager
def _standard_error_in(descriptor: int) -> Iterator[None]:
    """What the process writes to standard error, native code included, goes into a file meanwhile."""
    kept = os.dup(2)
    os.dup2(descriptor, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@dataclass(frozen=True, slots=True)
class _Device:
    """Where a session runs: a GPU, or the host's processor (which has no memory of its own to read)."""

    kind: str
    arena: str
    cudart: Any = None
    gpu: Any = None

    @classmethod
    def of(cls, provider: str) -> _Device:
        if not provider.startswith("CUDA"):
            return cls("cpu", "Cpu")
        cudart = open_cudart()
        cudart.make_context()
        return cls("cuda", "Cuda", cudart, open_gpu())

    def process_mib(self) -> float | None:
        return None if self.gpu is None else self.gpu.process_mib()

    def synchronize(self) -> None:
        if self.cudart is not None:
            self.cudart.synchronize()

    def upload(self, array: Any) -> int:
        address = int(array.ctypes.data)
        return address if self.cudart is None else int(self.cudart.upload(address, array.nbytes))

    def held_mib(self, inputs: dict[str, Any]) -> float:
        """What the driver books for the inputs: whole pages of 2 MiB each."""
        return float(sum(-(-array.nbytes // (2 << 20)) * 2 for array in inputs.values()))
