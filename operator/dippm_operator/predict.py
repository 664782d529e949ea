"""One question to the predictor, as a value that can be handed to another process; and asking it.

The question is the seam that the tests put their own predictor into. Importing this module imports neither torch nor
tvm: `ask` does, when it is first called.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from dippm.case import Case
from dippm.policy import Policy
from dippm.prediction import Prediction
from dippm.profiles import Device
from dippm.version import VERSION
from dippm_operator.fetch import Fetched, shown
from dippm_operator.resource import InferenceJobSpec, ModelFormat, ModelInput

if TYPE_CHECKING:
    from dippm.frontend.kept_graphs import KeptGraphs


@dataclass(frozen=True, slots=True)
class Question:
    """An artifact on disk and all that decides what it needs."""

    path: Path
    """Where it lies; fetched and verified."""
    uri: str
    """What it is called in messages: its URI without credentials."""
    format: ModelFormat
    inputs: tuple[ModelInput, ...]
    case: Case
    policy: Policy
    limited: bool = True
    """Parse in a separate, limited process. Only a file of the user's own, on his own machine, goes without."""
    device: Device | None = None
    """The device as the cluster's labels size it; None takes the catalogue's entry for `case.device`."""
    content: str = ""
    """A name for the artifact's content; empty where it has none, and its graph is not kept."""


Predictor = Callable[[Question], Prediction]
"""Answers a question, or raises a DippmError. Blocking: hundreds of milliseconds, seconds the first time."""


def question_for(
    spec: InferenceJobSpec, artifact: Fetched, *, case: Case, policy: Policy, device: Device | None = None
) -> Question:
    """The question that a spec asks about an artifact."""
    return Question(
        path=artifact.path,
        content=artifact.content,
        uri=shown(spec.model.uri),
        format=spec.model.format,
        inputs=spec.model.inputs,
        case=case,
        policy=policy,
        device=device,
    )


def predictor_version() -> str:
    """Version of the code and, after `+`, of the weights: other weights give other answers. Reads the weights' file."""
    from dippm.network.bundle import FILE  # brings numpy

    weights = resources.files("dippm.weights").joinpath(FILE)
    if not weights.is_file():
        return VERSION
    return f"{VERSION}+{hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}"


def ask(question: Question, *, graphs: tuple[Path, int] | None = None) -> Prediction:
    """Parse the artifact (in a limited child process) and predict in this one.

    `graphs`: a folder in which graphs are kept between questions, and how many bytes they may take.
    Raises DippmError: what is wrong with the file, its shapes or the device.
    """
    from dippm.artifact import open_artifact
    from dippm.frontend import load_graph
    from dippm.frontend.child import load_graph_in_child
    from dippm.frontend.inputs import InputSpec
    from dippm.predictor import predict_graph

    artifact = open_artifact(question.path, framework=question.format.value, uri=question.uri)
    inputs = tuple(InputSpec(one.name, one.shape, one.dtype) for one in question.inputs) or None
    batch = question.case.batch
    if not question.limited:
        graph = load_graph(artifact, batch=batch, inputs=inputs)
    elif graphs is None or not question.content:
        graph = load_graph_in_child(artifact, batch=batch, inputs=inputs)
    else:
        graph = _kept_graphs(*graphs).load(artifact, content=question.content, batch=batch, inputs=inputs)
    return predict_graph(graph, question.case, question.policy, device=question.device)


@cache
def _kept_graphs(folder: Path, max_bytes: int) -> KeptGraphs:
    from dippm.frontend.kept_graphs import KeptGraphs
    from dippm.kept import Kept

    return KeptGraphs(Kept(folder, max_bytes))
