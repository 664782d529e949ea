"""An ONNX file to a `ModelGraph`.

1. Read it without its weights and validate it (`file`).
2. Bind the batch and the shapes asked for; make every shape static (`fold`; `rebatch` where the file fixes another
   batch), but leave what PyTorch computes in every pass (`computed`).
3. Put together what frameworks run as one operator and exporters take apart (`fuse`, `attention`).
4. Put back what exporters fold or leave away, where they tell of it (`restore`, `no_ops`, `in_place`).
5. Write it down as a program of ATen calls (`program`), which goes the way of a `.pt2` from there on: expressed in
   Relax, its values and operators numbered (`exported_program`).

So the graph is of the network as PyTorch runs it. A runtime that folds batch norms is priced on the folded graph
(`dippm.folding`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from dippm.errors import InputShapeError
from dippm.frontend.exported_program import graph_of_program
from dippm.frontend.inputs import InputSpec, asked_by_name
from dippm.frontend.onnx.attention import fuse_attention
from dippm.frontend.onnx.batched_values import FixedBatch
from dippm.frontend.onnx.computed import with_computed
from dippm.frontend.onnx.file import OnnxFile, read_onnx
from dippm.frontend.onnx.fold import fold
from dippm.frontend.onnx.fuse import fuse
from dippm.frontend.onnx.in_place import mark_in_place
from dippm.frontend.onnx.layout import channels_first
from dippm.frontend.onnx.no_ops import put_clones_back
from dippm.frontend.onnx.program import program_of
from dippm.frontend.onnx.rebatch import fold_rebatched
from dippm.frontend.onnx.restore import notes_on, put_back, restored_in
from dippm.frontend.onnx.step_graph import without_the_dead
from dippm.frontend.onnx.steps import steps_of
from dippm.frontend.onnx.types import dtype_of
from dippm.graph import ModelGraph, TensorSpec


def graph_of_onnx(path: Path, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> ModelGraph:
    """The graph of an ONNX file at `batch`; see `dippm.frontend.load_graph`."""
    return graph_of_file(read_onnx(path, shown), batch=batch, inputs=inputs, shown=shown)


def graph_of_file(file: OnnxFile, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> ModelGraph:
    """The same for a model that is read and checked."""
    binding = bind_inputs(file, batch, inputs, shown)
    bound, file_batch = binding.inputs, binding.file_batch
    outputs = [o.name for o in file.model.graph.output]
    wanted = frozenset(outputs)
    if file_batch is None:
        static = fold(file, bound)
    else:
        try:
            static = fold_rebatched(file, binding.own, bound, file_batch=file_batch, batch=batch)
        except FixedBatch as fixed:
            raise _fixed_batch(shown, file_batch, batch, str(fixed)) from None
        if not any(static.specs[o].shape[:1] == (batch,) for o in outputs):
            raise _fixed_batch(shown, file_batch, batch)
    if file.by_pytorch:
        static.nodes = with_computed(static)
    steps = steps_of(static)
    if not file.by_pytorch:
        steps, bound = channels_first(steps, static, bound, wanted)
    steps = put_clones_back(steps, static, wanted)
    steps = fuse_attention(fuse(steps, static, wanted), static, wanted)
    steps = put_back(without_the_dead(steps, wanted), static)
    mark_in_place(steps, static, wanted, by_pytorch=file.by_pytorch)
    graph = graph_of_program(program_of(steps, static, bound, outputs), batch=batch, format="onnx")
    return replace(
        graph,
        restored=restored_in(steps),
        notes=(*notes_on(file.model, steps), *static.notes),
        open_batch=binding.open_batch,
    )


@dataclass(frozen=True, slots=True)
class Binding:
    """The inputs of a model at a batch, which is bound to the first dimension of each that has any."""

    inputs: dict[str, TensorSpec]
    """Shape (with the batch) and dtype by name."""
    own: dict[str, TensorSpec]
    """The same at the batch of the file."""
    file_batch: int | None
    """The batch that the file fixes, where it is not the one asked for."""
    open_batch: bool
    """Whether the file leaves open what was bound in the first input that has a dimension.

    That one says what the batch is: others beside it may have a first dimension that is none (steps, layers, tokens).
    """


def _fixed_batch(shown: str, file_batch: int, batch: int, why: str = "") -> InputShapeError:
    return InputShapeError(
        f"{shown} was exported at a fixed batch of {file_batch} and cannot be given a batch of {batch}"
        f"{f' ({why})' if why else ''}: export it with a dynamic batch (dynamic_axes or dynamic_shapes of "
        f"torch.onnx.export), or ask for batch {file_batch}"
    )


def bind_inputs(file: OnnxFile, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> Binding:
    """Bind every model input to `batch`. A first dimension of 0 is open like one that is a symbol, or not said.

    One that the file fixes at another size than that of the first input is no batch, and stays as it is.

    Raises InputShapeError, naming the input and what is missing.
    """
    declared = [i for i in file.model.graph.input if i.name not in file.weights]
    asked = asked_by_name([i.name for i in declared], inputs, shown)
    bound: dict[str, TensorSpec] = {}
    own: dict[str, TensorSpec] = {}
    said: list[int | None] = []
    """The first dimension of each input that has one, as the file fixes it; None where it is open."""
    for value in declared:
        dims = value.type.tensor_type.shape.dim
        sizes = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        rest = tuple(s for s in sizes[1:] if s is not None)
        dtype = dtype_of(value.type.tensor_type.elem_type)
        given = asked.get(value.name)
        if given is not None:
            if value.type.tensor_type.HasField("shape") and (
                len(sizes) != 1 + len(given.shape)
                or any(s is not None and s != g for s, g in zip(sizes[1:], given.shape, strict=True))
            ):
                raise InputShapeError(
                    f"input {value.name!r} of {shown} is {_spelled(dims)}, "
                    f"which {given.shape} (without the batch) does not fit"
                )
            rest = given.shape
        elif not sizes:
            bound[value.name] = own[value.name] = TensorSpec((), dtype)
            continue
        elif len(rest) < len(sizes) - 1:
            raise InputShapeError(
                f"input {value.name!r} of {shown} is {_spelled(dims)}: say what is missing, without the batch, with "
                f"--input {value.name}=... (spec.model.inputs in an InferenceJob)"
            )
        said.append((sizes[0] or None) if sizes else None)
        first = said[-1]
        bound[value.name] = TensorSpec((batch if first in (None, said[0]) else first or batch, *rest), dtype)
        own[value.name] = TensorSpec((first or said[0] or batch, *rest), dtype)
    if not bound:
        raise InputShapeError(f"{shown} has no input: is it a model?")
    file_batch = said[0] if said else None
    return Binding(
        bound, own, file_batch if file_batch != batch else None, open_batch=bool(said) and file_batch is None
    )


_NUMBERED = re.compile(r"unk__\d+")
"""What tf2onnx calls a size that TensorFlow left open."""


def _spelled(dims: object) -> str:
    parts = [
        str(d.dim_value) if d.HasField("dim_value") else _NUMBERED.sub("?", d.dim_param) or "?"
        for d in dims  # type: ignore[attr-defined]  # a repeated protobuf field
    ]
    return "(" + ", ".join(parts) + ")"
