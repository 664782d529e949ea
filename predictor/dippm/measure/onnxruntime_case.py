"""Labels of one case as ONNX Runtime runs it: memory and latency of a free session, then the smallest limit survived.

| label | definition |
|---|---|
| `context_mib` | NVML memory of the process with a CUDA context and nothing else |
| `process_mib` | NVML memory of the process after three passes: one session, inputs on the device |
| `memory_mib` | `process_mib` less `context_mib` |
| `weights_mib` | NVML memory of the process once the session is made, less `context_mib` |
| `min_cap_mib` | smallest `gpu_mem_limit`, each tried in a fresh process, under which three passes succeed (to 2 %) |
| `latency_ms` | mean of 30 passes after 5 warm-ups, alone on the GPU, all on the device, each pass waited for |
| `first_ms` | the first pass |
| `more` | beside these: |
| `arena_mib` | what ONNX Runtime's arena took from the device by its own log; `reserved_mib` of it for weights |
| `tight_arena_mib` | the same after one pass where the arena grows by no more than it is asked for |
| `inputs_mib` | inputs, which lie outside of the arena |
| `beside_arena_mib` | `process_mib` less arena and inputs: CUDA context, kernels, cuDNN's and cuBLAS's own |
| `capped_process_mib` | NVML memory of the process under `min_cap_mib`: what a slice must really offer |
| `regions` | (phase, request, size) of each extension of the arena |

The provider's limit does not hold for weights (they are reserved outside of the arena's regions, and a limit under them
is no limit at all), so nothing below them is tried.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dippm.measure.gpu_lock import GpuLock
from dippm.measure.onnxruntime_export import OnnxFile, export
from dippm.measure.onnxruntime_options import OrtOptions
from dippm.measure.onnxruntime_session import MIB, Request, trial
from dippm.zoo.build import example_inputs, float_dtype
from dippm.zoo.case import ZooCase

RESOLUTION = 0.02
FIRST_STEP = 0.04
LABELS = (
    "context_mib", "process_mib", "memory_mib", "weights_mib", "min_cap_mib", "cap_failed_mib", "cap_trials",
    "latency_ms", "latency_median_ms", "latency_p90_ms", "latency_passes", "first_ms",
)  # fmt: skip
"""What has a column of its own in the data set; all else goes into `more`."""
CUDA = "CUDAExecutionProvider"


def measure(case: ZooCase, lock: GpuLock | None, *, caps: bool = True, provider: str = CUDA) -> dict[str, Any]:
    """The case's labels. Raises torch.OutOfMemoryError where it does not fit the GPU, RuntimeError where it fails."""
    options = OrtOptions.of(case.options)
    with tempfile.TemporaryDirectory() as folder:
        file = export(case, Path(folder))
        arrays = example_inputs(case.network.inputs, case.batch, torch.device("cpu"), float_dtype(case.precision))
        request = Request(
            file.path, options, {n: a.numpy() for n, a in zip(file.inputs, arrays, strict=True)}, lock=lock,
            timed=case.timed, complete=True, provider=provider,
        )  # fmt: skip
        free = trial(request)
        if free["status"] == "oom":
            raise torch.OutOfMemoryError(f"{case.id} does not fit in the whole GPU: {free['reason']}")
        if free["status"] != "ok":
            raise RuntimeError(free["reason"])
        if not (free["finite"] and free["alive"]):
            raise RuntimeError("NotFinite: the outputs are not finite, or all the same")
        found = smallest_limit(request, free) if caps else {}
        return _row(replace(options, batch_axis=file.batch_axis), file, provider, {**free, **found})


def _row(options: OrtOptions, file: OnnxFile, provider: str, labels: dict[str, Any]) -> dict[str, Any]:
    more = {name: value for name, value in labels.items() if name not in (*LABELS, "status", "reason")}
    return {
        "provider": provider, **options.described(), "exporter": f"torch.onnx {file.exporter}", "opset": file.opset,
        "nodes": file.nodes, "file_mib": round(file.file_mib, 3), **{name: labels.get(name) for name in LABELS},
        "more": {**more, "fell_back": file.fell_back, "export_seconds": round(file.seconds, 2)},
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a search: the smallest value that passed, the largest that failed, and how often it was tried."""

    passed: float
    failed: float
    trials: int


def search(passes: Callable[[float], float | None], *, guess: float, low: float, high: float) -> Found:
    """Between `low` (sure to fail) and `high` (sure to pass), to `RESOLUTION`: from the guess in growing steps until
    one trial passed and one failed, then by halves.

    `passes` gives None where it failed, else what was used: no more than that is needed.
    """
    trials, step = 0, FIRST_STEP
    tried_low = tried_high = False
    value = guess if low < guess < high else (low + high) / 2
    while high - low > RESOLUTION * high:
        used = passes(value)
        trials += 1
        if used is None:
            low, tried_low = value, True
        else:
            high, tried_high = min(value, max(used, low)), True
        value = high * (1 - step) if tried_high else low * (1 + step)
        if (tried_low and tried_high) or not low < value < high:
            value = (low + high) / 2
        step *= 3
    return Found(high, low, trials)


def smallest_limit(request: Request, free: dict[str, Any]) -> dict[str, Any]:
    """Searches the smallest `gpu_mem_limit` under which three passes succeed, each trial in a fresh process."""
    plain = replace(request, timed=False, complete=False)
    process_mib, unclear = free["process_mib"], ""

    def passes(limit_mib: float) -> float | None:
        nonlocal process_mib, unclear
        row = trial(replace(plain, limit_bytes=int(limit_mib * MIB)))
        if row["status"] != "ok":
            unclear = row["reason"] if row["status"] == "failed" else unclear
            return None
        process_mib = row["process_mib"]
        return float(row["arena_mib"])

    low, high = free["reserved_mib"], free["arena_mib"]
    tight = free["tight_arena_mib"]
    found = search(passes, guess=(low + high) / 2 if tight is None else tight * 1.005, low=low, high=high)
    return {
        "min_cap_mib": found.passed, "cap_failed_mib": found.failed, "cap_trials": found.trials,
        "cap_unclear": unclear, "capped_process_mib": process_mib,
    }  # fmt: skip
