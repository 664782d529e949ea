"""Writes tests/models/converted: networks of Keras and PaddlePaddle as their converters write them, without weights.

DIPPM_TENSORFLOW_PYTHON=... DIPPM_PADDLE_PYTHON=... python tests/models/make_converted.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from make_dynamo import HERE, loaded

from dippm.artifact import open_artifact
from dippm.frontend.converter import as_onnx

NAMES = ("keras/mobilenetv2", "paddle/mobilenet_v2")


def main() -> None:
    """Writes every file."""
    twins = loaded("bench_twins", HERE.parents[1] / "bench" / "twins.py")
    folder = HERE / "converted"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in NAMES:
            with as_onnx(open_artifact(twins.made(name, Path(temporary)))) as (readable, _):
                model = onnx.load(readable.path, load_external_data=False)
            for tensor in model.graph.initializer:
                if len(tensor.raw_data) > 64:
                    tensor.ClearField("raw_data")
            del model.graph.value_info[:]
            path = folder / f"{name.replace('/', '_')}.onnx"
            path.write_bytes(model.SerializeToString(deterministic=True))
            print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
