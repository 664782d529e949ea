"""The batch/v1 Job of an InferenceJob's template: named, labelled, owned and sized. Pure."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dippm.errors import ManifestError
from dippm_operator.resource import InferenceJob
from dippm_operator.resource.names import (
    API_VERSION,
    JOB_LABEL,
    KIND,
    RUN_ANNOTATION,
    SIZING_ANNOTATION,
    TEMPLATE_ANNOTATION,
)
from dippm_operator.sizing.patch import PodSizing, size_pod

FIRST_RUN = "1"
"""The default `spec.runID`: its Job has the InferenceJob's own name."""


@dataclass(frozen=True, slots=True)
class SizedJob:
    """A rendered Job and how its pod was sized."""

    manifest: dict[str, Any]
    sizing: PodSizing


def job_name(job: InferenceJob) -> str:
    """Name of the Job of the current run: the InferenceJob's own for run "1", else with a hash of the runID (<= 63)."""
    if job.spec.run_id == FIRST_RUN:
        return job.metadata.name
    return f"{job.metadata.name}-{hashlib.sha256(job.spec.run_id.encode()).hexdigest()[:10]}"


def render_job(job: InferenceJob) -> SizedJob:
    """The Job to create for the current run. Raises ManifestError for an InferenceJob without template."""
    if job.spec.template is None:
        raise ManifestError(
            f"InferenceJob {job.metadata.name}: spec.template is missing, so there is no Job to make; "
            "a workload named by targetRef is sized where it is."
        )
    template = copy.deepcopy(job.spec.template)
    metadata = template.pop("metadata", None) or {}
    template = {"metadata": metadata} | template
    metadata["labels"] = {**(metadata.get("labels") or {}), JOB_LABEL: job.metadata.name}
    template["spec"].setdefault("restartPolicy", "Never")  # a Job takes Never or OnFailure, a pod's default is Always
    sizing = size_pod(template, job)

    options = job.spec.job
    spec: dict[str, Any] = (
        {"backoffLimit": 2} if options is None else options.model_dump(by_alias=True, exclude_none=True)
    )
    spec["template"] = sizing.pod
    annotations = {RUN_ANNOTATION: job.spec.run_id}
    if record := (sizing.pod.get("metadata") or {}).get("annotations", {}).get(SIZING_ANNOTATION):
        annotations[SIZING_ANNOTATION] = record
    annotations[TEMPLATE_ANNOTATION] = template_digest(job)
    head: dict[str, Any] = {"name": job_name(job), "namespace": job.metadata.namespace}
    head |= {"labels": {JOB_LABEL: job.metadata.name}, "annotations": annotations}
    if job.metadata.uid:
        head["ownerReferences"] = [owner_reference(job)]
    return SizedJob({"apiVersion": "batch/v1", "kind": "Job", "metadata": head, "spec": spec}, sizing)


def owner_reference(job: InferenceJob) -> dict[str, Any]:
    """The reference by which the Job is deleted with its InferenceJob."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def template_digest(job: InferenceJob) -> str:
    """Digest of what a Job is made from, its slice included: a Job that carries another one is stale."""
    recommendation = job.status.recommendation
    parts = [
        job.spec.template,
        None if job.spec.job is None else job.spec.job.model_dump(mode="json", exclude_none=True),
        job.spec.container,
        None if recommendation is None else recommendation.resource,
    ]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
