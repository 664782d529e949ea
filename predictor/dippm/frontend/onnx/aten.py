"""ONNX operators as the ATen calls that PyTorch makes for the same work.

Spec: https://onnx.ai/onnx/operators. So a network is the same graph whatever its door: from here on an ONNX file takes
the path of an exported program (`exported_program`), with its strides, its views and its attributes. What is not in
the table, or comes out in another shape than ONNX's own inference says, stays a foreign call under ONNX's name.
"""

from __future__ import annotations

from collections.abc import Mapping

from dippm.frontend.onnx.calls import Converter
from dippm.frontend.onnx.elementwise import ELEMENTWISE
from dippm.frontend.onnx.layers import LAYERS
from dippm.frontend.onnx.reductions import REDUCTIONS
from dippm.frontend.onnx.views import VIEWS

CONVERTERS: Mapping[str, Converter] = {**ELEMENTWISE, **LAYERS, **REDUCTIONS, **VIEWS}
"""By ONNX operator, or by the kind of what was put together of several (in lower case)."""
