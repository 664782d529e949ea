"""`dippm size`: InferenceJob manifests in, the sized manifests out, no cluster needed (like a kube-inject)."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from dippm.errors import DippmError, ManifestError
from dippm.prediction import Prediction
from dippm_operator.fetch import HUB, ArtifactCache, Fetcher, FetchLimits, shown
from dippm_operator.manifests import Document, read_documents, write_document
from dippm_operator.predict import Predictor, ask, question_for
from dippm_operator.report import table
from dippm_operator.resource import InferenceJob, InferenceJobStatus, PolicyMode, is_inference_job, parse_inference_job
from dippm_operator.sizing.decision import Decision, case_of, decide, policy_of
from dippm_operator.sizing.job import render_job
from dippm_operator.sizing.workload import is_target, size_workload

DEFAULT_DEVICE = "A100-SXM4-40GB"
"""Where neither the manifest nor --device names one: the paper's card."""

EXAMPLES = """examples:
  dippm size -f job.yaml
  dippm size -f job.yaml | kubectl apply -f -
  helm template web ./chart | dippm size -f - --device H100-80GB-HBM3
"""


@dataclass(frozen=True, slots=True)
class SizedDocument:
    """One document of the output."""

    body: Any
    text: str
    """As it is printed: the input's own text where nothing was changed."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """An InferenceJob of the input with its answer in its status."""

    job: InferenceJob
    prediction: Prediction
    decision: Decision


class SizeCommand:
    """The command, as the entry-point group `dippm.commands` hands it to `dippm.cli`."""

    name = "size"
    help = "put the predicted MIG slice on the pods of InferenceJob manifests"

    def __init__(self, predictor: Predictor = ask) -> None:
        self._predictor = predictor

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the arguments."""
        parser.description = (
            "Reads manifests, predicts for every InferenceJob among them, and prints what kubectl apply would then be "
            "given: its Job, or the workload that its targetRef names, with the slice in place. All else passes "
            "through. The predictions go to standard error."
        )
        parser.epilog = EXAMPLES
        parser.add_argument(
            "-f", "--filename", action="append", required=True, metavar="FILE",
            help="manifest, folder of manifests, or - for standard input; may be given several times",
        )  # fmt: skip
        parser.add_argument(
            "--device", default=DEFAULT_DEVICE, help="device where spec.device is left out (default %(default)s)"
        )
        parser.add_argument("--json", action="store_true", help="print one v1 List as JSON instead of YAML documents")
        parser.add_argument("-q", "--quiet", action="store_true", help="leave the predictions out")

    def run(self, arguments: argparse.Namespace) -> int:
        """Print the sized manifests; 0, or DippmError for the caller to print."""
        documents = flatten(read_documents(arguments.filename))
        predicted = asyncio.run(_predict_all(documents, self._predictor, arguments.device))
        sized, warnings = size_documents(documents, predicted)
        if not predicted:
            warnings.append("there is no InferenceJob in the input: nothing was sized")
        if not arguments.quiet:
            for one in predicted.values():
                print(table(one.job.metadata.name, one.prediction, one.decision), file=sys.stderr)
        for warning in dict.fromkeys(warnings):
            print(f"warning: {warning}", file=sys.stderr)
        if arguments.json:
            print(json.dumps({"apiVersion": "v1", "kind": "List", "items": [d.body for d in sized]}, indent=2))
        else:
            print("---\n".join(document.text for document in sized), end="")
        return 0


SIZE = SizeCommand()


def flatten(documents: Sequence[Document]) -> list[Document]:
    """v1 Lists taken apart where there is anything to size, because that may be inside one."""
    flat: list[Document] = []
    for document in documents:
        body = document.body
        if isinstance(body, dict) and body.get("apiVersion") == "v1" and body.get("kind") == "List":
            items = [item for item in body.get("items") or [] if isinstance(item, dict)]
            flat += [replace(document, body=item, text=write_document(item)) for item in items]
        else:
            flat.append(document)
    return flat if any(is_inference_job(document.body) for document in flat) else list(documents)


