"""A TensorFlow Lite file to a `ModelGraph`: TVM's own frontend, then the ONNX door's canonical names.

1. The flatbuffer is mapped and looked at: inputs, operators, quantisation. Weights are typed and not read.
2. `relax.express_tflite_in_relax` gives Relax calls at the batch asked for.
3. `tflite_onnx` writes them as an ONNX graph, channels first as PyTorch has them; that goes through the ONNX door.
"""

from __future__ import annotations

import importlib.util
import mmap
from pathlib import Path
from typing import Any

from dippm.errors import DippmError, InputShapeError, ModelFormatError, UnsupportedOperator
from dippm.frontend.inputs import MAX_DIM, MAX_NUMEL, InputSpec, asked_by_name
from dippm.frontend.onnx.file import checked
from dippm.frontend.onnx.model import graph_of_file
from dippm.frontend.relax.tflite import express_tflite_in_relax
from dippm.frontend.tensorflow_patterns import put_together
from dippm.frontend.tflite_onnx import onnx_of
from dippm.graph import ModelGraph
from dippm.importable import TFLITE_INSTALL

_QUANTISED = ("INT8", "UINT8", "INT16", "INT4")


def graph_of_tflite(path: Path, *, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str) -> ModelGraph:
    """The graph of a TFLite file at `batch`; see `dippm.frontend.load_graph`."""
    if importlib.util.find_spec("tflite") is None:
        raise ModelFormatError(f"{shown} is a TensorFlow Lite model, which needs tflite: {TFLITE_INSTALL}")
    import tflite

    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    model = tflite.Model.GetRootAsModel(mapped, 0)
    if model.SubgraphsLength() < 1 or model.Subgraphs(0).OperatorsLength() < 1:
        raise ModelFormatError(f"{shown} is a TensorFlow Lite file without operators")
    graph = model.Subgraphs(0)
    _check(model, graph, shown)
    shapes, fixed = _bound(graph, batch, inputs, shown)
    try:
        function = express_tflite_in_relax(model, shapes)
    except DippmError:
        raise
    except NotImplementedError as error:
        raise UnsupportedOperator(f"{shown} has an operator that is not supported: {_first_line(error)}") from error
    except Exception as error:
        # TVM's converters raise whatever comes up where a batch that the file fixes meets another one.
        if fixed is None:
            raise
        raise _fixed_batch(shown, fixed, batch) from error
    if fixed is not None and not any(s.shape[:1] == (batch,) for c in function.calls[-3:] for s in c.specs):
        raise _fixed_batch(shown, fixed, batch)
    converted = onnx_of(function)
    put_together(converted)
    return graph_of_file(checked(converted, shown), batch=batch, inputs=None, shown=shown)


def _bound(
    graph: Any, batch: int, inputs: tuple[InputSpec, ...] | None, shown: str
) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Shape of each input with the batch, and the batch that the file fixes where it is another one."""
    tensors = [graph.Tensors(graph.Inputs(i)) for i in range(graph.InputsLength())]
    names = [t.Name().decode(errors="replace") for t in tensors]
    asked = asked_by_name(names, inputs, shown)
    shapes: dict[str, tuple[int, ...]] = {}
    fixed: int | None = None
    for name, tensor in zip(names, tensors, strict=True):
        own = [tensor.Shape(i) for i in range(tensor.ShapeLength())]
        signature = [tensor.ShapeSignature(i) for i in range(tensor.ShapeSignatureLength())] or own
        given = asked.get(name)
        if given is not None and (
            len(given.shape) + 1 != len(own)
            or any(s not in (-1, g) for s, g in zip(signature[1:], given.shape, strict=True))
        ):
            raise InputShapeError(
                f"input {name!r} of {shown} is {tuple(own)}, which {given.shape} (without the batch) does not fit"
            )
        if given is None and any(s == -1 for s in signature[1:]):
            raise InputShapeError(
                f"input {name!r} of {shown} has no fixed shape: say it without the batch with --input {name}=... "
                "(spec.model.inputs in an InferenceJob)"
            )
        shapes[name] = (batch, *(given.shape if given is not None else own[1:])) if own else ()
        if own and signature[0] not in (-1, batch):
            fixed = signature[0]
    return shapes, fixed


def _check(model: Any, graph: Any, shown: str) -> None:
    """Raise for quantised models, custom operators and nonsense."""
    import tflite

    types = {v: k for k, v in vars(tflite.TensorType).items() if isinstance(v, int)}
    for index in range(graph.TensorsLength()):
        tensor = graph.Tensors(index)
        numel = 1
        for dim in range(tensor.ShapeLength()):
            if not 0 <= tensor.Shape(dim) <= MAX_DIM:
                raise ModelFormatError(f"{shown} is not valid: a tensor has a dimension of {tensor.Shape(dim)}")
            numel *= tensor.Shape(dim)
        if numel > MAX_NUMEL:
            raise ModelFormatError(f"{shown} is not valid: a tensor has {numel} elements")
        kind, quantised = types.get(tensor.Type(), "?"), tensor.Quantization()
        if kind in _QUANTISED and quantised is not None and quantised.ScaleLength():
            raise UnsupportedOperator(
                f"{shown} is quantised ({kind.lower()}), and no quantised arithmetic was measured: convert it without "
                "converter.optimizations"
            )
    for index in range(model.OperatorCodesLength()):
        code = model.OperatorCodes(index)
        if (custom := code.CustomCode()) is not None:
            name = custom.decode(errors="replace")
            raise UnsupportedOperator(f"{shown} has a custom operator {name}, which is not supported")


def _fixed_batch(shown: str, file_batch: int, batch: int) -> InputShapeError:
    return InputShapeError(
        f"{shown} was exported at a fixed batch of {file_batch} and cannot be given a batch of {batch}: convert it "
        f"from a model whose batch is None, or ask for batch {file_batch}"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[-1][:200] if text else type(error).__name__
