"""The network's smaller parts: workspace classes, tables, clocks, costs, calibration, splits, errors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dippm.case import Case, Precision
from dippm.evaluate.errors import error_row, percentage_errors, render
from dippm.evaluate.heldback import FIGURES, HeldBackRow, read_rows, write_rows
from dippm.evaluate.right_profile import near_boundary, profile_share
from dippm.network import calibration, lookup
from dippm.network.clocks import device_ms, host_ms, latency_ms
from dippm.network.roofline import BANDWIDTH, FLOOR_US, roofline_us
from dippm.network.workload import Workload
from dippm.network.workspace import CLASSES, RATIO, classify, workspace_bytes
from dippm.profiles import resolve_device
from dippm.strides import contiguous, is_channels_last, is_contiguous, iterated, view
from dippm.train.costs import fit_energy, fit_gap_us, fit_host, least_squares_nonnegative
from dippm.train.split import folds
from dippm.vocabulary import INDEX, KINDS


def convolution(channels: int = 64, dtype: str = "float32") -> Workload:
    """A convolution whose tensors have sizes that no two classes share."""
    return Workload(
        kind="conv2d", dtype=dtype, macs=1e9, m=9765, n=channels, k=576, products=1,
        bytes_in=1_000_000, bytes_out=2_500_000, bytes_written=2_500_000, bytes_weight=300_000,
        elements_in=250_000, elements_out=625_000, channels_in=channels, channels_out=channels,
        positions_in=3900, positions_out=9765, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=1, groups=1,
        last=62, rank=4, is_view=False, in_place=False, transposed=False, arguments=2,
        target="aten.conv2d.default",
    )  # fmt: skip


@pytest.mark.parametrize("index", [i for i in range(len(CLASSES)) if i != RATIO])
def test_each_class_explains_its_own_bytes(index: int) -> None:
    work = convolution()
    measured = workspace_bytes(work, index, 0.0)
    assert workspace_bytes(work, classify(work, measured).index, 0.0) == measured


def test_a_workspace_that_no_class_explains_is_a_ratio() -> None:
    work = convolution()
    label = classify(work, 77_777_777)
    assert label.index == RATIO
    assert workspace_bytes(work, label.index, label.log_ratio) == pytest.approx(77_777_777, rel=1e-6)


def test_rounding_of_the_allocator_does_not_hide_a_class() -> None:
    assert CLASSES[classify(convolution(), 1_000_000 + 2_500_000 + 1024).index] == "in+out"


def test_roofline_is_arithmetic_or_memory_whichever_is_longer() -> None:
    work = convolution()
    memory = 1e6 * 3_800_000 / BANDWIDTH + FLOOR_US
    assert roofline_us(work, Precision.FP32) > memory
    assert roofline_us(work, Precision.FP32) == pytest.approx(1e6 * 2e9 / 4.5e14 + FLOOR_US)
    assert roofline_us(convolution(dtype="float16"), Precision.FP16) < roofline_us(work, Precision.FP32)


def test_table_takes_the_largest_workspace_and_the_median_time() -> None:
    seven, three, eight = (n << 40 for n in (7, 3, 8))
    table = lookup.build(
        [seven, three, seven, seven], [1, 4, RATIO, 2], [10, 5, 30, 20], [1.0, math.nan, 2.0, 9.0], [1, 0, 2, 2]
    )
    assert table.find(np.array([three, seven, eight], dtype=np.uint64)).tolist() == [0, 1, -1]
    work = convolution()
    assert table.workspace_bytes(0, work) == work.bytes_in + work.bytes_out
    assert table.workspace_bytes(1, work) == 30
    assert math.isnan(table.kernel_us[0])
    assert table.kernel_us[1] == 2.0
    assert table.kernels.tolist() == [0, 2]


def test_a_table_is_kept_in_six_bytes_an_operator() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, 5000, dtype=np.uint64)
    times = np.where(np.arange(5000) < 10, 3.0, math.nan)
    classes = np.where(np.arange(5000) < 20, RATIO, 4)
    table = lookup.build(keys, classes, np.full(5000, 777), times, np.ones(5000))
    arrays = table.arrays()
    assert sum(array.nbytes for array in arrays.values()) == 5000 * 6 + 20 * (4 + 8) + 10 * (4 + 4 + 1)
    again = lookup.Table.from_arrays(arrays)
    assert (again.find(keys) >= 0).all()
    for name in ("keys", "classes", "exact_bytes", "kernel_us", "kernels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


def test_an_empty_table_finds_nothing() -> None:
    assert lookup.EMPTY.find(np.array([1], dtype=np.uint64)).tolist() == [-1]


def test_key_depends_on_precision() -> None:
    fp32, tf32 = Case(1, Precision.FP32), Case(1, Precision.TF32)
    assert lookup.key("linear", fp32) == lookup.key("linear", fp32) != lookup.key("linear", tf32)


def test_latency_is_the_host_or_the_device_whoever_is_last() -> None:
    slow_host = latency_ms([100, 100], [1, 1], [1, 1], host_pass_us=0, gap_us=1)
    assert slow_host == pytest.approx(0.202)
    slow_device = latency_ms([1, 1], [500, 500], [1, 1], host_pass_us=0, gap_us=1)
    assert slow_device == pytest.approx(1.003)


@given(st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e4), st.integers(0, 5)), min_size=1, max_size=30))
def test_latency_is_never_under_either_clock(operators: list[tuple[float, float, int]]) -> None:
    host, kernel, counts = (list(c) for c in zip(*operators, strict=True))
    kernel = [k if n else 0.0 for k, n in zip(kernel, counts, strict=True)]
    latency = latency_ms(host, kernel, counts, host_pass_us=3.0, gap_us=1.0)
    assert latency >= host_ms(host, 3.0) - 1e-9
    assert latency >= device_ms(kernel, counts, 1.0) - 1e-9


def test_nonnegative_least_squares_finds_what_made_the_numbers() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 1, (50, 4)) * np.array([1.0, 1e6, 1e-3, 1.0])
    x = np.array([2.0, 3e-6, 0.0, 0.5])
    np.testing.assert_allclose(least_squares_nonnegative(a, a @ x), x, rtol=1e-4, atol=1e-6)


def test_host_cost_gives_unseen_kinds_the_mean_of_the_others() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros((60, len(KINDS)))
    used = [INDEX["conv2d"], INDEX["relu"], INDEX["add"]]
    counts[:, used] = rng.integers(1, 60, (60, 3))
    cost = fit_host(counts, (30 + counts[:, used] @ np.array([20.0, 6.0, 9.0])) / 1e3, ridge=1e-4)
    assert cost.kind_us[INDEX["conv2d"]] == pytest.approx(20, rel=0.1)
    assert 5 < cost.kind_us[INDEX["topk"]] < 20


def test_energy_cost_separates_static_power_from_work() -> None:
    rng = np.random.default_rng(0)
    terms = rng.uniform(0.1, 1, (80, 5)) * np.array([1e12, 1e12, 1e11, 1e9, 1e-2])
    latency = rng.uniform(1e-3, 5e-2, 80)
    joules = 120 * latency + terms @ np.array([4e-13, 8e-13, 0.0, 5e-11, 60.0])
    cost = fit_energy(terms, latency, joules)
    assert cost.static_w == pytest.approx(120, rel=0.02)
    assert cost.coefficients["kernel_seconds"] == pytest.approx(60, rel=0.02)


def test_gap_is_what_device_time_has_over_the_kernels() -> None:
    assert fit_gap_us([100.0, 1000.0], [10, 100], [0.112, 1.12]) == pytest.approx(1.2)
    assert fit_gap_us([], [], []) == 1.0


@given(st.lists(st.floats(-0.5, 0.5), min_size=20, max_size=300))
def test_bounds_of_known_models_cover_and_rise_as_the_risk_falls(scores: list[float]) -> None:
    bounds = calibration.known_bounds(scores)
    for risk, rate in bounds.items():
        assert rate >= 0
        over = sum(s > rate + 1e-12 for s in scores)
        assert over <= len(scores) * risk / 100 + 1e-9
    ordered = [bounds[r] for r in sorted(bounds)]
    assert ordered == sorted(ordered, reverse=True)


def test_a_risk_that_too_few_families_support_is_not_stated() -> None:
    scores = {f"family{i}": [0.01 * i, 0.02 * i] for i in range(24)}
    bounds = calibration.unknown_bounds(scores)
    assert min(bounds) == 8.0
    bound = calibration.choose(bounds, 1.0, basis="unknown", sample=24, otherwise=2.0)
    assert bound.risk_percent == 8.0
    assert bound.rate == pytest.approx(0.42)


def test_nothing_measured_is_uncalibrated() -> None:
    assert calibration.known_bounds([0.1] * 5) == {}
    bound = calibration.choose({}, 1.0, basis="known", sample=5, otherwise=1.3)
    assert not bound.calibrated
    assert bound.basis == "uncalibrated"
    assert bound.rate == 1.3


@given(st.floats(1, 1e12), st.floats(0, 1), st.floats(0, 3))
def test_a_bound_is_never_under_its_estimate_and_widens_with_the_activations(
    estimate: float, share: float, rate: float
) -> None:
    bound = calibration.UpperBound(rate, 5.0, "unknown", 43)
    upper = bound.above(estimate, resident=estimate * (1 - share))
    assert estimate <= upper <= estimate * bound.factor * (1 + 1e-9)
    assert upper >= bound.above(estimate, resident=estimate) * (1 - 1e-9)


def test_a_score_is_what_brings_the_estimate_up_to_the_measurement() -> None:
    bound = calibration.UpperBound(calibration.score(150.0, 100.0, 60.0), 5.0, "known", 100)
    assert bound.above(100.0, 60.0) == pytest.approx(150.0)


@given(st.lists(st.sampled_from([f"family{i}" for i in range(12)]), min_size=12, max_size=200))
def test_no_family_stands_on_both_sides(groups: list[str]) -> None:
    fold_of = folds(groups, groups)
    for family in set(groups):
        assert len({int(f) for g, f in zip(groups, fold_of, strict=True) if g == family}) == 1


def test_folds_are_balanced_and_repeat() -> None:
    groups = [f"family{i % 20}" for i in range(400)]
    fold_of = folds(groups, groups)
    assert np.bincount(fold_of).tolist() == [80] * 5
    assert fold_of.tolist() == folds(groups, groups).tolist()


def test_errors_leave_out_what_was_not_measured() -> None:
    assert percentage_errors([100, math.nan, 200], [110, 5, 150]).tolist() == pytest.approx([10, 25])
    row = error_row("device_ms", "device time", [1, 2], [1.1, 2], [5, 5])
    assert row is not None
    assert row.mean == pytest.approx(5)
    assert math.isnan(row.formula_mean)
    assert "| device time | 2 | 5.00 % |" in render([row])


def test_near_a_boundary_is_within_a_fifth_of_a_profiles_limit() -> None:
    limit = min(p.usable_mib for p in resolve_device("A100-SXM4-40GB").profiles)
    pairs = [(factor * limit, 1.0) for factor in (0.5, 0.79, 0.81, 1.0, 1.19, 1.3)]
    assert near_boundary(pairs, "A100-SXM4-40GB") == pairs[2:5]


def test_held_back_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    figures = tuple(float(i) for i in range(len(FIGURES)))
    unknown = (math.nan, *figures[1:])
    row = HeldBackRow(
        "a", "resnet50", "resnet", 1, 4, "fp32", "inference", "eager", "default", 9, 0.5, 1e9, 5e8, 7e8,
        unknown, figures, figures,
    )  # fmt: skip
    for name in ("rows.csv", "rows.csv.gz"):
        write_rows(tmp_path / name, [row, row])
        again = read_rows(tmp_path / name)
        assert len(again) == 2
        assert repr(again[0]) == repr(row)


def test_right_profile_share_counts_cases_that_land_on_the_same_slice() -> None:
    assert profile_share([(3000, 3100), (4800, 5000), (90000, 80000)], "A100-SXM4-40GB") == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("kind", "attributes", "made"),
    [
        ("permute", {"dims": (0, 2, 3, 1)}, lambda x: x.permute(0, 2, 3, 1)),
        ("transpose", {"dim0": 1, "dim1": 2}, lambda x: x.transpose(1, 2)),
        ("transpose", {"dim0": -1, "dim1": -2}, lambda x: x.transpose(-1, -2)),
        ("select", {"dim": 1, "index": 2}, lambda x: x.select(1, 2)),
        ("select", {"index": 1}, lambda x: x.select(0, 1)),
        ("slice", {"dim": 3, "start": 0, "end": 6, "step": 2}, lambda x: x[..., 0:6:2]),
        ("flatten", {"start_dim": 2}, lambda x: x.flatten(2)),
        ("unsqueeze", {"dim": 1}, lambda x: x.unsqueeze(1)),
        ("reshape", {}, lambda x: x.view(2, 2, 4, 6, 3, 2)),
        ("expand", {}, lambda x: x[:1].expand(5, 8, 6, 6)),
        ("split", {"dim": 0}, lambda x: x.unbind()[0]),
        ("split", {"dim": -2}, lambda x: x.unbind(-2)[3]),
        ("split", {"dim": 1}, lambda x: x.chunk(4, 1)[2]),
        ("unfold", {"dimension": 2, "size": 3, "step": 2}, lambda x: x.unfold(2, 3, 2)),
    ],
)
def test_strides_of_views_are_those_of_pytorch(kind, attributes, made) -> None:  # type: ignore[no-untyped-def]
    x = torch.empty(2, 8, 6, 6)
    source = x[:1] if kind == "expand" else x
    y = made(x)
    assert view(kind, attributes, tuple(source.shape), source.stride(), tuple(y.shape)) == y.stride()


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 0, 2)])
@pytest.mark.parametrize("shape", [(2, 8, 36), (16, 36), (2, 4, 2, 6, 6), (576,), (2, 2, 4, 36), (2, 8, 6, 2, 3)])
def test_reshapes_are_views_where_pytorch_says_so(order: tuple[int, ...], shape: tuple[int, ...]) -> None:
    x = torch.empty(2, 8, 6, 6).permute(order).contiguous().permute(*np.argsort(order).tolist())
    ours = view("reshape", {}, tuple(x.shape), x.stride(), shape)
    try:
        assert ours == x.view(shape).stride()
    except RuntimeError:
        assert ours is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (torch.empty(2, 8, 6, 5), torch.empty(2, 8, 6, 5)),
        (torch.empty(2, 6, 5, 8).permute(0, 3, 1, 2), torch.empty(2, 8, 6, 5)),
        (torch.empty(2, 8, 6, 5), torch.empty(2, 6, 5, 8).permute(0, 3, 1, 2)),
        (torch.empty(2, 6, 5, 8).permute(0, 3, 1, 2), torch.empty(1, 8, 1, 1)),
        (torch.empty(8, 1, 1).expand(2, 8, 6, 5), torch.empty(5, 6, 8, 2).permute(3, 2, 1, 0)),
        (torch.empty(2, 24, 6, 5)[:, 8:16], torch.empty(6, 5)),
        (torch.empty(2, 6, 5, 24).permute(0, 3, 1, 2)[:, 8:16], torch.empty(1)),
        (torch.empty(1, 8, 1, 5), torch.empty(1, 1, 5, 8).permute(0, 3, 1, 2)),
        (torch.empty(5), torch.empty(2, 6, 8, 5).transpose(1, 2)),
    ],
)
def test_element_wise_results_lie_as_pytorch_lays_them(first: torch.Tensor, second: torch.Tensor) -> None:
    result = first + second
    operands = [(tuple(t.shape), t.stride()) for t in (first, second)]
    assert iterated(tuple(result.shape), operands) == result.stride()


@pytest.mark.parametrize(
    "picture",
    [
        torch.empty(2, 8, 6, 5),
        torch.empty(2, 6, 5, 8).permute(0, 3, 1, 2),
        torch.empty(2, 6, 5, 24).permute(0, 3, 1, 2)[:, 8:16],
        torch.empty(2, 1, 6, 5),
        torch.empty(2, 8, 1, 1),
        torch.empty(1, 6, 5, 1).permute(0, 3, 1, 2),
        torch.empty(1, 30, 8).transpose(1, 2).view(1, 8, 6, 5),
        torch.empty(1, 1, 8).transpose(1, 2).view(1, 8, 1, 1),
        torch.empty(1, 8, 1, 1).expand(2, 8, 6, 5),
    ],
)
def test_channels_last_is_suggested_where_pytorch_takes_it(picture: torch.Tensor) -> None:
    padded = torch.nn.functional.pad(picture, (1, 1, 1, 1))
    suggested = padded.stride() != contiguous(tuple(padded.shape))
    assert is_channels_last(tuple(picture.shape), picture.stride()) == suggested


def test_layouts_are_told_apart() -> None:
    last = torch.empty(2, 8, 6, 6).to(memory_format=torch.channels_last)
    assert is_channels_last(tuple(last.shape), last.stride())
    assert not is_contiguous(tuple(last.shape), last.stride())
    assert contiguous((2, 8, 6, 6)) == torch.empty(2, 8, 6, 6).stride()
