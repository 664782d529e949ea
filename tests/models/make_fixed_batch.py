"""Writes tests/models/fixed_batch: the networks of tests/unit/test_frontend_onnx_batch.py by PyTorch's dynamo exporter.

python tests/models/make_fixed_batch.py        # needs onnxscript, which the tests do not
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from make_dynamo import HERE, loaded, small

LENGTH_KEPT = 16 * 1024
"""Masks are kept with their elements."""


def main() -> None:
    """Writes every file."""
    tests = loaded("fixed_batch", HERE.parent / "unit" / "test_frontend_onnx_batch.py")
    folder: Path = HERE / "fixed_batch"
    folder.mkdir(exist_ok=True)
    for name, (build, inputs) in tests.NETWORKS.items():
        torch.manual_seed(0)
        module = build().eval()
        for batch in (2, 3, 6):
            whole = onnx.load_from_string(tests.export(module, (inputs(batch),), dynamo=True))
            rows = {t.name: t.raw_data for t in whole.graph.initializer if batch in t.dims[:2]}
            model = small(whole)
            for tensor in model.graph.initializer:
                if len(rows.get(tensor.name, b"")) <= LENGTH_KEPT:
                    tensor.raw_data = rows.get(tensor.name, tensor.raw_data)
            path = folder / f"{name}.{batch}.onnx"
            path.write_bytes(model.SerializeToString(deterministic=True))
            print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
