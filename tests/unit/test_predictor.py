"""From a graph to a prediction, on small graphs made by hand and costs that are given."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from dippm.case import Allocator, Case, Precision, Runtime
from dippm.devices import MIB, context_on
from dippm.errors import UnknownDevice
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm.network.bundle import Estimates
from dippm.network.calibration import UpperBound
from dippm.network.onnxruntime import load_calibration
from dippm.policy import Policy, Rule
from dippm.prediction import Basis, Prediction
from dippm.predictor import predict_graph
from dippm.profiles import FULL_GPU, resolve_device, with_labels
from dippm.replay.onnxruntime import replay_onnxruntime
from dippm.runtimes import STAND_INS


def convolutions(batch: int, *, depth: int = 3, file_format: str = "") -> ModelGraph:
    """`depth` 3x3 convolutions of one size, one after the other."""
    channels, size = 64, 56
    spec = TensorSpec((batch, channels, size, size), "float32")
    weight = TensorSpec((channels, channels, 3, 3), "float32")
    values = [Value(spec, ValueKind.INPUT)]
    operators = []
    for index in range(depth):
        before = len(values) - 1
        values += [Value(weight, ValueKind.PARAMETER), Value(spec, ValueKind.RESULT, producer=index)]
        operators.append(
            Operator(
                "conv2d", "aten.conv2d.default", (before, before + 1), (before + 2,),
                {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1},
            )
        )  # fmt: skip
    return ModelGraph(tuple(values), tuple(operators), (0,), (len(values) - 1,), batch, file_format)


@dataclass
class Given:
    """A bundle that says the same of every operator."""

    device: str = "H200"
    kernel_us: float = 100.0
    host_us: float = 10.0
    rate: float = 0.1
    risk_percent: float | None = 1.0

    def estimate(self, graph: ModelGraph, case: Case, *, work: object, risk_percent: float) -> Estimates:
        count = len(graph.operators)
        bound = UpperBound(self.rate, self.risk_percent, "known", 100)
        return Estimates(
            workspace_bytes=(0,) * count,
            kernel_us=(self.kernel_us,) * count,
            kernels=(1,) * count,
            energy_j=(0.01,) * count,
            host_us=(self.host_us,) * count,
            host_pass_us=0.0,
            gap_us=1.0,
            static_w=100.0,
            log_residuals={},
            upper={"min_cap": bound, "reserved": bound},
            known_share=1.0,
        )


CASE = Case(batch=8, runtime=Runtime.EAGER, device="A100-SXM4-40GB")


def predicted(graph: ModelGraph, case: Case = CASE, policy: Policy = Policy(), **given: object) -> Prediction:  # noqa: B008 frozen
    return predict_graph(graph, case, policy, bundle=Given(**given))  # type: ignore[arg-type]


def test_required_is_cap_and_context_and_the_choice_holds_its_upper_bound() -> None:
    p = predicted(convolutions(8))
    chosen = next(c for c in p.candidates if c.profile == p.mig_profile)
    device = resolve_device(p.device)
    context = context_on(device, device.profile(chosen.profile))
    assert chosen.required_mib == pytest.approx(p.min_cap_mib + context.estimate)
    assert (p.required_mib, p.required_upper_mib) == (chosen.required_mib, chosen.required_upper_mib)
    assert p.required_upper_mib <= chosen.usable_mib
    assert p.memory_mib == pytest.approx(p.context_mib + p.reserved_mib)
    assert p.allocated_mib >= p.weights_mib + p.activations_mib
    assert p.weights_mib == pytest.approx(3 * 64 * 64 * 9 * 4 / MIB, abs=0.01)
    assert list(p) == [round(p.memory_mib), round(p.energy_j, 3), round(p.latency_ms, 3), p.mig_profile]


def test_more_batch_never_means_a_smaller_slice() -> None:
    device = resolve_device(CASE.device)
    order = [p.name for p in device.profiles]
    chosen = [predicted(convolutions(b), replace(CASE, batch=b)).mig_profile for b in (1, 64, 512, 8192, 65536)]
    ranks = [len(order) if c is None else order.index(c) for c in chosen]
    assert ranks == sorted(ranks)
    assert chosen[0] == "1g.5gb"
    assert chosen[-1] is None


def test_what_fits_nowhere_says_so() -> None:
    p = predicted(convolutions(65536), replace(CASE, batch=65536))
    assert (p.mig_profile, p.resource) == (None, None)
    assert not any(c.fits for c in p.candidates)
    assert any("TooLargeForEveryProfile" in note for note in p.notes)


def test_processes_multiply_and_headroom_adds() -> None:
    one = predicted(convolutions(8))
    more = predicted(convolutions(8), policy=Policy(processes=3, headroom_mib=100.0))
    assert more.candidates[0].required_mib == pytest.approx(3 * one.candidates[0].required_mib + 100)


def test_half_precision_halves_the_weights() -> None:
    full, half = (predicted(convolutions(8), replace(CASE, precision=p)) for p in (Precision.FP32, Precision.FP16))
    assert half.weights_mib == pytest.approx(full.weights_mib / 2)


def test_a_slice_slows_the_device_and_not_the_host() -> None:
    bound_by_device = predicted(convolutions(64), kernel_us=5000.0)
    by_profile = {c.profile: c.latency_ms for c in bound_by_device.candidates}
    assert 5.5 <= by_profile["1g.5gb"] / by_profile["7g.40gb"] <= 8
    bound_by_host = predicted(convolutions(64), kernel_us=5.0, host_us=5000.0)
    assert len({round(c.latency_ms, 0) for c in bound_by_host.candidates}) == 1
    assert bound_by_host.latency_ms == pytest.approx(bound_by_host.host_ms, rel=0.02)


def test_the_measured_card_is_measured_and_others_are_transferred_with_a_band() -> None:
    here = predicted(convolutions(8), replace(CASE, device="H200"))
    assert here.basis is Basis.MEASURED
    assert here.notes == ()
    assert here.device_ms == pytest.approx(3 * 101 / 1e3)
    there = predicted(convolutions(8))
    assert there.basis is Basis.TRANSFERRED
    assert there.device_ms > here.device_ms
    assert any("carried over from H200 to A100-SXM4-40GB" in n for n in there.notes)


def test_a_convolution_on_an_unmeasured_architecture_is_bounded_by_its_largest_workspace() -> None:
    there, here = (predicted(convolutions(256), replace(CASE, batch=256, device=d)) for d in ("A100", "H200"))
    assert there.min_cap_mib == pytest.approx(here.min_cap_mib)
    spread = there.required_upper_mib - there.required_mib
    assert spread > 2 * 256 * 64 * 56 * 56 * 4 / MIB * 0.9


def test_a_runtime_never_measured_is_a_proxy_with_a_wider_bound() -> None:
    measured = predicted(convolutions(64, file_format="pt2"), replace(CASE, runtime=Runtime.AUTO, device="H200"))
    proxy = predicted(convolutions(64, file_format="paddle"), replace(CASE, runtime=Runtime.AUTO, device="H200"))
    assert (measured.runtime, measured.basis) == ("graph", Basis.MEASURED)
    assert (proxy.runtime, proxy.basis) == ("paddle", Basis.PROXY)
    assert proxy.required_mib == measured.required_mib
    assert proxy.required_upper_mib > measured.required_upper_mib
    assert any("no rules of its own" in n and "no stated risk" in n for n in proxy.notes)


def test_onnx_runtime_is_replayed_by_its_own_rules_and_bounded_by_its_own_rows() -> None:
    graph = convolutions(64, file_format="onnx")
    found = predicted(graph, replace(CASE, runtime=Runtime.AUTO, device="H200"))
    assert (found.runtime, found.basis) == ("onnxruntime", Basis.MEASURED)
    session = replay_onnxruntime(graph, workspaces=(0,) * len(graph.operators))
    assert found.reserved_mib == pytest.approx((session.arena_bytes + session.inputs_bytes) / MIB)
    assert found.min_cap_mib == pytest.approx((session.min_limit_bytes + session.inputs_bytes) / MIB)
    assert found.required_upper_mib > found.required_mib
    assert any("arena" in n and "measured cases" in n for n in found.notes)
    calibration = load_calibration()
    assert found.device_ms == pytest.approx(
        sum(calibration.device_share * 101 + calibration.launch_us for _ in graph.operators) / 1e3
    )


@pytest.mark.parametrize("runtime", sorted(STAND_INS))
def test_every_unmeasured_runtime_that_may_be_asked_for_says_so(runtime: Runtime) -> None:
    """As `auto` takes them: what a status reports may also be written into a spec."""
    graph = convolutions(64, file_format="onnx")
    p = predicted(graph, replace(CASE, runtime=runtime, device="H200"))
    nearest = predicted(graph, replace(CASE, runtime=STAND_INS[runtime], device="H200"))
    assert (p.runtime, p.basis) == (runtime.value, Basis.PROXY)
    assert p.required_upper_mib > nearest.required_upper_mib
    assert any("no rules of its own" in n for n in p.notes)


def test_an_uncalibrated_bound_says_so() -> None:
    p = predicted(convolutions(8), replace(CASE, device="H200"), risk_percent=None)
    assert any("uncalibrated" in n for n in p.notes)
    q = predicted(convolutions(8), replace(CASE, device="H200"), risk_percent=5.0)
    assert any("risk of 5 %" in n for n in q.notes)


def test_the_papers_rule_goes_by_the_footprint() -> None:
    p = predicted(convolutions(512), replace(CASE, batch=512), Policy(rule=Rule.PAPER))
    assert p.memory_mib < 5000 or p.mig_profile != "1g.5gb"
    with pytest.raises(UnknownDevice, match="40 GB"):
        predicted(convolutions(8), replace(CASE, device="H200"), Policy(rule=Rule.PAPER))


def test_a_whole_card_is_a_candidate_only_when_allowed() -> None:
    assert FULL_GPU not in [c.profile for c in predicted(convolutions(8)).candidates]
    p = predicted(convolutions(8), policy=Policy(allow_full_gpu=True))
    assert p.candidates[-1].profile == FULL_GPU
    assert p.candidates[-1].latency_ms == pytest.approx(p.latency_ms)


def test_what_a_clusters_labels_say_of_a_size_decides() -> None:
    graph = convolutions(8)
    small = with_labels(resolve_device(CASE.device), {"nvidia.com/mig-1g.5gb.memory": "300"})
    p = predict_graph(graph, CASE, device=small, bundle=Given())  # type: ignore[arg-type]
    assert p.candidates[0].usable_mib == 300
    assert p.mig_profile != "1g.5gb"


def test_expandable_segments_leave_less_unused() -> None:
    case = replace(CASE, batch=63)
    plain, expandable = (predicted(convolutions(63, depth=8), replace(case, allocator=a)) for a in Allocator)
    assert expandable.reserved_mib - expandable.allocated_mib < 22
    assert expandable.required_mib <= plain.required_mib + 22


def test_each_stage_is_timed() -> None:
    seconds = predicted(convolutions(8)).seconds
    assert {"network", "replay", "choose", "total"} <= set(seconds)
    assert seconds["total"] >= seconds["network"] + seconds["replay"]
