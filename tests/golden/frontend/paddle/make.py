"""Makes the programs in this folder; run under an interpreter that has paddlepaddle, twice.

FLAGS_enable_pir_api=1 python make.py     # small.json, small.pdiparams
FLAGS_enable_pir_api=0 python make.py     # small.pdmodel, calls_python.pdmodel
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import paddle
from paddle import nn
from paddle.static import InputSpec

HERE = Path(__file__).parent


class Small(nn.Layer):
    """One of each: convolution, batch norm, ReLU, pooling, dense."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2D(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2D(8)
        self.pool = nn.AdaptiveAvgPool2D(1)
        self.dense = nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        x = nn.functional.relu(self.norm(self.conv(x)))
        return self.dense(paddle.flatten(self.pool(x), 1))


def calls_python() -> bytes:
    """A program with a `py_func`, which calls a function of the process that runs it."""
    paddle.enable_static()
    program = paddle.static.Program()
    with paddle.static.program_guard(program):
        x = paddle.static.data("x", [None, 4], "float32")
        out = program.global_block().create_var(name="out", shape=[-1, 4], dtype="float32")
        paddle.static.py_func(func=lambda a: a, x=x, out=out)
        return paddle.static.serialize_program([x], [out], program=program)


def without_stacks(content: bytes) -> bytes:
    """The same program without the Python stack of each operator's making."""
    with paddle.pir_utils.OldIrGuard():
        program = paddle.static.deserialize_program(content)
        for operator in (o for block in program.blocks for o in block.ops):
            operator._remove_attr("op_callstack")
        return bytes(program.desc.serialize_to_string())


if __name__ == "__main__":
    layer = Small()
    layer.eval()
    spec = [InputSpec([None, 3, 32, 32], "float32", name="x")]
    paddle.jit.save(paddle.jit.to_static(layer, full_graph=True), str(HERE / "small"), input_spec=spec)
    (HERE / "small.pdiparams.info").unlink(missing_ok=True)
    if os.environ.get("FLAGS_enable_pir_api") == "0":  # noqa: SIM112
        saved = HERE / "small.pdmodel"
        saved.write_bytes(without_stacks(saved.read_bytes()))
        (HERE / "calls_python.pdmodel").write_bytes(without_stacks(calls_python()))
