"""Time and energy of a forward pass: two clocks, and the card's energy counter."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dippm.measure.nvml import Gpu

WARM_UPS = 5
PASSES = 30
"""The paper's: the mean of 30 passes after 5 warm-ups."""
ENERGY_SECONDS = 1.0
"""NVML's counter moves in steps of up to 100 ms: half a second was 5-33 % apart, a second repeats."""
LONGEST_SECONDS = 1.6
"""A case of long passes takes fewer than 30 of them; how many is in the row."""
LEAST_ENERGY_SECONDS = 0.55
KERNEL_GAP_US = 1.0
SPIN_CYCLES_PER_MS = 1_980_000
"""At the SM clock of a Hopper card; the spin only has to outlast the host."""


@dataclass(frozen=True, slots=True)
class Times:
    """Labels of time and energy; ms and J for one pass."""

    latency_ms: float
    latency_median_ms: float
    latency_p90_ms: float
    latency_passes: int
    host_ms: float
    device_ms: float
    device_ms_method: str
    """`run_ahead`, or `kernel_sum` where the forward waits for the device or queues too many kernels."""
    energy_j: float | None
    """None where the loop was shorter than the counter's resolution allows."""
    energy_seconds: float
    energy_passes: int


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _pass_ms(forward: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    begun = time.perf_counter()
    forward()
    torch.cuda.synchronize()
    return (time.perf_counter() - begun) * 1e3


def host_milliseconds(forward: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time (ms) to enqueue one pass after a synchronise."""
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        out = forward()
        times.append((time.perf_counter() - begun) * 1e3)
        torch.cuda.synchronize()
        del out
    return statistics.median(times)


def run_ahead_milliseconds(forward: Callable[[], Any], host_ms: float, repeats: int = 3) -> float | None:
    """Median device time (ms) of a pass that was wholly enqueued before the device began it; None if that failed.

    A spinning kernel holds the stream meanwhile. The reading counts only if the start event is still unreached when
    the host is done.
    """
    times = []
    spin_ms = 1.3 * host_ms + 0.5
    for _ in range(repeats):
        begin, end = _event(), _event()
        torch.cuda.synchronize()
        torch.cuda._sleep(int(spin_ms * SPIN_CYCLES_PER_MS))  # type: ignore[no-untyped-call]
        begin.record()
        out = forward()
        end.record()
        ahead = not begin.query()
        torch.cuda.synchronize()
        del out
        if ahead:
            times.append(begin.elapsed_time(end))
        else:
            spin_ms *= 2
            if len(times) == 0 and spin_ms > 8 * host_ms + 8:
                return None
    return statistics.median(times) if times else None


def latency_and_energy(
    forward: Callable[[], Any], gpu: Gpu, seconds: float = ENERGY_SECONDS
) -> dict[str, float | int | None]:
    """Back-to-back passes for at least `seconds` and 30 passes (fewer where a pass is long): latency and energy.

    With `seconds` zero the loop ends with the passes and no energy is given.
    """
    estimate = min(_pass_ms(forward) for _ in range(2))
    for _ in range(WARM_UPS - 2 if estimate * WARM_UPS < LONGEST_SECONDS * 250 else 0):
        forward()
    torch.cuda.synchronize()
    longest = LONGEST_SECONDS if seconds else LONGEST_SECONDS / 2
    least = max(3, min(PASSES, int(longest * 1e3 / max(estimate, 1e-3))))
    events = [_event()]
    energy, begun, passes = gpu.energy_j(), time.perf_counter(), 0
    events[0].record()
    while passes < least or time.perf_counter() - begun < seconds:
        out = forward()
        passes += 1
        if passes <= PASSES:
            event = _event()
            event.record()
            events.append(event)
        if passes % 64 == 0:
            event.synchronize() if passes <= PASSES else torch.cuda.current_stream().synchronize()
        del out
    torch.cuda.synchronize()
    elapsed, joules = time.perf_counter() - begun, gpu.energy_j() - energy
    times = sorted(a.elapsed_time(b) for a, b in itertools.pairwise(events))
    return {
        "latency_ms": statistics.fmean(times),
        "latency_median_ms": statistics.median(times),
        "latency_p90_ms": times[min(len(times) - 1, int(0.9 * len(times)))],
        "latency_passes": len(times),
        "energy_j": joules / passes if seconds and elapsed >= LEAST_ENERGY_SECONDS else None,
        "energy_seconds": elapsed,
        "energy_passes": passes,
    }


def measure_times(
    forward: Callable[[], Any], gpu: Gpu, kernel_us: float, kernels: int, *, seconds: float = ENERGY_SECONDS
) -> Times:
    """All labels of time and energy of a pass whose kernels (sum in us, number) are already known."""
    loop = latency_and_energy(forward, gpu, seconds)
    short = (loop["latency_ms"] or 0.0) < 150
    host = host_milliseconds(forward, 5 if short else 3)
    ahead = run_ahead_milliseconds(forward, host, 3 if short else 2)
    method = "run_ahead" if ahead is not None else "kernel_sum"
    device = ahead if ahead is not None else (kernel_us + KERNEL_GAP_US * kernels) / 1e3
    return Times(host_ms=host, device_ms=device, device_ms_method=method, **loop)  # type: ignore[arg-type]
