"""The child that reads one model file and answers with its graph; what a hostile file can do ends here.

It sets its own resource limits, cuts itself off from the network and from starting programs, reads the file and writes
the graph as JSON (`ModelGraph.to_dict`); errors cross as their class and sentence. `dippm.frontend.child` asks it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from dippm.artifact import Artifact
from dippm.errors import DippmError
from dippm.frontend.inputs import InputSpec
from dippm.frontend.isolation import cut_off
from dippm.frontend.limits import Limits, limit_self, which_limit


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
    """One request on standard input, one answer on standard output; ends the process."""
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
