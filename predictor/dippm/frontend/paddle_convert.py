"""A PaddlePaddle inference model to ONNX, by paddle2onnx; run in the converter's process, beside nothing of ours.

1. Read the program: `.json` (PIR, of Paddle 3), or `.pdmodel` (a ProgramDesc, of Paddle 2), which Paddle translates.
   Never by `paddle.load`: it unpickles what is a pickle.
2. Refuse by name what runs code that is not in it (`py_func`, custom operators).
3. Convert it without its weights, and give the parameters that it names the types that it states; `paddle_onnx`
   puts right what is written otherwise than the program has it.

The weights (`.pdiparams`) are never opened, and need not be there.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import paddle
import paddle2onnx

from dippm.errors import ModelFormatError
from dippm.frontend.convert_child import Converted
from dippm.frontend.paddle_onnx import with_biases, without_identities
from dippm.frontend.paddle_program import check, checked_operators, damaged, parameters

_OPSET = 17
"""paddle2onnx takes a later one by itself where an operator asks for it."""
_PRICED = "priced operator by operator as paddle2onnx writes it: PaddlePaddle itself may fuse more of them"


def convert(path: Path, shown: str) -> Converted:
    """The program as ONNX; its weights have shapes and no data.

    Raises UnsafeModel, UnsupportedOperator or ModelFormatError.
    """
    content = path.read_bytes()
    if content.lstrip()[:1] != b"{":
        content = _translated(content, shown)
    operators = checked_operators(content, shown)
    Path("program.json").write_bytes(content)
    exported = paddle2onnx.export(
        "program.json", "", opset_version=_OPSET, enable_onnx_checker=False, enable_optimize=False, optimize_tool="None"
    )
    if not exported:
        raise ModelFormatError(f"{shown} cannot be converted to ONNX by paddle2onnx {paddle2onnx.__version__}")
    model = onnx.ModelProto.FromString(exported)
    typed = parameters(operators, shown)
    without_identities(model.graph)
    with_biases(model.graph, typed)
    read = {name for node in model.graph.node for name in node.input}
    for name, (element, dims) in typed.items():
        if name in read:
            kind = onnx.TensorProto.DataType.Value(element)
            model.graph.initializer.append(onnx.TensorProto(name=name, data_type=kind, dims=dims))
    return Converted(model.SerializeToString(), (_PRICED,))


def _translated(content: bytes, shown: str) -> bytes:
    """A ProgramDesc as PIR's JSON."""
    with paddle.pir_utils.OldIrGuard():
        try:
            old = paddle.static.deserialize_program(content)
        except Exception as error:  # Paddle's C++ raises what it calls InvalidArgument, as several Python classes
            raise damaged(shown) from error
        for block in old.blocks:
            for operator in block.ops:
                check("pd_op", operator.type, shown)
        new = paddle.pir.translate_to_pir(old.desc)
    with paddle.pir_utils.IrGuard():
        paddle.save(new, "translated.json")
    return Path("translated.json").read_bytes()
