"""What the driver says of the GPU: memory of a process, energy counter, names and versions (NVML)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from dippm.errors import UnknownDevice

MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU seen through NVML. `open_gpu` makes it; it must be made anew after a fork."""

    nvml: Any
    handle: Any

    def energy_j(self) -> float:
        """Energy since the driver was loaded, J (`nvmlDeviceGetTotalEnergyConsumption`)."""
        return float(self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)) / 1e3

    def process_mib(self, pid: int | None = None) -> float | None:
        """Memory that the driver books on a process, MiB; None where it does not say (foreign pid namespace)."""
        wanted = os.getpid() if pid is None else pid
        for process in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle):
            if process.pid == wanted and process.usedGpuMemory is not None:
                return float(process.usedGpuMemory) / MIB
        return None

    def used_mib(self) -> float:
        """Memory in use on the whole GPU, MiB."""
        return float(self.nvml.nvmlDeviceGetMemoryInfo(self.handle).used) / MIB

    def describe(self) -> dict[str, str]:
        """Name, UUID and driver version."""
        return {
            "gpu": str(self.nvml.nvmlDeviceGetName(self.handle)),
            "gpu_uuid": str(self.nvml.nvmlDeviceGetUUID(self.handle)),
            "driver": str(self.nvml.nvmlSystemGetDriverVersion()),
        }


def open_gpu() -> Gpu:
    """Opens NVML in this process, for the GPU that is CUDA's first. Raises pynvml.NVMLError where there is no driver,
    UnknownDevice where `CUDA_VISIBLE_DEVICES` names none that the driver has.

    NVML does not heed that variable, which names GPUs by number or by the beginning of a UUID (CUDA C++ Programming
    Guide, "CUDA Environment Variables"). Numbers are NVML's own where `CUDA_DEVICE_ORDER` is `PCI_BUS_ID` or all GPUs
    are alike.
    """
    import pynvml

    pynvml.nvmlInit()
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    if first.isdecimal() and int(first) < len(handles):
        return Gpu(pynvml, handles[int(first)])
    for handle in handles:
        if first.startswith("GPU-") and str(pynvml.nvmlDeviceGetUUID(handle)).startswith(first):
            return Gpu(pynvml, handle)
    raise UnknownDevice(
        f"CUDA_VISIBLE_DEVICES begins with {first}, which is none of this machine's {len(handles)} GPUs"
    )


def require_gpu() -> None:
    """Raises UnknownDevice where no NVIDIA GPU answers, or not the one asked for, before anything slow is loaded."""
    try:
        import pynvml
    except ModuleNotFoundError as error:
        raise UnknownDevice("dippm measure asks the driver through nvidia-ml-py: pip install 'dippm[train]'") from error
    try:
        open_gpu()
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise UnknownDevice(
            f"no NVIDIA GPU answers here ({error}): run dippm measure where nvidia-smi works"
        ) from error
