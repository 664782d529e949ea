"""The front door: a model file (or a module in memory) in, one `ModelGraph` out.

`Artifact -> Relax IR -> ModelGraph`. The doors are `.pt2` (torch.export), TorchScript, ONNX and Hugging Face folders;
what another framework wrote is converted to ONNX in a process of that framework (`converter`).
Importing this package is light; torch, TVM and transformers are imported by the door that a file goes through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dippm.frontend.inputs import InputSpec, parse_input

if TYPE_CHECKING:
    import torch

    from dippm.artifact import Artifact
    from dippm.graph import ModelGraph

__all__ = ["InputSpec", "graph_from_module", "load_graph", "parse_input"]


def graph_from_module(
    module: torch.nn.Module,
    example_inputs: Sequence[torch.Tensor] | Mapping[str, torch.Tensor],
    *,
    batch: int,
) -> ModelGraph:
    """The graph of a module in memory, by the same path as a `.pt2` file; the data set's graphs are made here.

    `module` is in eval mode and, like `example_inputs` (positional, or by keyword), usually lies on the meta device;
    their shapes hold the batch, which is only recorded. The format is `pt2`.

    Raises UnsupportedOperator or InputShapeError.
    """
    from dippm.frontend.exported_program import graph_of_module

    return graph_of_module(module, example_inputs, batch=batch)


def load_graph(
    artifact: Artifact, *, batch: int, inputs: tuple[InputSpec, ...] | None = None, trust_pickle: bool = False
) -> ModelGraph:
    """Read a model file in this process and give its graph at `batch`.

    `inputs` are shapes without the batch; they may be None where the file itself says them. `trust_pickle` lets a
    pickled `torch.nn.Module` run its code: never on a file from somebody else.

    Raises ModelFormatError, UnsafeModel, UnsupportedOperator or InputShapeError, each one sentence.
    """
    from dippm.frontend.converter import as_onnx
    from dippm.frontend.doors import open_door
    from dippm.garbage import put_off

    with as_onnx(artifact) as (readable, notes), put_off():
        graph = open_door(readable, batch=batch, inputs=inputs, trust_pickle=trust_pickle)
    return replace(graph, notes=(*graph.notes, *notes)) if notes else graph


def __dir__() -> list[Any]:
    return sorted(__all__)
