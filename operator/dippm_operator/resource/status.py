"""`status` of the InferenceJob. No floats: units are in the field names. Unknown fields are ignored when read."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from dippm_operator.resource.base import Flag, Int, Part
from dippm_operator.resource.names import NO_PROFILE

TIME = {"format": "date-time"}
"""Schema of a `metav1.Time`: RFC 3339 in UTC."""
LONG = {"format": "int64"}


class ConditionType(StrEnum):
    """Conditions of an InferenceJob, in the order in which they come true."""

    RESOLVED = "Resolved"
    """The model's URI answered and the file is one that can be read."""
    PREDICTED = "Predicted"
    """There is a prediction for this generation."""
    PLACEABLE = "Placeable"
    """A profile fits, and a node offers it."""
    READY = "Ready"
    """All of the above, and the workload carries the size."""
    OUT_OF_MEMORY = "OutOfMemory"
    """A pod with the slice that was recommended ran out of its memory."""
    STALE = "Stale"
    """The Job that exists was made from another spec; a changed runID runs it again."""


class Condition(Part):
    """A metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """Resolved, Predicted, Placeable, Ready, OutOfMemory, Stale."""
    status: Annotated[str, Field(json_schema_extra={"enum": ["True", "False", "Unknown"]})]
    """True, False or Unknown."""
    observed_generation: Annotated[Int, Field(ge=0, json_schema_extra=LONG)] = 0
    """The metadata.generation that it was set for."""
    last_transition_time: Annotated[str, Field(json_schema_extra=TIME)]
    """When status last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern="^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """One CamelCase word."""
    message: Annotated[str, Field(max_length=32768)] = ""
    """One sentence for people."""


class ModelStatus(Part):
    """The artifact that the prediction was made from."""

    graph_digest: str = ""
    """Digest of the model graph: the same graph, the same digest, wherever the file lies."""
    etag: str = ""
    """The store's ETag at that time."""
    content_digest: str = ""
    """Digest of the file; only where the whole file was read or the store vouches for it."""
    resolved_at: Annotated[str | None, Field(json_schema_extra=TIME)] = None
    """When the URI was last asked."""
    format: str = ""
    """Kind of file that was found."""
    size_bytes: Annotated[Int, Field(ge=0, json_schema_extra=LONG)] = 0
    """Size of the artifact."""
    fetched_bytes: Annotated[Int, Field(ge=0, json_schema_extra=LONG)] = 0
    """Bytes that were read to predict from it."""


class PredictionStatus(Part):
    """The prediction, for the whole device."""

    predictor_version: str = ""
    """Version of the predictor and its weights."""
    device: str = ""
    """Device that was predicted for."""
    runtime: str = ""
    """Runtime that was predicted for; never auto."""
    basis: str = ""
    """measured, transferred or proxy: on what the figures stand."""
    memory_mib: Annotated[Int, Field(ge=0, json_schema_extra=LONG, alias="memoryMiB")]
    """Footprint that nvidia-smi would show, MiB."""
    required_mib: Annotated[Int, Field(ge=0, json_schema_extra=LONG, alias="requiredMiB")]
    """What a slice must offer, headroom and processes included, MiB: the estimate."""
    required_upper_mib: Annotated[Int, Field(ge=0, json_schema_extra=LONG, alias="requiredUpperMiB")]
    """The upper bound of requiredMiB at the risk that was asked for: what the choice uses."""
    latency_microseconds: Annotated[Int, Field(ge=0, json_schema_extra=LONG)]
    """One forward pass on the whole device, microseconds."""
    energy_millijoules: Annotated[Int, Field(ge=0, json_schema_extra=LONG)]
    """Energy of one forward pass, millijoules."""


class Recommendation(Part):
    """The slice that pods get. It stays in force until a better one takes its place."""

    profile: Annotated[str, Field(max_length=63)]
    """MIG profile; "full" for a whole GPU; "None" where no profile fits."""
    resource: Annotated[str | None, Field(max_length=253)] = None
    """Extended resource, e.g. nvidia.com/mig-1g.5gb; absent where no profile fits."""
    reason: Annotated[str, Field(max_length=63)]
    """One CamelCase word: why this one."""
    tolerate_gpu_taint: Annotated[Flag, Field(alias="tolerateGPUTaint")] = False
    """Nodes that offer the slice have the taint nvidia.com/gpu: pods get a toleration for it."""

    @property
    def fits(self) -> bool:
        """Whether there is a slice to ask for."""
        return self.resource is not None and self.profile != NO_PROFILE


class CandidateStatus(Part):
    """One profile of the device."""

    profile: str
    """MIG profile."""
    usable_mib: Annotated[Int, Field(ge=0, json_schema_extra=LONG, alias="usableMiB")]
    """Memory that a process on this slice can use, MiB."""
    utilization_percent: Annotated[Int, Field(ge=0)]
    """Required of usable memory, percent."""
    fits: Flag
    """Whether the upper bound of the requirement is within the usable memory."""
    latency_microseconds: Annotated[Int, Field(ge=0, json_schema_extra=LONG)]
    """One forward pass on this slice, microseconds."""

    @property
    def latency_ms(self) -> float:
        """The same in milliseconds: with it, a candidate is one that `dippm.policy.choose` can look at."""
        return self.latency_microseconds / 1_000


class WorkloadStatus(Part):
    """The workload that carries the size."""

    api_version: str
    """e.g. batch/v1."""
    kind: str
    """e.g. Job."""
    name: str
    """Name of the workload."""
    uid: str = ""
    """UID of the workload: another one of the same name is another run."""
    run_id: Annotated[str, Field(alias="runID")] = ""
    """The spec.runID that the Job was made for."""
    finished_at: Annotated[str | None, Field(json_schema_extra=TIME)] = None
    """When the Job finished, succeeded or failed."""


class InferenceJobStatus(Part):
    """What the operator found, predicted and did."""

    observed_generation: Annotated[Int, Field(ge=0, json_schema_extra=LONG)] = 0
    """The metadata.generation that the status is of."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = ()
    """Resolved, Predicted, Placeable, Ready, OutOfMemory, Stale."""
    model: ModelStatus | None = None
    """The artifact that the prediction was made from."""
    prediction: PredictionStatus | None = None
    """The prediction, for the whole device."""
    recommendation: Recommendation | None = None
    """The slice that pods get."""
    candidates: Annotated[
        tuple[CandidateStatus, ...],
        Field(
            max_length=64,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["profile"]},
        ),
    ] = ()
    """Every profile of the device, smallest first."""
    workload: WorkloadStatus | None = None
    """The workload that carries the size."""

    def condition(self, type_: ConditionType) -> Condition | None:
        """The condition of that type, None before it was ever set."""
        return next((c for c in self.conditions if c.type == type_), None)
