"""`dippm.predict`: a model file in, a prediction out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, TypeVar

from dippm.case import Allocator, Case, Precision, Runtime
from dippm.errors import DippmError, InputShapeError
from dippm.policy import DEFAULT_POLICY, Policy
from dippm.predictor import Stopwatch, predict_graph
from dippm.profiles import resolve_device

if TYPE_CHECKING:
    from dippm.frontend.inputs import InputSpec
    from dippm.prediction import Prediction


def predict(
    path: str | os.PathLike[str],
    *,
    batch: int,
    input: str | InputSpec | Sequence[str | InputSpec] | None = None,
    framework: str = "auto",
    device: str = "A100",
    precision: Precision | str = Precision.FP32,
    runtime: Runtime | str = Runtime.AUTO,
    allocator: Allocator | str = Allocator.DEFAULT,
    policy: Policy = DEFAULT_POLICY,
    digest: str | None = None,
    trust_pickle: bool = False,
    constructor: str = "",
) -> Prediction:
    """Memory, energy, latency and MIG profile of one forward pass of the model in `path`; it is not run.

    The call of the paper's figure 5 works word for word, and the prediction unpacks to its four: memory (MB),
    energy (J), latency (ms), MIG profile.

    `batch` is the batch size, at least 1. `input` is each input's shape without the batch (`"3,224,224"`,
    `"ids=128:int64"`), one string an input; it may be left out where the file says it. `framework` is the file's format
    (`auto` looks at its content). `device` is a product of the catalogue, one of its entries, or `A100` for the
    paper's card. `digest` (`sha256:...`) is held against the whole file. `trust_pickle` lets a pickled module run its
    code: never for a file from somebody else. `constructor` says what weights alone (safetensors) are of, as
    `timm:resnet50` or `torchvision:resnet50`.

    The file is parsed in this process: whoever predicts files of strangers wants the limits of
    `dippm.frontend.child.load_graph_in_child` and `predict_graph`. Raises DippmError, one sentence for the user.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputShapeError(f"batch must be a whole number from 1 on, not {batch!r}")
    from dippm.artifact import open_artifact
    from dippm.frontend import load_graph

    watch = Stopwatch()
    case = Case(
        batch=batch,
        precision=_one_of(Precision, "precision", precision),
        runtime=_one_of(Runtime, "runtime", runtime),
        allocator=_one_of(Allocator, "allocator", allocator),
        device=resolve_device(device).product,
    )
    with watch.stage("load"):
        artifact = open_artifact(path, framework=framework, digest=digest, constructor=constructor)
    with watch.stage("convert"):
        graph = load_graph(artifact, batch=batch, inputs=_inputs(input), trust_pickle=trust_pickle)
    return predict_graph(graph, case, policy, stopwatch=watch)


ChoiceT = TypeVar("ChoiceT", bound=StrEnum)


def _one_of(kind: type[ChoiceT], name: str, value: str) -> ChoiceT:
    try:
        return kind(value)
    except ValueError:
        raise DippmError(f"{name} must be one of {', '.join(kind)}, not {value!r}") from None


def _inputs(given: str | InputSpec | Sequence[str | InputSpec] | None) -> tuple[InputSpec, ...] | None:
    from dippm.frontend.inputs import InputSpec, parse_input

    if given is None:
        return None
    if isinstance(given, str | InputSpec):
        given = (given,)
    return tuple(parse_input(item) if isinstance(item, str) else item for item in given) or None