def size_documents(
    documents: Sequence[Document], predicted: dict[int, Predicted]
) -> tuple[list[SizedDocument], list[str]]:
    """The output for an input whose InferenceJobs (by their index) are predicted, and warnings. Pure.

    1. What is not an InferenceJob, nor the target of one, keeps its own text.
    2. An InferenceJob with a template becomes its Job.
    3. An InferenceJob with a targetRef vanishes into the workload that it names, which must be in the input.
    4. One that only recommends stays as it is.
    Raises ManifestError where no profile fits, or a target is missing.
    """
    output: dict[int, SizedDocument] = {i: SizedDocument(d.body, d.text) for i, d in enumerate(documents)}
    warnings: list[str] = []
    for index, one in predicted.items():
        job = one.job
        if job.spec.policy.mode is PolicyMode.RECOMMEND:
            continue
        if not one.decision.recommendation.fits:
            raise ManifestError(f"InferenceJob {job.metadata.name}: {one.decision.placeable.message}")
        if job.spec.template is not None:
            rendered = render_job(job)
            sizing, body = rendered.sizing, rendered.manifest
            if "namespace" not in documents[index].body["metadata"]:
                del body["metadata"]["namespace"]
            output[index] = SizedDocument(body, write_document(body))
        else:
            place = _target(documents, job)
            found = size_workload(output[place].body, job)
            if found is None:
                raise ManifestError(
                    f"InferenceJob {job.metadata.name}: {documents[place].body['kind']} has no pod template at a known "
                    "place; label its pods with dippm.dev/inference-job instead, to be sized at admission."
                )
            body, sizing = found
            output[place] = SizedDocument(body, write_document(body))
            del output[index]
        warnings += sizing.warnings
    return [output[index] for index in sorted(output)], warnings


def _target(documents: Sequence[Document], job: InferenceJob) -> int:
    for index, document in enumerate(documents):
        if isinstance(document.body, dict) and is_target(document.body, job):
            return index
    target = job.spec.target_ref
    wanted = f"{target.kind} {target.name}" if target else "workload"
    raise ManifestError(
        f"InferenceJob {job.metadata.name}: the {wanted} that spec.targetRef names is not in the input; "
        "give its manifest too, or let the operator size it in the cluster."
    )


async def _predict_all(documents: Sequence[Document], predictor: Predictor, device: str) -> dict[int, Predicted]:
    jobs = {i: _parse(d) for i, d in enumerate(documents) if is_inference_job(d.body)}
    predicted: dict[int, Predicted] = {}
    if not jobs:
        return predicted
    with tempfile.TemporaryDirectory(prefix="dippm-size-") as folder:
        # It is the user's own machine, network and files: nothing is off limits but size and time.
        hub = os.environ.get("HF_ENDPOINT") or HUB
        limits = FetchLimits(blocked_networks=(), file_roots=(Path("/"),), hub=hub.rstrip("/"))
        fetcher = Fetcher(ArtifactCache(Path(folder) / "artifacts", limits.max_bytes), limits)
        try:
            for index, job in jobs.items():
                uri = _absolute(job.spec.model.uri, documents[index].folder)
                try:
                    async with fetcher.open(uri, digest=job.spec.model.digest) as artifact:
                        case, policy = case_of(job.spec, job.spec.device or device), policy_of(job.spec)
                        question = question_for(job.spec, artifact, case=case, policy=policy)
                        question = replace(question, uri=shown(uri), limited=not uri.startswith("file:"))
                        predicted[index] = _answer(job, predictor(question))
                except DippmError as error:
                    raise type(error)(f"InferenceJob {job.metadata.name}: {error}") from None
        finally:
            await fetcher.close()
    return predicted


def _answer(job: InferenceJob, prediction: Prediction) -> Predicted:
    decision = decide(prediction, job.spec)
    status = InferenceJobStatus(
        prediction=decision.prediction, recommendation=decision.recommendation, candidates=decision.candidates
    )
    return Predicted(job.model_copy(update={"status": status}), prediction, decision)


def _parse(document: Document) -> InferenceJob:
    try:
        return parse_inference_job(document.body)
    except ManifestError as error:
        raise ManifestError(f"{document.source}: {error}") from None


def _absolute(uri: str, folder: Path) -> str:
    """A relative `file:` URI starts from the folder of its manifest."""
    if not uri.startswith("file:"):
        return uri
    path = uri.removeprefix("file:")
    return uri if path.startswith("/") else "file:" + quote(str((folder / unquote(path)).resolve()))
