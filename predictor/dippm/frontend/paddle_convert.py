"""A PaddlePaddle inference model to ONNX, by paddle2onnx; run in the converter's process, beside nothing of ours."""

from __future__ import annotations

from pathlib import Path

import paddle2onnx

from dippm.errors import ModelFormatError
from dippm.frontend.convert_child import Converted

_OPSET = 17


def convert(path: Path, shown: str) -> Converted:
    """The program as ONNX without its weights.

    Raises ModelFormatError.
    """
    onnx = paddle2onnx.export(
        str(path), "", opset_version=_OPSET, enable_onnx_checker=False, enable_optimize=False, optimize_tool="None"
    )
    if not onnx:
        raise ModelFormatError(f"{shown} cannot be converted to ONNX by paddle2onnx {paddle2onnx.__version__}")
    return Converted(onnx)
