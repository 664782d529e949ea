"""PyTorch's caching allocator as numbers: a reading is one call, so that it may be taken around every operator."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class Reading:
    """The allocator's counters at one moment; bytes are after its rounding to 512."""

    allocated: int
    allocated_peak: int
    reserved: int
    reserved_peak: int
    allocations: int
    """Allocations made since the process began."""
    frees: int
    retries: int
    ooms: int


def read(device: int = 0) -> Reading:
    """The counters now (`torch.cuda.memory_stats`)."""
    stats = torch.cuda.memory_stats_as_nested_dict(device)
    if not stats:
        return Reading(0, 0, 0, 0, 0, 0, 0, 0)
    allocated, reserved = stats["allocated_bytes"]["all"], stats["reserved_bytes"]["all"]
    calls = stats["allocation"]["all"]
    return Reading(
        allocated["current"], allocated["peak"], reserved["current"], reserved["peak"],
        calls["allocated"], calls["freed"], stats["num_alloc_retries"], stats["num_ooms"],
    )  # fmt: skip


def reset_peak(device: int = 0) -> None:
    """Peaks start again from what is allocated and reserved now."""
    torch.cuda.reset_peak_memory_stats(device)


def empty() -> None:
    """Gives all that is not in use back to the driver, cuBLAS's workspaces included, and resets the peaks."""
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    reset_peak()
