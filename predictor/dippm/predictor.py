"""From a model graph and a case to a prediction: the stages of the design, in order, each a call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from dippm import memory, runtimes, transfer
from dippm.case import Runtime
from dippm.devices import MIB, Hardware, context_on, hardware, slice_of
from dippm.garbage import put_off
from dippm.policy import DEFAULT_POLICY, Choice, Policy, Rule, choose, choose_by_paper
from dippm.prediction import Basis, Candidate, Prediction
from dippm.profiles import Device, resolve_device
from dippm.version import VERSION

if TYPE_CHECKING:
    from dippm.case import Case
    from dippm.graph import ModelGraph
    from dippm.network.bundle import Bundle, Estimates


@dataclass
class Stopwatch:
    """Wall seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Books the time inside on a stage."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - since

    def read(self) -> dict[str, float]:
        """The stages so far, and `total` since it was made."""
        return {**self.seconds, "total": time.perf_counter() - self.started}


@put_off()
def predict_graph(
    graph: ModelGraph,
    case: Case,
    policy: Policy = DEFAULT_POLICY,
    *,
    device: Device | None = None,
    bundle: Bundle | None = None,
    stopwatch: Stopwatch | None = None,
) -> Prediction:
    """What one forward pass of `graph` needs under `case`, and the profile that `policy` takes for it.

    `graph` holds its shapes with the batch, in whatever dtype the file has; it is cast to the case's precision here.
    `device` (default: the case's, by the catalogue) may carry sizes from a cluster's labels. `bundle` defaults to the
    one that ships. Raises UnknownDevice for a device without hardware figures, NoWeights without a bundle.
    """
    from dippm.features import static_features
    from dippm.folding import as_loaded
    from dippm.network.bundle import load_bundle
    from dippm.network.compose import composition_of, correct
    from dippm.network.onnxruntime import load_calibration
    from dippm.network.workload import workloads
    from dippm.replay import replay

    watch = stopwatch or Stopwatch()
    device = device or resolve_device(case.device)
    target = hardware(device.product)
    runtime = runtimes.resolve(case.runtime, graph.format)
    measured = replace(case, runtime=runtime.predicted)
    with watch.stage("network"):
        bundle = bundle or load_bundle()
        cast, folded = graph.cast(case.precision.float_dtype), 0
        if runtime.asked in runtimes.FOLDS:
            cast, folded = as_loaded(cast)
        work = workloads(cast)
        estimates = bundle.estimate(
            cast, replace(case, runtime=runtime.learned), work=work, risk_percent=policy.oom_risk_percent
        )
        if runtime.predicted is Runtime.ONNXRUNTIME:
            estimates = load_calibration().applied(estimates, policy.oom_risk_percent)
    with watch.stage("replay"):
        replayed = replay(
            cast,
            runtime=measured.runtime,
            allocator=case.allocator,
            mode=case.mode,
            workspaces=estimates.workspace_bytes,
            cublas_bytes=target.cublas_workspace_bytes,
        )
    with watch.stage("choose"):
        clock = _Clock(estimates, transfer.Work.of(work, case.precision), hardware(bundle.device), target)
        whole = correct(composition_of(replayed, clock.on()), estimates.log_residuals)
        need = memory.cap(
            cast,
            measured,
            work,
            composed=whole,
            estimates=estimates,
            is_proxy=runtime.is_proxy,
            target=target,
            unmeasured_architecture=clock.source.architecture != target.architecture,
        )
        candidates = tuple(
            memory.requirement(
                device,
                profile,
                need,
                policy,
                latency_ms=correct(
                    composition_of(replayed, clock.on(slice_of(device, profile))), estimates.log_residuals
                ).latency_ms,
            )
            for profile in (device.with_full_gpu() if policy.allow_full_gpu else device.profiles)
        )
        context = context_on(device, device.with_full_gpu()[-1]).estimate
        footprint = context + whole.reserved_bytes / MIB
        choice = _choose(candidates, policy, footprint)
        features = static_features(cast)
    shown = choice.candidate or candidates[-1]
    return Prediction(
        memory_mib=footprint,
        required_mib=shown.required_mib,
        required_upper_mib=shown.required_upper_mib,
        allocated_mib=whole.allocated_bytes / MIB,
        activations_mib=whole.activations_bytes / MIB,
        weights_mib=whole.weights_bytes / MIB,
        reserved_mib=whole.reserved_bytes / MIB,
        min_cap_mib=whole.min_cap_bytes / MIB,
        context_mib=context,
        latency_ms=whole.latency_ms,
        device_ms=whole.device_ms,
        host_ms=whole.host_ms,
        energy_j=whole.energy_j,
        device=device.product,
        runtime=runtime.asked.value,
        precision=case.precision.value,
        batch=case.batch,
        basis=_basis(runtime, clock),
        mig_profile=choice.profile,
        resource=None if choice.candidate is None else choice.candidate.resource,
        candidates=candidates,
        static_features=asdict(features),
        digest=graph.digest,
        format=graph.format,
        seconds=watch.read(),
        predictor_version=VERSION,
        notes=(*graph_notes(graph, case, folded), *_notes(runtime, clock, need, policy, choice)),
    )


