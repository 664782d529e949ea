"""Where a row was measured: GPU, driver, CUDA, framework versions, host processor, kernel."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from pathlib import Path

from dippm.measure.nvml import Gpu

HARNESS = 1
"""Version of the harness's definitions; rows of different versions are not mixed."""


def host_processor() -> str:
    """The processor's name as Linux gives it, or the machine type."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def provenance(gpu: Gpu) -> dict[str, str | int | float]:
    """One flat mapping, stored once a run and joined to each of its rows by `run`."""
    import torch

    return {
        **gpu.describe(),
        "run": f"{int(time.time())}-{gpu.describe()['gpu_uuid'][-6:]}",
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version() or ""),  # type: ignore[no-untyped-call]
        "torch": torch.__version__,
        "timm": _version("timm"),
        "transformers": _version("transformers"),
        "onnxruntime": _version("onnxruntime-gpu") or _version("onnxruntime"),
        "python": platform.python_version(),
        "host": host_processor(),
        "kernel": platform.release(),
        "harness": HARNESS,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
