"""The ONNX file of a case: the zoo's module, filled and in the case's precision, through PyTorch's exporters.

The TorchScript-based exporter traces a pass of two samples with the batch axis left open, so that a large batch costs
no more than a small one; a file of fixed batch is that file with its inputs bound. What it cannot trace goes through
the dynamo exporter, which computes nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dippm.measure.onnxruntime_options import OrtOptions
from dippm.zoo.build import batch_statistics, construct, example_inputs, fill, float_dtype
from dippm.zoo.case import ZooCase

OPSET = 18
TRACE_BATCH = 2
BATCH = "batch"


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """An exported file and what was done for it."""

    path: Path
    exporter: str
    """The exporter that made it, which may not be the one asked for."""
    batch_axis: str
    opset: int
    fell_back: str
    """Why it was not the exporter asked for; empty if it was."""
    inputs: tuple[str, ...]
    """Names of the inputs, in the module's order."""
    file_mib: float
    nodes: int
    seconds: float


def export(case: ZooCase, folder: Path) -> OnnxFile:
    """Writes the case's network into `folder`, in a process of its own that sees no GPU: exporters may make a CUDA
    context, after which nothing that is forked from here could. One thread: those of a pool do not survive a fork, and
    would be waited for. Raises RuntimeError with what the second exporter said if both fail."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
            torch.set_num_threads(1)
            answer: dict[str, Any] = asdict(_export(case, folder))
            answer["path"] = str(answer["path"])
        except Exception as error:  # the parent raises it again
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        try:
            os.write(write, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        body = pipe.read()
    _, status = os.waitpid(child, 0)
    if not body:
        raise RuntimeError(f"the process of the export died (exit code {os.waitstatus_to_exitcode(status)})")
    found = json.loads(body)
    if "error" in found:
        raise RuntimeError(found["error"])
    return OnnxFile(**{**found, "path": Path(found["path"]), "inputs": tuple(found["inputs"])})


def _export(case: ZooCase, folder: Path) -> OnnxFile:
    import onnx

    begun, asked = time.perf_counter(), OrtOptions.of(case.options)
    module = _filled(case)
    names = tuple(f"input{i}" if i else "input" for i in range(len(case.network.inputs)))
    path, reason = folder / "model.onnx", ""
    with torch.no_grad(), _quiet():
        try:
            if asked.exporter == "dynamo":
                _export_dynamo(module, case, names, path, asked.batch_axis)
                made = asked
            else:
                _trace(module, case, names, path, asked.batch_axis)
                made = asked
        except Exception as error:  # an exporter fails in many ways; the row says how, and the other one is asked
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            made = OrtOptions(exporter="dynamo", batch_axis="fixed")
            _export_dynamo(module, case, names, path, made.batch_axis)
    return OnnxFile(
        path, made.exporter, made.batch_axis, OPSET, reason, names,
        path.stat().st_size / 2**20, len(onnx.load(str(path)).graph.node), time.perf_counter() - begun,
    )  # fmt: skip


def _filled(case: ZooCase) -> nn.Module:
    """The module on the CPU: filled in fp32, batch-norm statistics of a small pass, then cast as `half()` does."""
    module = construct(case.network)
    fill(module)
    module.requires_grad_(False)
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
        inputs = example_inputs(case.network.inputs, TRACE_BATCH, torch.device("cpu"), torch.float32, seed=2)
        with torch.no_grad(), batch_statistics(module):
            module(*inputs)
    return module.to(float_dtype(case.precision))


def _trace(module: nn.Module, case: ZooCase, names: tuple[str, ...], path: Path, batch_axis: str) -> None:
    import onnx

    inputs = _inputs(case, TRACE_BATCH)
    torch.onnx.export(
        module, inputs, str(path), dynamo=False, opset_version=OPSET, input_names=list(names),
        dynamic_axes={name: {0: BATCH} for name in names},
    )  # fmt: skip
    if batch_axis == "fixed":
        model = onnx.load(str(path))
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[0].dim_value = case.batch
        onnx.save(model, str(path))


def _export_dynamo(module: nn.Module, case: ZooCase, names: tuple[str, ...], path: Path, batch_axis: str) -> None:
    dynamic = batch_axis == "dynamic"
    inputs = _inputs(case, TRACE_BATCH if dynamic else case.batch)
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in names) if dynamic else None
    torch.onnx.export(
        module, inputs, str(path), dynamo=True, opset_version=OPSET, input_names=list(names), dynamic_shapes=shapes,
        external_data=False, verbose=False,
    )  # fmt: skip


def _inputs(case: ZooCase, batch: int) -> tuple[Any, ...]:
    return example_inputs(case.network.inputs, batch, torch.device("cpu"), float_dtype(case.precision))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters print whole graphs when they fail, and advice when they do not."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
