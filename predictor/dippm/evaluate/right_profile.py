"""How often a prediction leads to the profile that the measurement would have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dippm.profiles import NEAR, Profile, resolve_device, size_order


def smallest(profiles: Sequence[Profile], need_mib: float) -> str | None:
    """Name of the first profile, smallest first, whose usable memory holds the need; None if none does."""
    ordered = sorted(profiles, key=lambda p: size_order(p.usable_mib, p.name))
    return next((p.name for p in ordered if need_mib <= p.usable_mib), None)


def near_boundary(footprints: Sequence[tuple[float, float]], device: str) -> list[tuple[float, float]]:
    """The (measured, predicted) footprints in MiB whose measured one is within 20 % of some profile's limit."""
    limits = [profile.usable_mib for profile in resolve_device(device).with_full_gpu()]
    return [(m, p) for m, p in footprints if any(abs(m / limit - 1) <= NEAR for limit in limits)]


def profile_share(footprints: Sequence[tuple[float, float]], device: str) -> float:
    """Percent of (measured, predicted) footprints in MiB that lead to the same profile; NaN without any."""
    profiles = resolve_device(device).with_full_gpu()
    same = [smallest(profiles, m) == smallest(profiles, p) for m, p in footprints]
    return 100 * sum(same) / len(same) if same else math.nan
