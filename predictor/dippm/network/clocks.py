"""Time of a pass by two clocks: the host enqueues operators, the device runs their kernels."""

from __future__ import annotations

from collections.abc import Sequence


def device_ms(kernel_us: Sequence[float], kernels: Sequence[int], gap_us: float) -> float:
    """Device time of one forward with the host out of the way: kernels and the gaps between them, ms."""
    return (sum(kernel_us) + gap_us * sum(kernels)) / 1e3


def host_ms(host_us: Sequence[float], host_pass_us: float) -> float:
    """Time to enqueue one forward, ms."""
    return (sum(host_us) + host_pass_us) / 1e3


def latency_ms(
    host_us: Sequence[float], kernel_us: Sequence[float], kernels: Sequence[int], *, host_pass_us: float, gap_us: float
) -> float:
    """Time until the last kernel is done, ms.

    Each operator's kernels start when the host has enqueued it and the device is free. The host may run ahead of the
    device without limit, as it does on a stream.
    """
    host, device = host_pass_us, 0.0
    for dispatch, busy, count in zip(host_us, kernel_us, kernels, strict=True):
        host += dispatch
        if count:
            device = max(device, host) + busy + gap_us * count
    return max(host, device) / 1e3
