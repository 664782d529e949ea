"""`dippm measure --model`: the labels of one model file on this machine's GPU, beside what is predicted of it.

The file is run, as it would be served: a `.pt2` and a TorchScript file by PyTorch, an ONNX file by ONNX Runtime.
Weights stay in the dtype that the file has them in. Files that carry Python code (pickles) are refused before anything
is run.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dippm.artifact import Artifact, open_artifact
from dippm.case import Case, Precision
from dippm.errors import DippmError, InputShapeError, ModelFormatError, UnknownDevice
from dippm.frontend import load_graph, parse_input
from dippm.graph import ModelGraph
from dippm.measure.nvml import open_gpu, require_gpu
from dippm.prediction import Prediction
from dippm.predictor import predict_graph
from dippm.profiles import resolve_device
from dippm.runtimes import USUAL

RUN_BY_TORCH = ("pt2", "torchscript")
PRECISIONS = {"float16": Precision.FP16, "bfloat16": Precision.BF16}
LABELS: Mapping[str, str] = {
    "memory_mib": "MiB", "weights_mib": "MiB", "allocated_mib": "MiB", "activations_mib": "MiB", "reserved_mib": "MiB",
    "min_cap_mib": "MiB", "context_mib": "MiB", "latency_ms": "ms", "device_ms": "ms", "host_ms": "ms", "energy_j": "J",
}  # fmt: skip
"""What is shown, in this order, as far as it was measured; `memory_mib` is what `nvidia-smi` shows of the process."""
MIB = 2.0**20


class MissingRuntime(DippmError):
    """What runs a file of this format is not installed."""

    reason = "MissingPackage"


@dataclass(frozen=True, slots=True)
class Measured:
    """Labels of one file on one GPU, and what was predicted of it there."""

    labels: dict[str, float]
    prediction: Prediction | None
    """None where the catalogue does not know this GPU."""
    gpu: str
    runtime: str
    notes: tuple[str, ...]


def run(args: argparse.Namespace) -> int:
    """Measures `args.model` and prints its labels."""
    check_runtime(open_artifact(args.model))
    if args.batch is None or args.batch < 1:
        raise InputShapeError("the batch size is missing: say it with --batch, for example --batch 32")
    found = measure_file(args.model, batch=args.batch, inputs=args.input)
    print(json.dumps(to_dict(found), indent=2) if args.json else to_text(found))
    return 0


def measure_file(path: Path, *, batch: int, inputs: Sequence[str] | None = None) -> Measured:
    """Labels of the file on the first GPU, at `batch`. Raises DippmError, one sentence for the user."""
    artifact = open_artifact(path)
    check_runtime(artifact)
    graph = load_graph(artifact, batch=batch, inputs=tuple(map(parse_input, inputs)) if inputs else None)
    require_gpu()
    by_torch = artifact.format in RUN_BY_TORCH
    if by_torch and not torch.cuda.is_available():
        raise MissingRuntime(
            f"PyTorch {torch.__version__} is a build without CUDA, or finds no GPU: install one made for this driver "
            "(pytorch.org/get-started)"
        )
    gpu = open_gpu().describe()["gpu"].removeprefix("NVIDIA ").replace(" ", "-")
    precision = PRECISIONS.get(stored_dtype(graph), Precision.FP32)
    prediction, notes = _predicted(graph, Case(batch, precision, device=gpu))
    labels = _by_torch(artifact, graph, precision) if by_torch else _by_onnxruntime(path, graph)
    return Measured(labels, prediction, gpu, USUAL[artifact.format].value, notes)


def check_runtime(artifact: Artifact) -> None:
    """Raises MissingRuntime or ModelFormatError where nothing here can run the file; pickles go to `load_graph`, which
    says why they are not run."""
    if artifact.format in (*RUN_BY_TORCH, "pickle"):
        return
    if artifact.format != "onnx":
        raise ModelFormatError(
            f"{artifact.uri} is {artifact.spoken}, which is not run here: export it to ONNX, or to a .pt2"
        )
    if find_spec("onnxruntime") is None:
        raise MissingRuntime(
            f"{artifact.uri} is an ONNX model, which ONNX Runtime runs, and that is not installed: "
            "pip install onnxruntime-gpu"
        )


def stored_dtype(graph: ModelGraph) -> str:
    """The float dtype in which the file holds its weights."""
    held = (graph.values[i].spec.dtype for i in graph.parameter_ids)
    return graph.stored_dtype or next((dtype for dtype in held if "float" in dtype), "float32")


def _predicted(graph: ModelGraph, case: Case) -> tuple[Prediction | None, tuple[str, ...]]:
    try:
        device = resolve_device(case.device)
    except UnknownDevice as error:
        return None, (f"nothing is predicted beside it: {error}",)
    prediction = predict_graph(graph, case, device=device)
    return prediction, prediction.notes


def loaded_by_torch(artifact: Artifact, device: torch.device) -> Callable[..., Any]:
    """The model as PyTorch runs it, on `device`. A `.pt2` has been checked by `load_graph` before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if artifact.format == "torchscript":
            return torch.jit.load(str(artifact.path), map_location=device).eval()  # type: ignore[no-untyped-call, no-any-return]
        from torch.export.passes import move_to_device_pass

        return move_to_device_pass(torch.export.load(artifact.path), str(device)).module()


