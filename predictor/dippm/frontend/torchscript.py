"""A TorchScript file to a `ModelGraph`: its calls are followed on the meta device and written down.

A TorchScript graph calls submodules by name, so the module scopes of the original are still there. It is interpreted
once: numbers and shapes are computed, branches and loops taken as the shapes say, and each ATen call that touches a
tensor of the model becomes a node of a flat graph (`script_interpreter`), which then takes the path of a `.pt2`.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any

import torch

from dippm.errors import InputShapeError, ModelFormatError, UnsupportedOperator
from dippm.frontend.exported_program import Program, graph_of_module, graph_of_program
from dippm.frontend.inputs import InputSpec, asked_by_name, fixed_batch
from dippm.frontend.script_interpreter import record
from dippm.frontend.script_nodes import WAY_OUT
from dippm.graph import ModelGraph

LOADED_BYTES = 256 << 20
"""Larger files are loaded onto the meta device first. Constants have no data there, which loading compares and some
models read; where that fails, and for smaller files, the weights are read."""


def graph_of_torchscript(path: Path, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> ModelGraph:
    """The graph of a TorchScript file at `batch`; see `dippm.frontend.load_graph`.

    A TorchScript file does not say what shapes it takes: `inputs` are needed.
    """
    device = "meta" if path.stat().st_size > LOADED_BYTES else "cpu"
    try:
        program = _recorded(path, device, batch, inputs, shown)
    except (UnsupportedOperator, RuntimeError):
        if device == "cpu":
            raise
        program = _recorded(path, "cpu", batch, inputs, shown)
    try:
        graph = graph_of_program(program, batch=batch, format="torchscript")
    except UnsupportedOperator as error:  # a fused call that only the script takes, e.g. a transformer's fast path
        raise UnsupportedOperator(f"{error} in the scripted model {shown}: {WAY_OUT}") from None
    if not any(graph.values[o].spec.shape[:1] == (batch,) for o in graph.outputs):
        first_dim = graph.values[graph.outputs[0]].spec.shape[:1] if graph.outputs else ()
        raise fixed_batch(shown, first_dim[0] if first_dim else 1, batch)
    return graph


def _recorded(path: Path, device: str, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> Program:
    try:
        module = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError, IndexError) as error:
        if device == "meta":
            raise RuntimeError("not loadable without data") from error
        first = (str(error).strip() or "unknown").splitlines()[0]
        raise ModelFormatError(f"{shown} is a damaged TorchScript file: {first[:200]}") from None
    names = [i.debugName().removesuffix(".1") for i in list(module.graph.inputs())[1:]]
    examples = _examples(names, batch, inputs, shown)
    try:
        return record(module, examples)
    except (ArithmeticError, AttributeError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # What the language can say and the interpreter does not follow ends as any of these.
        raise UnsupportedOperator(
            f"{shown} holds scripted code that cannot be followed ({type(error).__name__}): {WAY_OUT}"
        ) from error


def graph_of_pickle(path: Path, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> ModelGraph:
    """The graph of a pickled module that is trusted: loading it runs its code."""
    try:
        module = torch.load(path, map_location="meta", weights_only=False)
    except Exception as error:
        # Unpickling runs arbitrary code, which raises arbitrary exceptions (mostly: a class that is not importable).
        raise ModelFormatError(f"{shown} cannot be unpickled here: {type(error).__name__}: {error}") from None
    if not isinstance(module, torch.nn.Module):
        raise ModelFormatError(f"{shown} holds {type(module).__name__}, not a module: weights alone are no model")
    accepted = signature(module.forward).parameters.values()
    names = [p.name for p in accepted if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    examples = _examples(names, batch, inputs, shown)
    try:
        return graph_of_module(module.eval(), examples, batch=batch)
    except RuntimeError as error:
        raise InputShapeError(f"{shown} does not take these inputs: {str(error).splitlines()[0][:200]}") from None


def _examples(names: list[str], batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> list[torch.Tensor]:
    """Meta tensors for the inputs, in the model's order."""
    if not inputs:
        raise InputShapeError(
            f"{shown} does not say what shapes it takes: give each input's without the batch, e.g. --input 3,224,224 "
            "(spec.model.inputs in an InferenceJob)"
        )
    asked = asked_by_name(names, inputs, shown) if names else {str(n): s for n, s in enumerate(inputs)}
    ordered = [asked[n] for n in names if n in asked] if names else list(inputs)
    return [torch.empty((batch, *s.shape), dtype=_dtype(s, shown), device="meta") for s in ordered]


def _dtype(spec: InputSpec, shown: str) -> torch.dtype:
    dtype: Any = getattr(torch, spec.dtype or "float32", None)
    if not isinstance(dtype, torch.dtype):
        raise InputShapeError(f"input {spec.name or list(spec.shape)} of {shown} has an unknown dtype {spec.dtype!r}")
    return dtype
