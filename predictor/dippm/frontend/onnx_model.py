"""An ONNX file to a `ModelGraph`.

1. Read it without its weights and validate it (`onnx_file`).
2. Bind the batch and the shapes asked for; make every shape static (`onnx_fold`).
3. Express the nodes in Relax (`relax`).
4. Name them in the canonical vocabulary and put together what frameworks run as one operator
   (`onnx_steps`, `onnx_fuse`).
5. Number values and operators.

PyTorch's exporters fold batch norms into convolutions: an ONNX file describes the network as an ONNX runtime runs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx

from dippm.errors import InputShapeError
from dippm.frontend.inputs import InputSpec, asked_by_name
from dippm.frontend.onnx_file import OnnxFile, read_onnx
from dippm.frontend.onnx_fold import StaticGraph, fold, spec_of
from dippm.frontend.onnx_fuse import fuse
from dippm.frontend.onnx_steps import Scopes, Step, metadata, steps_of
from dippm.frontend.relax import express_onnx_in_relax
from dippm.frontend.scopes import source_of
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind


def graph_of_onnx(path: Path, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> ModelGraph:
    """The graph of an ONNX file at `batch`; see `dippm.frontend.load_graph`."""
    return graph_of_file(read_onnx(path, shown), batch=batch, inputs=inputs, shown=shown)


def graph_of_file(file: OnnxFile, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> ModelGraph:
    """The same for a model that is read and checked."""
    bound, file_batch = bind_inputs(file, batch, inputs, shown)
    try:
        static = fold(file, bound, file_batch=file_batch, batch=batch)
    except InputShapeError as error:
        raise (error if file_batch is None else _fixed_batch(shown, file_batch, batch)) from None
    outputs = [o.name for o in file.model.graph.output]
    if file_batch is not None and not any(static.specs[o].shape[:1] == (batch,) for o in outputs):
        raise _fixed_batch(shown, file_batch, batch)
    names = express_onnx_in_relax(static, bound, outputs, file.opset).names
    steps = fuse(steps_of(static), static, frozenset(outputs))
    return _number(steps, static, bound, outputs, batch, names)


def _fixed_batch(shown: str, file_batch: int, batch: int) -> InputShapeError:
    return InputShapeError(
        f"{shown} was exported at a fixed batch of {file_batch} and cannot be given a batch of {batch}: export it "
        f"with a dynamic batch (dynamic_axes or dynamic_shapes of torch.onnx.export), or ask for batch {file_batch}"
    )


def bind_inputs(
    file: OnnxFile, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str
) -> tuple[dict[str, TensorSpec], int | None]:
    """Shape and dtype of every model input at `batch`, and the batch that the file fixes where it is another one.

    Raises InputShapeError, naming the input and what is missing.
    """
    declared = [i for i in file.model.graph.input if i.name not in file.weights]
    asked = asked_by_name([i.name for i in declared], inputs, shown)
    bound: dict[str, TensorSpec] = {}
    file_batch: int | None = None
    for value in declared:
        dims = value.type.tensor_type.shape.dim
        own = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        given = asked.get(value.name)
        if given is not None:
            shape = (batch, *given.shape)
            if value.type.tensor_type.HasField("shape") and (
                len(own) != len(shape) or any(o is not None and o != s for o, s in zip(own[1:], shape[1:], strict=True))
            ):
                raise InputShapeError(
                    f"input {value.name!r} of {shown} is {_spelled(dims)}, "
                    f"which {given.shape} (without the batch) does not fit"
                )
        elif not own:
            shape = ()
        elif any(d is None for d in own[1:]):
            raise InputShapeError(
                f"input {value.name!r} of {shown} is {_spelled(dims)}: say what is missing, without the batch, with "
                f"--input {value.name}=... (spec.model.inputs in an InferenceJob)"
            )
        else:
            shape = (batch, *(d for d in own[1:] if d is not None))
        if own and own[0] is not None and own[0] != batch:
            file_batch = own[0]
        dtype = spec_of(onnx.helper.make_tensor_type_proto(value.type.tensor_type.elem_type, [])).dtype
        bound[value.name] = TensorSpec(shape, dtype)
    if not bound:
        raise InputShapeError(f"{shown} has no input: is it a model?")
    return bound, file_batch


def _spelled(dims: object) -> str:
    parts = [str(d.dim_value) if d.HasField("dim_value") else d.dim_param or "?" for d in dims]  # type: ignore[attr-defined]
    return "(" + ", ".join(parts) + ")"


def _number(
    steps: list[Step],
    static: StaticGraph,
    bound: dict[str, TensorSpec],
    outputs: list[str],
    batch: int,
    relax_names: Mapping[str, tuple[str, ...]],
) -> ModelGraph:
    values: list[Value] = []
    ids: dict[str, int] = {}

    def add(name: str, value: Value) -> int:
        ids[name] = len(values)
        values.append(value)
        return ids[name]

    def read(name: str) -> int:
        if name in ids:
            return ids[name]
        if name not in static.weights or (name in static.constants and static.constants[name].ndim == 0):
            return add(name, Value(static.specs[name], ValueKind.CONSTANT, name=name))
        return add(name, Value(static.weights[name], ValueKind.PARAMETER, name=name))

    for name, spec in bound.items():
        add(name, Value(spec, ValueKind.INPUT, name=name))
    scopes = Scopes()
    operators: list[Operator] = []
    for step in steps:
        operands = tuple(read(i) for i in step.inputs)
        alias = operands[0] if step.shares_storage and operands else None
        results = tuple(
            add(o, Value(static.specs[o], ValueKind.RESULT, len(operators), alias if n == 0 else None, o))
            for n, o in enumerate(step.outputs)
        )
        node = step.nodes[-1]
        operators.append(
            Operator(
                kind=step.kind,
                target=step.target,
                inputs=operands,
                outputs=results,
                attributes=step.attributes,
                scope=scopes.of(node),
                source=source_of({"stack_trace": metadata(node, "pkg.torch.onnx.stack_trace")}),
                relax=tuple(r for n in step.nodes for r in relax_names.get(n.output[0], ())),
            )
        )
    return ModelGraph(
        values=tuple(values),
        operators=tuple(operators),
        inputs=tuple(ids[n] for n in bound),
        outputs=tuple(read(o) for o in outputs),
        batch=batch,
        format="onnx",
    )
