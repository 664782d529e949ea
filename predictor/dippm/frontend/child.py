"""Parse a model file in a separate, limited process: what a hostile file can do ends there.

This is who asks. The child, forked from a process that has PyTorch and TVM loaded (`dippm.frontend.pool`), answers with
the graph as JSON or an error's class and sentence (`dippm.frontend.answer`). The asker holds the wall clock. A crash
there is one `ParseLimitExceeded` here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

from dippm import errors
from dippm.artifact import Artifact
from dippm.errors import ModelFormatError, ParseLimitExceeded
from dippm.frontend.converter import as_onnx
from dippm.frontend.inputs import InputSpec
from dippm.frontend.limits import Limits, how_it_ended
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
