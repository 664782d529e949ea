"""Writes tests/models/dynamo: the networks of tests/unit/test_canonical.py as PyTorch's dynamo exporter writes them.

    python tests/models/make_dynamo.py        # needs onnxscript, which the tests do not

Weights are left out, and of the paths in stack traces what is of the machine.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch

HERE = Path(__file__).parent
NAMES = ("resnet", "vgg", "mobilenet", "densenet", "vit", "gpt", "bert", "convnext", "swin", "poolformer")
_READ = frozenset({
    "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy", "pkg.torch.onnx.fx_node",
    "pkg.torch.onnx.stack_trace", "pkg.onnxscript.rewriter.rule_name",
})  # fmt: skip
"""Metadata that the front end reads."""


def loaded(name: str, path: Path) -> Any:
    """The module in a file that belongs to no package (a test's, or a bench's). Exported files tell its name."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def small(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the data of its weights and what names this machine."""
    for tensor in model.graph.initializer:
        if len(tensor.raw_data) > 256:
            tensor.ClearField("raw_data")
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.ClearField("doc_string")
        kept = [p for p in node.metadata_props if p.key in _READ]
        texts = [(p.key, re.sub(r'File "[^"]*?/(site-packages/|tests/unit/)', 'File "/', p.value)) for p in kept]
        del node.metadata_props[:]
        for key, value in texts:
            node.metadata_props.add(key=key, value=value)
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        if hasattr(value, "metadata_props"):
            del value.metadata_props[:]
    return model


def main() -> None:
    """Writes every file."""
    tests = loaded("canonical", HERE.parent / "unit" / "test_canonical.py")
    folder = HERE / "dynamo"
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        build, inputs = tests.NETWORKS[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(tests.module_of(build), tuple(inputs), dynamo=True, verbose=False)
        path = folder / f"{name}.onnx"
        path.write_bytes(small(program.model_proto).SerializeToString(deterministic=True))
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
