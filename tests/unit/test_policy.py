"""The choice is total and monotone, and the paper's rule has an answer everywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dippm.errors import UnknownDevice
from dippm.policy import Choice, Policy, Reason, candidate, choose, choose_by_paper, paper_profile
from dippm.prediction import Candidate
from dippm.profiles import FULL_GPU, known_devices, resolve_device, size_order

DEVICES = st.sampled_from(sorted(known_devices()))
MIB = st.floats(min_value=0, max_value=400_000, allow_nan=False)


def offers(device: str, upper: float, latency: float = 1.0) -> list[Candidate]:
    return [
        candidate(p, required_mib=upper * 0.8, required_upper_mib=upper, latency_ms=latency * 7 / p.compute)
        for p in resolve_device(device).with_full_gpu()
    ]


def rank(choice: Choice[Candidate]) -> tuple[bool, tuple[bool, float, int, str]]:
    chosen = choice.candidate
    return chosen is None, (True, 0.0, 0, "") if chosen is None else size_order(chosen.usable_mib, chosen.profile)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    names = [p.name for d in known_devices().values() for p in d.profiles]
    return Policy(
        max_latency_ms=draw(st.none() | st.floats(0.1, 100)),
        allowed_profiles=draw(st.none() | st.lists(st.sampled_from(names), unique=True).map(tuple)),
        allow_full_gpu=draw(st.booleans()),
    )


@given(DEVICES, MIB, MIB, policies(), st.floats(0.1, 50), st.floats(0.1, 50))
def test_a_larger_prediction_never_chooses_a_smaller_profile(
    device: str, a: float, b: float, policy: Policy, fast: float, slow: float
) -> None:
    fast, slow = sorted((fast, slow))
    small = choose(offers(device, min(a, b), fast), policy)
    large = choose(offers(device, max(a, b), slow), policy)
    assert rank(small) <= rank(large)


@given(DEVICES, MIB, policies())
def test_every_requirement_gets_a_profile_that_holds_it_or_none_with_a_reason(
    device: str, upper: float, policy: Policy
) -> None:
    choice = choose(offers(device, upper), policy)
    if choice.candidate is None:
        assert choice.reason is not Reason.FITS
    else:
        assert choice.candidate.usable_mib >= upper
        assert choice.candidate.profile != FULL_GPU or policy.allow_full_gpu


@given(DEVICES, MIB, st.randoms())
def test_the_order_of_the_candidates_does_not_matter(device: str, upper: float, random: object) -> None:
    shuffled = offers(device, upper)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(shuffled) == choose(offers(device, upper))


def test_equal_memory_goes_to_fewer_compute_slices() -> None:
    assert choose(offers("A100-40GB", 9000)).profile == "1g.10gb"
    assert choose(offers("A100-40GB", 15000)).profile == "3g.20gb"


def test_a_profile_holds_exactly_its_usable_memory() -> None:
    assert choose(offers("A100", 4864)).profile == "1g.5gb"
    assert choose(offers("A100", 4864.1)).profile == "1g.10gb"


def test_latency_moves_the_choice_to_more_compute() -> None:
    assert choose(offers("A100", 4000, latency=10), Policy(max_latency_ms=36)).profile == "2g.10gb"


@pytest.mark.parametrize(
    ("upper", "policy", "reason"),
    [
        (90_000, Policy(), Reason.TOO_LARGE),
        (40_300, Policy(), Reason.TOO_LARGE),
        (8_000, Policy(allowed_profiles=("1g.5gb",)), Reason.NOT_ALLOWED),
        (8_000, Policy(max_latency_ms=0.5), Reason.TOO_SLOW),
    ],
)
def test_none_says_why(upper: float, policy: Policy, reason: Reason) -> None:
    assert choose(offers("A100", upper), policy) == Choice(None, reason)


def test_a_whole_card_only_when_allowed() -> None:
    assert choose(offers("A100", 40_300), Policy(allow_full_gpu=True)).profile == FULL_GPU


def test_an_upper_bound_is_never_under_its_estimate() -> None:
    profile = resolve_device("A100").profile("1g.5gb")
    assert candidate(profile, required_mib=100, required_upper_mib=90, latency_ms=1).required_upper_mib == 100


@pytest.mark.parametrize(
    ("memory", "profile"),
    [
        (0, "1g.5gb"), (4999.9, "1g.5gb"), (5000, "2g.10gb"), (9999, "2g.10gb"), (10000, "3g.20gb"), (19999, "3g.20gb"),
        (20000, "7g.40gb"), (39999, "7g.40gb"), (40000, None), (1e9, None),
    ],
)  # fmt: skip
def test_equation_2_with_its_gaps_closed_upwards(memory: float, profile: str | None) -> None:
    assert paper_profile(memory) == profile


@given(MIB, MIB)
def test_equation_2_is_monotone(a: float, b: float) -> None:
    order = ["1g.5gb", "2g.10gb", "3g.20gb", "7g.40gb", None]
    assert order.index(paper_profile(min(a, b))) <= order.index(paper_profile(max(a, b)))


def test_the_papers_rule_is_for_the_papers_card() -> None:
    assert choose_by_paper(offers("A100", 100), 4900).profile == "1g.5gb"
    with pytest.raises(UnknownDevice, match="40 GB"):
        choose_by_paper(offers("H200", 100), 4900)
