"""Writes tests/models/converted: networks of Keras and PaddlePaddle as their converters write them, without weights.

DIPPM_TENSORFLOW_PYTHON=... DIPPM_PADDLE_PYTHON=... python tests/models/make_converted.py
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from types import ModuleType

import onnx

from dippm.artifact import open_artifact
from dippm.frontend.converter import as_onnx

HERE = Path(__file__).parent
NAMES = ("keras/mobilenetv2", "paddle/mobilenet_v2")


def twins() -> ModuleType:
    """The script that has the networks made."""
    spec = importlib.util.spec_from_file_location("bench_twins", HERE.parents[1] / "bench" / "twins.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["bench_twins"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Writes every file."""
    folder = HERE / "converted"
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in NAMES:
            with as_onnx(open_artifact(twins().made(name, Path(temporary)))) as (readable, _):
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
