"""Time carried over from card to card and to slices: the physics that must hold, and published ratios it must meet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dippm.devices import context_on, hardware, slice_of
from dippm.errors import UnknownDevice
from dippm.profiles import known_devices, resolve_device
from dippm.transfer import UNFITTED, Work, basis, log_ratio, slice_factor, table

H200, A100 = hardware("H200"), hardware("A100-SXM4-80GB")


def gemm(m: float, n: float, k: float) -> Work:
    """One BF16 matrix product."""
    return Work(np.array([2 * m * n * k]), np.array([2 * (m * k + k * n + m * n)]), ("half",), np.array([m * n]))


def streamed(nbytes: float) -> Work:
    """One element-wise operator."""
    return Work(np.array([nbytes / 8]), np.array([nbytes]), ("fp32",), np.array([0.0]))


def ratio(work: Work, efficiency: float, target: str = "A100-SXM4-80GB") -> float:
    return float(np.exp(log_ratio(work, work.roof_us(H200) / efficiency, H200, hardware(target)))[0])


def test_every_device_of_the_catalogue_has_hardware_figures() -> None:
    for product in known_devices():
        card = hardware(product)
        assert card.flops["half"] > card.flops["tf32"] > card.flops["fp32"]
        assert card.context_mib.low <= card.context_mib.estimate <= card.context_mib.high
    with pytest.raises(UnknownDevice, match="GH200"):
        hardware("GH200")


def test_the_ratio_depends_on_what_limits_the_operator() -> None:
    """Published medians, A100-SXM4-80GB over H200, by balance and efficiency (ai-dynamo/aiconfigurator, GEMM)."""
    assert ratio(gemm(4096, 4096, 4096), 0.8) == pytest.approx(3.12, rel=0.1)
    assert ratio(gemm(4096, 4096, 4096), 0.6) == pytest.approx(2.80, rel=0.1)
    assert ratio(gemm(8, 8192, 8192), 0.8) == pytest.approx(2.57, rel=0.1)
    assert ratio(gemm(8, 8192, 8192), 0.35) == pytest.approx(1.95, rel=0.1)
    assert 1.1 < ratio(gemm(8, 256, 8192), 0.03) < 1.6, "small kernels: 1.2 to 1.4 by source"
    assert ratio(streamed(1e9), 0.8) == pytest.approx(2.2, rel=0.2)


def test_a_card_with_less_bandwidth_is_slower_where_memory_limits_and_only_there() -> None:
    assert ratio(streamed(1e9), 0.8, "A100-SXM4-40GB") > 1.2 * ratio(streamed(1e9), 0.8)
    assert ratio(gemm(8192, 8192, 8192), 0.7, "A100-SXM4-40GB") == pytest.approx(ratio(gemm(8192, 8192, 8192), 0.7))


def test_a_card_is_itself() -> None:
    assert log_ratio(gemm(64, 64, 64), np.array([5.0]), H200, H200).tolist() == [0.0]


def test_within_an_architecture_the_efficiency_carries_over() -> None:
    assert table("sm_90", "sm_90") is UNFITTED
    work = streamed(1e9)
    moved = np.exp(log_ratio(work, work.roof_us(H200), H200, hardware("H100-80GB-HBM3")))[0]
    assert moved == pytest.approx(4800 / 3350, rel=0.06)


def test_the_band_holds_one() -> None:
    low, high = table("sm_90", "sm_80").band
    assert 0.5 < low < 1 < high < 2


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=20))
def test_interpolation_weights_add_up_to_one(x: list[float]) -> None:
    weights = basis(np.array(x), (-3.0, -1.0, 0.5, 4.0))
    assert np.allclose(weights.sum(axis=1), 1.0)
    assert (weights >= 0).all()


SIZES = st.floats(1, 20_000)


@given(SIZES, SIZES, SIZES, st.sampled_from(sorted(known_devices())))
def test_a_smaller_slice_is_never_faster(m: float, n: float, k: float, product: str) -> None:
    device = resolve_device(product)
    whole = hardware(product)
    for work in (gemm(m, n, k), streamed(m * n)):
        whole_memory = [p for p in device.profiles if p.memory_eighths >= p.compute]
        factors = [slice_factor(work, whole, slice_of(device, p))[0] for p in whole_memory]
        assert all(a >= b - 1e-9 for a, b in itertools.pairwise(factors))
        assert factors[-1] >= 1.0


def test_a_full_gpu_operator_slows_by_its_share_and_a_small_one_hardly() -> None:
    """Published, 7g to 1g: 5.8-7.3 where the GPU is the limit."""
    device = resolve_device("A100-SXM4-80GB")
    small = slice_of(device, device.profile("1g.10gb"))
    assert 5.8 <= slice_factor(gemm(8192, 8192, 8192), A100, small)[0] <= 7.3
    assert slice_factor(gemm(64, 64, 64), A100, small)[0] == 1.0


def test_the_context_shrinks_with_the_slice() -> None:
    device = resolve_device("A100")
    highs = [context_on(device, p).high for p in sorted(device.profiles, key=lambda p: p.compute)]
    assert highs == sorted(highs)
    assert context_on(device, device.profile("7g.40gb")) == hardware("A100-SXM4-40GB").context_mib
