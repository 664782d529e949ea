"""How a pod that is there stands: has it the slice that it should have, did it run out of GPU memory. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dippm_operator.sizing.container import gpu_requests, opted_out
from dippm_operator.sizing.patch import sizing_record

_OUT_OF_MEMORY = re.compile(
    r"CUDA out of memory|CUDA error: out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED"
    r"|NVML_SUCCESS == r INTERNAL ASSERT FAILED"  # PyTorch on a slice, where NVML may not answer
    r"|Free memory on device .* is less than desired GPU memory utilization"  # vLLM before it loads anything
    r"|bfc_arena.* Failed to allocate memory"  # ONNX Runtime
)


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """One end of a container for want of GPU memory. (The kernel's OOMKilled is about host memory, not this.)"""

    container: str
    finished_at: str
    line: str
    """The line of the container's last words that says so."""


@dataclass(frozen=True, slots=True)
class PodState:
    """A pod, as far as sizing is concerned."""

    name: str
    resource: str | None
    """The slice that we put on it; None where we put none."""
    ours_to_size: bool
    """It is running or to be run, did not opt out, and asks for no GPU of its own."""
    out_of_memory: OutOfMemory | None


def pod_state(pod: Mapping[str, Any]) -> PodState:
    """Read a v1 Pod."""
    metadata, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    resource = sizing_record(pod).get("resource")
    alive = not metadata.get("deletionTimestamp") and status.get("phase") not in ("Succeeded", "Failed")
    own_gpu = resource is None and any(gpu_requests(c) for c in spec.get("containers") or [])
    return PodState(
        name=metadata["name"],
        resource=resource if isinstance(resource, str) else None,
        ours_to_size=alive and not opted_out(pod) and not own_gpu,
        out_of_memory=max(_ends(status), key=lambda end: end.finished_at, default=None),
    )


def _ends(status: Mapping[str, Any]) -> Iterator[OutOfMemory]:
    for container in status.get("containerStatuses") or []:
        for state in ("state", "lastState"):
            ended = (container.get(state) or {}).get("terminated") or {}
            line = next((t for t in str(ended.get("message", "")).splitlines() if _OUT_OF_MEMORY.search(t)), None)
            if line is not None:
                yield OutOfMemory(str(container.get("name")), str(ended.get("finishedAt", "")), line.strip()[:300])
