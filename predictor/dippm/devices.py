"""What a device can do: bandwidth, peak rates, fixed costs; for a whole card and for a MIG slice of it.

Figures and their sources are in `catalogue/devices.yaml` and `catalogue/context.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from dippm import catalogue
from dippm.errors import UnknownDevice
from dippm.profiles import FULL_GPU, Device, Profile

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Interval:
    """A quantity known to lie between `low` and `high`, with the best single guess."""

    low: float
    estimate: float
    high: float


@dataclass(frozen=True, slots=True)
class Hardware:
    """One card or slice. Rates are vendor peaks (dense)."""

    product: str
    architecture: str
    """CUDA architecture, e.g. `sm_80`."""
    sms: int
    bandwidth: float
    """Bytes a second."""
    flops: Mapping[str, float]
    """FLOP a second by unit: `fp32` (outside the tensor cores), `tf32`, `half`."""
    tdp_w: float
    static_w: float
    kernel_floor_us: float
    launch_gap_us: float
    cublas_workspace_bytes: int
    context_mib: Interval
    share: float = 1.0
    """Part of the card's compute that this is: compute slices over 7."""


@cache
def hardware(product: str) -> Hardware:
    """The whole card `product` (a name of the catalogue, as `profiles.resolve_device` gives it).

    Raises UnknownDevice where there are no figures for it: its slices may be known by a cluster's labels alone.
    """
    products = catalogue.read("devices.yaml")
    if product not in products:
        raise UnknownDevice(f"no hardware figures for {product}: there are some for {', '.join(products)}")
    body = products[product]
    context = catalogue.read("context.yaml")[body["context"]]
    return Hardware(
        product=product,
        architecture=body["architecture"],
        sms=body["sms"],
        bandwidth=body["bandwidth_gb_s"] * 1e9,
        flops={unit: rate * 1e12 for unit, rate in body["tflops"].items()},
        tdp_w=body["tdp_w"],
        static_w=body["static_w"],
        kernel_floor_us=body["kernel_floor_us"],
        launch_gap_us=body["launch_gap_us"],
        cublas_workspace_bytes=round(body["cublas_workspace_mib"] * MIB),
        context_mib=Interval(context["low"], context["estimate"], context["high"]),
    )


def context_on(device: Device, profile: Profile) -> Interval:
    """Context of one process on a slice, MiB. It depends on the compute slices alone (whole card: no less)."""
    whole = hardware(device.product).context_mib
    if profile.name == FULL_GPU:
        return whole
    steps: Mapping[int, float] = catalogue.read("context.yaml")["less_on_slice"]
    compute = _sevenths(device, profile)
    less = steps[min(steps, key=lambda known: (abs(known - compute), -known))]
    return Interval(max(0.0, whole.low - less), whole.estimate - less, whole.high - less)


def slice_of(device: Device, profile: Profile) -> Hardware:
    """The slice as a device of its own: compute and bandwidth in proportion, launch costs unchanged."""
    whole = hardware(device.product)
    if profile.name == FULL_GPU:
        return whole
    most = max(p.compute for p in device.profiles)
    share = profile.compute / most
    return replace(
        whole,
        sms=max(1, round(whole.sms * share)),
        bandwidth=whole.bandwidth * profile.memory_eighths / max(p.memory_eighths for p in device.profiles),
        flops={unit: rate * share for unit, rate in whole.flops.items()},
        context_mib=context_on(device, profile),
        share=share,
    )


def _sevenths(device: Device, profile: Profile) -> float:
    """Compute slices counted as of a card that has seven (an A30 has four)."""
    return 7.0 * profile.compute / max(p.compute for p in device.profiles)
