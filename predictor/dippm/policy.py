"""The choice of a profile: total (every need gets an answer or None) and monotone (needing more never chooses less).

Both hold because the profiles stand in one fixed order, smallest first, and the first acceptable one is taken: a larger
requirement only removes profiles from the front of what is acceptable.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Protocol, TypeVar

from dippm.errors import UnknownDevice
from dippm.prediction import Candidate
from dippm.profiles import FULL_GPU, Profile, size_order


class Rule(StrEnum):
    """How the profile follows from the prediction."""

    FIT = "fit"
    """The smallest profile whose usable memory holds the calibrated upper bound of the requirement."""
    PAPER = "paper"
    """The paper's equation 2: nominal sizes against the footprint, for an A100-40GB."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the owner of the model asks of the choice."""

    rule: Rule = Rule.FIT
    processes: int = 1
    """Worker processes in the container that each load the model."""
    headroom_mib: float = 0.0
    """MiB kept free on top of what is required."""
    oom_risk_percent: float = 1.0
    """The risk of running out of memory that the upper bound is calibrated for, percent."""
    max_latency_ms: float | None = None
    """Profiles slower than this are passed over."""
    allowed_profiles: tuple[str, ...] | None = None
    """Only these (None: all of the device)."""
    allow_full_gpu: bool = False
    """A whole card with MIG off may be chosen when no slice will do."""


DEFAULT_POLICY = Policy()


class Reason(StrEnum):
    """Why this profile, or why none; used as the reason of a Kubernetes condition."""

    FITS = "FitsWithHeadroom"
    PAPER_RULE = "PaperRule"
    TOO_LARGE = "TooLargeForEveryProfile"
    """No profile of the device holds the requirement, allowed or not."""
    NOT_ALLOWED = "FitsNoAllowedProfile"
    """A profile of the device would do, but not one of those allowed."""
    TOO_SLOW = "TooSlowOnEveryProfile"
    """Some allowed profile holds it, none is fast enough."""


class Offer(Protocol):
    """What the choice looks at; `dippm.prediction.Candidate` is one."""

    @property
    def profile(self) -> str: ...
    @property
    def usable_mib(self) -> int: ...
    @property
    def fits(self) -> bool: ...
    @property
    def latency_ms(self) -> float: ...


OfferT = TypeVar("OfferT", bound=Offer)


@dataclass(frozen=True, slots=True)
class Choice(Generic[OfferT]):
    """The chosen candidate (None: none will do) and why."""

    candidate: OfferT | None
    reason: Reason

    @property
    def profile(self) -> str | None:
        """Name of the chosen profile."""
        return None if self.candidate is None else self.candidate.profile


def candidate(profile: Profile, *, required_mib: float, required_upper_mib: float, latency_ms: float) -> Candidate:
    """One profile against one requirement, all in MiB. The upper bound is never taken below the estimate."""
    upper = max(required_mib, required_upper_mib)
    return Candidate(
        profile=profile.name,
        resource=profile.resource,
        usable_mib=profile.usable_mib,
        required_mib=required_mib,
        required_upper_mib=upper,
        fits=upper <= profile.usable_mib,
        utilization=required_mib / profile.usable_mib,
        latency_ms=latency_ms,
    )


def choose(candidates: Iterable[OfferT], policy: Policy = DEFAULT_POLICY) -> Choice[OfferT]:
    """The smallest candidate that fits, is allowed and is fast enough (`rule: fit`).

    Smaller means less usable memory, then fewer compute slices; a whole card comes last, if the policy allows it.
    """
    ordered = sorted(candidates, key=lambda c: size_order(c.usable_mib, c.profile))
    fitting = [c for c in ordered if c.fits]
    if not fitting:
        return Choice(None, Reason.TOO_LARGE)
    allowed = [c for c in fitting if _allowed(c.profile, policy)]
    if not allowed:
        only_full = all(c.profile == FULL_GPU for c in fitting)
        return Choice(None, Reason.TOO_LARGE if only_full else Reason.NOT_ALLOWED)
    limit = policy.max_latency_ms
    fast = [c for c in allowed if limit is None or c.latency_ms <= limit]
    return Choice(fast[0], Reason.FITS) if fast else Choice(None, Reason.TOO_SLOW)


def _allowed(profile: str, policy: Policy) -> bool:
    if profile == FULL_GPU:
        return policy.allow_full_gpu
    return policy.allowed_profiles is None or profile in policy.allowed_profiles


PAPER_BOUNDS: tuple[tuple[float, str], ...] = (
    (5_000, "1g.5gb"),
    (10_000, "2g.10gb"),
    (20_000, "3g.20gb"),
    (40_000, "7g.40gb"),
)
"""Equation 2 in the unit and with the thresholds of the authors' code (MB as `nvidia-smi` has them, 1000 to the GB)."""


def paper_profile(memory_mb: float) -> str | None:
    """Equation 2 of the paper: the profile for a predicted footprint on an A100-40GB; None from 40 GB on.

    The paper's intervals are open on both sides (`0gb < a < 5gb`, `5gb < a < 10gb`, ...), so exactly 5, 10 and 20 GB
    have no answer there. Here such a value belongs to the next larger profile, as 40 GB already belongs to None: the
    profile's own condition `a < bound` is kept as printed, and only the lower ends are closed.
    """
    for bound, profile in PAPER_BOUNDS:
        if memory_mb < bound:
            return profile
    return None


def choose_by_paper(candidates: Iterable[OfferT], memory_mb: float) -> Choice[OfferT]:
    """`rule: paper`: equation 2 on the footprint, whatever fits. Raises UnknownDevice off the A100-40GB."""
    by_name = {c.profile: c for c in candidates}
    if missing := [name for _, name in PAPER_BOUNDS if name not in by_name]:
        raise UnknownDevice(
            f"the paper's rule is for an A100 with 40 GB, and this device has no {missing[0]}: use the rule `fit`"
        )
    name = paper_profile(memory_mb)
    return Choice(None, Reason.TOO_LARGE) if name is None else Choice(by_name[name], Reason.PAPER_RULE)