def example(graph: ModelGraph, device: torch.device) -> tuple[torch.Tensor, ...]:
    """Inputs of the graph's shapes: standard normals, or zeros (an index that every table has)."""
    tensors = []
    for index in graph.inputs:
        spec = graph.values[index].spec
        dtype = getattr(torch, spec.dtype)
        made = torch.randn(spec.shape) if dtype.is_floating_point else torch.zeros(spec.shape)
        tensors.append(made.to(device, dtype))
    return tuple(tensors)


def _by_torch(artifact: Artifact, graph: ModelGraph, precision: Precision) -> dict[str, float]:
    from dippm.measure import counters
    from dippm.measure.memory import Loaded, measure_memory, release, set_precision
    from dippm.measure.operators import record_kernels, record_memory
    from dippm.measure.timing import measure_times

    device, gpu = torch.device("cuda", 0), open_gpu()
    set_precision(precision)
    release()
    start = counters.read().allocated
    model = loaded_by_torch(artifact, device)
    weights = counters.read().allocated - start
    inputs = example(graph, device)
    release()
    here = counters.read()

    def forward() -> Any:
        with torch.inference_mode():
            return model(*inputs)

    loaded = Loaded(forward, weights, here.allocated - start - weights, here.reserved, start)
    try:
        memory = measure_memory(loaded, gpu)
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise DippmError(f"{artifact.uri} does not fit on this GPU at that batch: {reason}") from None
    record = record_memory(forward)
    record.kernel_us, record.kernels = record_kernels(forward, len(record.calls))
    times = measure_times(forward, gpu, sum(record.kernel_us), sum(record.kernels))
    found: dict[str, Any] = {**asdict(memory), **asdict(times), "memory_mib": memory.footprint_mib}
    found["weights_mib"] = memory.weights_mib - memory.inputs_mib
    return {name: found[name] for name in LABELS if found.get(name) is not None}


def _by_onnxruntime(path: Path, graph: ModelGraph) -> dict[str, float]:
    from dippm.measure.onnxruntime_case import confirmed
    from dippm.measure.onnxruntime_options import OrtOptions
    from dippm.measure.onnxruntime_session import Request, trial

    names = [graph.values[i].name for i in graph.inputs]
    arrays = {n: x.numpy() for n, x in zip(names, example(graph, torch.device("cpu")), strict=True)}
    request = Request(path, OrtOptions(), arrays, timed=True, complete=True, search=True)
    free = trial(request)
    if free["status"] != "ok":
        raise DippmError(f"ONNX Runtime could not run {path}: {free['reason']}")
    found = {**free, **confirmed(request, free)}
    cap = {} if found["min_cap_mib"] is None else {"min_cap_mib": found["min_cap_mib"] + found["inputs_mib"]}
    return {
        "memory_mib": found["process_mib"], **cap, "context_mib": found["beside_arena_mib"],
        "latency_ms": found["latency_ms"],
    }  # fmt: skip


def to_dict(found: Measured) -> dict[str, Any]:
    """The JSON object: `measured` and `predicted` by label, and what they are of."""
    predicted = found.prediction
    return {
        "gpu": found.gpu, "runtime": found.runtime, "measured": found.labels,
        "predicted": None if predicted is None else {name: getattr(predicted, name) for name in LABELS},
        "basis": None if predicted is None else predicted.basis.value,
        "required_upper_mib": None if predicted is None else predicted.required_upper_mib, "notes": list(found.notes),
    }  # fmt: skip


def to_text(found: Measured) -> str:
    """The same for people: one line a label."""
    lines = [f"{found.gpu}, runtime {found.runtime}", "", f"{'':16s}{'MEASURED':>12s}{'PREDICTED':>12s}{'ERROR':>9s}"]
    for name, value in found.labels.items():
        unit = LABELS[name]
        shown = f"{value:,.0f}" if unit == "MiB" else f"{value:,.3f}"
        line = f"{name:16s}{shown:>12s}"
        if found.prediction is not None:
            guess = float(getattr(found.prediction, name))
            told = f"{guess:,.0f}" if unit == "MiB" else f"{guess:,.3f}"
            error = f"{100 * (guess - value) / value:+.1f} %" if value else ""
            line += f"{told:>12s}{error:>9s}"
        lines.append(line)
    return "\n".join([*lines, *(f"\nnote: {note}" for note in found.notes)])
