"""`spec` of the InferenceJob."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from dippm.case import Precision, Runtime
from dippm_operator.resource.base import Flag, Int, Part
from dippm_operator.resource.model import Generation, Model
from dippm_operator.resource.policy import Policy

ONE_WORKLOAD_MESSAGE = (
    "exactly one of template (a pod template to run as a Job) and targetRef (an existing workload) must be set"
)
JOB_NEEDS_TEMPLATE_MESSAGE = "job belongs to template: a workload named by targetRef has its own fields"
GENERATION_MESSAGE = "maxNewTokens must not be more than maxContextTokens"


def group_of(api_version: str) -> str:
    """`apps/v1` is of the group `apps`, `v1` of the core group, which has no name."""
    return api_version.rpartition("/")[0]


class JobOptions(Part):
    """Fields of the batch/v1 JobSpec beside its template."""

    ttl_seconds_after_finished: Annotated[Int, Field(ge=0, le=2_147_483_647)] | None = None
    """Seconds that a finished Job is kept; for ever when left out."""
    backoff_limit: Annotated[Int, Field(ge=0, le=1_000)] = 2
    """Retries before the Job counts as failed."""
    suspend: Flag = False
    """Make the Job suspended: its pods wait until somebody, e.g. Kueue, lets them run."""
    active_deadline_seconds: Annotated[Int, Field(ge=1, le=2_147_483_647)] | None = None
    """Seconds after which the Job's pods are stopped."""
    completions: Annotated[Int, Field(ge=1, le=1_000_000)] | None = None
    """Pods that must succeed."""
    parallelism: Annotated[Int, Field(ge=0, le=100_000)] | None = None
    """Pods that run at once."""


class TargetReference(Part):
    """An existing workload in the same namespace, sized when its pods are admitted."""

    api_version: Annotated[str, Field(min_length=1, max_length=253)]
    """e.g. apps/v1."""
    kind: Annotated[str, Field(min_length=1, max_length=63)]
    """e.g. Deployment."""
    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the workload."""

    @property
    def workload(self) -> tuple[str, str, str]:
        """Group, kind and name: one workload has one of these, by whatever version of its API it is named."""
        return group_of(self.api_version), self.kind, self.name


class InferenceJobSpec(Part):
    """What is run, on which device, and how a prediction becomes a slice."""

    model: Model
    """The model file."""
    batch_size: Annotated[Int, Field(ge=1, le=1_048_576)]
    """Samples in one forward pass."""
    precision: Precision = Precision.FP32
    """Numbers that weights and activations are held in."""
    runtime: Runtime = Runtime.AUTO
    """Who runs the operators; auto takes the one that the format is usually run by. One that was never measured is
    priced as the measured one that is nearest to it, with basis proxy and a wider bound."""
    generation: Generation | None = None
    """Decoders only: lengths of context and answer."""
    processes: Annotated[Int, Field(ge=1, le=64)] = 1
    """Worker processes in the container that each load the model."""
    device: Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    """GPU Feature Discovery's product without "NVIDIA-"; what the cluster's MIG nodes advertise when left out."""
    policy: Policy = Field(default_factory=Policy, json_schema_extra={"default": {}})
    """How a prediction becomes a slice."""
    container: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """The container that is sized; see the guide for which one it is when left out."""
    job: JobOptions | None = None
    """Fields of the Job beside its template."""
    template: Annotated[
        dict[str, Any] | None,
        Field(json_schema_extra={"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
    ] = None
    """A PodTemplateSpec, run as a batch/v1 Job."""
    target_ref: TargetReference | None = None
    """An existing workload, sized at admission."""
    run_id: Annotated[str, Field(min_length=1, max_length=63, alias="runID")] = "1"
    """A changed runID runs the Job again; nothing else does."""

    @field_validator("template")
    @classmethod
    def _template_has_containers(cls, template: dict[str, Any] | None) -> dict[str, Any] | None:
        if template is None:
            return None
        spec = template.get("spec")
        containers = spec.get("containers") if isinstance(spec, dict) else None
        if not isinstance(containers, list) or not containers:
            raise ValueError("must be a PodTemplateSpec with at least one entry in spec.containers")
        if not all(isinstance(c, dict) and isinstance(c.get("name"), str) for c in containers):
            raise ValueError("every entry of spec.containers must have a name")
        return template

    @model_validator(mode="after")
    def _workload_is_one(self) -> InferenceJobSpec:
        if (self.template is None) == (self.target_ref is None):
            raise ValueError(ONE_WORKLOAD_MESSAGE)
        if self.job is not None and self.template is None:
            raise ValueError(JOB_NEEDS_TEMPLATE_MESSAGE)
        if self.generation and self.generation.max_new_tokens > self.generation.max_context_tokens:
            raise ValueError("generation: " + GENERATION_MESSAGE)
        return self
