"""Parse a model file in a separate, limited process: what a hostile file can do ends there.

The child, forked from a process that has PyTorch and TVM loaded (`dippm.frontend.pool`), sets its own resource limits,
cuts itself off from the network and from starting programs, reads the file and writes the graph as JSON
(`ModelGraph.to_dict`) on a socket; errors cross as their class and sentence. The asker holds the wall clock. A crash
there is one `ParseLimitExceeded` here.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dippm import errors
from dippm.artifact import Artifact
from dippm.errors import DippmError, ModelFormatError, ParseLimitExceeded
from dippm.frontend.converter import as_onnx
from dippm.frontend.inputs import InputSpec
from dippm.frontend.isolation import cut_off
from dippm.frontend.limits import Limits, how_it_ended, limit_self, which_limit
from dippm.frontend.pool import PARENT
from dippm.graph import ModelGraph
from dippm.kept import Kept


def load_graph_in_child(
    artifact: Artifact,
    *,
    batch: int,
    inputs: tuple[InputSpec, ...] | None = None,
    limits: Limits | None = None,
    kept: tuple[Kept, str] | None = None,
) -> ModelGraph:
    """`dippm.frontend.load_graph` in a separate process with limits; blocks until it is done.

    `kept` is where conversions to ONNX are kept, and the name of the artifact's content there.

    Raises the errors of `load_graph`, or ParseLimitExceeded, which says which limit was reached.
    """
    limits = limits or Limits()
    with as_onnx(artifact, kept) as (readable, notes):
        request = {
            "artifact": {**asdict(readable), "path": str(readable.path)},
            "batch": batch,
            "inputs": None if inputs is None else [asdict(i) for i in inputs],
            "limits": asdict(limits),
        }
        answer, status = PARENT.ask(
            json.dumps(request).encode(), wall_seconds=limits.wall_seconds, result_bytes=limits.result_bytes
        )
    graph = _understood(answer, status, artifact, limits)
    return replace(graph, notes=(*graph.notes, *notes)) if notes else graph


def _understood(answer: bytes, status: int | None, artifact: Artifact, limits: Limits) -> ModelGraph:
    shown = artifact.uri or str(artifact.path)
    try:
        body = json.loads(answer) if answer else None
    except ValueError:
        body = None  # it died while it wrote
    if status == 0 and isinstance(body, dict) and "graph" in body:
        return ModelGraph.from_dict(body["graph"])
    if isinstance(body, dict) and "error" in body:
        kind = getattr(errors, body["error"], ModelFormatError)
        raise kind(body["message"])
    raise ParseLimitExceeded(how_it_ended(status, shown, limits))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from dippm.frontend.doors import open_door

    torch.set_num_threads(1)
    described = request["artifact"]
    artifact = Artifact(**{**described, "path": Path(described["path"])})
    inputs = request["inputs"]
    specs = None if inputs is None else tuple(InputSpec(i["name"], tuple(i["shape"]), i["dtype"]) for i in inputs)
    shown = artifact.uri or str(artifact.path)
    limits = Limits(**request["limits"])
    try:
        graph = open_door(artifact, batch=request["batch"], inputs=specs, trust_pickle=False)
        return {"graph": graph.to_dict()}
    except (DippmError, MemoryError) as error:
        said = which_limit(error.__cause__ or error, shown, limits)
        return {"error": "ParseLimitExceeded" if said else type(error).__name__, "message": said or str(error)}


def main() -> None:
    """The child: one request on standard input, one answer on standard output."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no part of the answer
    request = json.loads(sys.stdin.buffer.read())
    limit_self(Limits(**request["limits"]))
    cut_off()
    gc.disable()  # it ends with its one answer
    answer = json.dumps(_answer(request), separators=(",", ":")).encode()
    with os.fdopen(answer_to, "wb") as pipe:
        pipe.write(answer)
        pipe.flush()
    os._exit(0)  # interpreter shutdown with PyTorch and TVM loaded takes 0.3 s and may crash; all is said
