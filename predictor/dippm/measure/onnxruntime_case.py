"""Labels of one case as ONNX Runtime runs it: memory and latency of a free session, then the smallest limit survived.

| label | definition |
|---|---|
| `context_mib` | NVML memory of the process with a CUDA context and nothing else |
| `process_mib` | NVML memory of the process after three passes: one session, inputs on the device |
| `memory_mib` | `process_mib` less `context_mib` |
| `weights_mib` | NVML memory of the process once the session is made, less `context_mib` |
| `min_cap_mib` | smallest `gpu_mem_limit` under which passes succeed (to 2 %), weights included |
| `latency_ms` | of timed cases: mean of 30 passes after 5 warm-ups, alone on the GPU, each waited for |
| `first_ms` | the first pass |
| `more` | beside these: |
| `arena_mib` | what ONNX Runtime's arena took from the device by its own log, weights included |
| `tight_arena_mib` | the same after one pass where the arena grows by no more than it is asked for |
| `inputs_mib` | inputs, which lie outside of the arena |
| `beside_arena_mib` | `process_mib` less arena and inputs: CUDA context, kernels, cuDNN's and cuBLAS's own |
| `capped_process_mib` | NVML memory of the process under `min_cap_mib`: what a slice must really offer |
| `regions` | (phase, request, size) of each extension of the arena |

The limit is searched with one session after the other in the process that ran free (a session's arena begins and ends
with it, and the limit is the arena's), and what was found is tried again in a fresh process, whose memory is
`capped_process_mib`.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dippm.measure.gpu_lock import GpuLock
from dippm.measure.onnxruntime_export import OnnxFile, export
from dippm.measure.onnxruntime_options import OrtOptions
from dippm.measure.onnxruntime_session import LIMIT_RESOLUTION, MIB, Request, trial
from dippm.zoo.build import example_inputs, float_dtype
from dippm.zoo.case import ZooCase

LEAST = 0.9
"""Share of the file that is weights at the least: no limit under it can do."""
FRESH_TRIALS = 3
LABELS = (
    "context_mib", "process_mib", "memory_mib", "weights_mib", "min_cap_mib", "cap_failed_mib", "cap_trials",
    "latency_ms", "latency_median_ms", "latency_p90_ms", "latency_passes", "first_ms",
)  # fmt: skip
"""What has a column of its own in the data set; all else goes into `more`."""
CUDA = "CUDAExecutionProvider"


def measure(case: ZooCase, lock: GpuLock | None, *, provider: str = CUDA) -> dict[str, Any]:
    """The case's labels: of a timed case its times, of another the smallest limit too.

    Whoever takes times has the GPU alone, whoever searches a limit keeps it for a minute: a stage does the one or the
    other. Raises torch.OutOfMemoryError where the case does not fit the GPU, RuntimeError where it fails.
    """
    options, caps = OrtOptions.of(case.options), not case.timed
    with tempfile.TemporaryDirectory() as folder:
        file = export(case, Path(folder))
        arrays = example_inputs(case.network.inputs, case.batch, torch.device("cpu"), float_dtype(case.precision))
        request = Request(
            file.path, options, {n: a.numpy() for n, a in zip(file.inputs, arrays, strict=True)}, lock=lock,
            timed=case.timed, complete=True, search=caps, least_mib=LEAST * file.file_mib, provider=provider,
        )  # fmt: skip
        free = trial(request)
        if free["status"] == "oom":
            raise torch.OutOfMemoryError(f"{case.id} does not fit in the whole GPU: {free['reason']}")
        if free["status"] != "ok":
            raise RuntimeError(free["reason"])
        if not (free["finite"] and free["alive"]):
            raise RuntimeError("NotFinite: the outputs are not finite, or all the same")
        found = confirmed(request, free) if caps else {}
        return _row(replace(options, batch_axis=file.batch_axis), file, provider, {**free, **found})


def _row(options: OrtOptions, file: OnnxFile, provider: str, labels: dict[str, Any]) -> dict[str, Any]:
    more = {name: value for name, value in labels.items() if name not in (*LABELS, "status", "reason")}
    return {
        "provider": provider, **options.described(), "exporter": f"torch.onnx {file.exporter}", "opset": file.opset,
        "nodes": file.nodes, "file_mib": round(file.file_mib, 3), **{name: labels.get(name) for name in LABELS},
        "more": {**more, "fell_back": file.fell_back, "export_seconds": round(file.seconds, 2)},
    }  # fmt: skip


def confirmed(request: Request, free: dict[str, Any]) -> dict[str, Any]:
    """The limit that the search ended with, tried in a fresh process: its driver's reading is what a slice must offer.

    Should it fail there, the search's largest failure is raised by its resolution until a fresh process passes.
    """
    limit, trials = free["min_cap_mib"], free["cap_trials"]
    for _ in range(FRESH_TRIALS):
        row = trial(replace(request, timed=False, complete=False, limit_bytes=int(limit * MIB) + 1))
        trials += 1
        if row["status"] == "ok":
            return {"min_cap_mib": limit, "cap_trials": trials, "capped_process_mib": row["process_mib"]}
        limit *= 1 + LIMIT_RESOLUTION
    return {"min_cap_mib": None, "cap_trials": trials, "cap_unclear": f"no fresh process passed: {row['reason']}"}