@dataclass(frozen=True, slots=True)
class _Clock:
    """The operators' costs on the measured card, and the way to other cards and slices."""

    estimates: Estimates
    work: transfer.Work
    source: Hardware
    target: Hardware

    def on(self, part: Hardware | None = None) -> Estimates:
        """The estimates on the target, or on a slice of it."""
        return transfer.carry_over(self.estimates, self.work, self.source, self.target, part=part)


def _choose(candidates: tuple[Candidate, ...], policy: Policy, footprint_mib: float) -> Choice[Candidate]:
    if policy.rule is Rule.PAPER:
        return choose_by_paper(candidates, footprint_mib)
    return choose(candidates, policy)


def _basis(runtime: runtimes.Resolved, clock: _Clock) -> Basis:
    if runtime.is_proxy:
        return Basis.PROXY
    return Basis.MEASURED if clock.source.product == clock.target.product else Basis.TRANSFERRED


def graph_notes(graph: ModelGraph, case: Case, folded: int = 0) -> Iterator[str]:
    """What the model's file has to say on the figures: its door's notes, which network was priced, another dtype.

    `folded` is how many batch norms were folded for the runtime.
    """
    yield from graph.notes
    if folded == 1:
        yield "priced with 1 batch norm folded into the convolution before it, as ONNX Runtime runs it"
    elif folded:
        yield f"priced with {folded} batch norms folded into the convolutions before them, as ONNX Runtime runs them"
    elif graph.restored:
        norms, them = (f"{graph.restored} batch norms", "them") if graph.restored > 1 else ("1 batch norm", "it")
        yield f"priced with the {norms} that the exporter folded into convolutions, as PyTorch runs {them}"
    if graph.stored_dtype and graph.stored_dtype != case.precision.float_dtype:
        yield (
            f"the weights are stored as {graph.stored_dtype} and priced as {case.precision.float_dtype}, the precision "
            f"asked for ({case.precision})"
        )


def _onnxruntime_notes() -> Iterator[str]:
    from dippm.network.onnxruntime import load_calibration

    found = load_calibration()
    yield (
        f"memory is that of ONNX Runtime's arena with default options, bounded by {found.cases} measured cases; time "
        f"is told from {found.timed}, with a median error of {found.time_error_percent:.0f} %; energy is PyTorch's"
    )


def _notes(
    runtime: runtimes.Resolved, clock: _Clock, need: memory.Cap, policy: Policy, choice: Choice[Candidate]
) -> Iterator[str]:
    source, target = clock.source.product, clock.target.product
    if runtime.is_proxy:
        yield (
            f"the runtime {runtime.asked} has no rules of its own: {runtime.predicted} stands in for it, with a wider "
            "upper bound and no stated risk"
        )
    elif runtime.predicted is Runtime.ONNXRUNTIME:
        yield from _onnxruntime_notes()
    if source != target:
        low, high = transfer.table(clock.source.architecture, clock.target.architecture).band
        yield (
            f"time and energy were carried over from {source} to {target}, operator by operator: "
            f"expect {low:.2f} to {high:.2f} times the figures"
        )
    if need.workspace_bounded:
        yield f"convolution workspaces were never measured on {target}: the upper bound takes each at its largest"
    if not need.bound.calibrated:
        yield "the upper bound is uncalibrated: nothing like this model was measured"
    elif (
        need.bound.risk_percent is not None
        and need.bound.risk_percent > policy.oom_risk_percent
        and not runtime.is_proxy
    ):
        yield (
            f"the upper bound holds for a risk of {need.bound.risk_percent:g} %, not the {policy.oom_risk_percent:g} % "
            f"asked for: {need.bound.sample} measured families support no less"
        )
    if choice.candidate is None:
        yield f"no profile of {target} was chosen: {choice.reason}"
