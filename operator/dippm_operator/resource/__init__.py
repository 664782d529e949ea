"""The InferenceJob as typed, frozen values; the CRD is generated from them (`dippm_operator.resource.crd`)."""

from dippm_operator.resource.job import InferenceJob, Metadata, is_inference_job, parse_inference_job
from dippm_operator.resource.model import Generation, Model, ModelFormat, ModelInput, SecretReference
from dippm_operator.resource.policy import (
    Allocation,
    AllocatorPolicy,
    ExistingRequest,
    OnOutOfMemory,
    OnUnknown,
    Policy,
    PolicyMode,
    Repair,
)
from dippm_operator.resource.spec import InferenceJobSpec, JobOptions, TargetReference, group_of
from dippm_operator.resource.status import (
    CandidateStatus,
    Condition,
    ConditionType,
    InferenceJobStatus,
    ModelStatus,
    PredictionStatus,
    Recommendation,
    WorkloadStatus,
)

__all__ = [
    "Allocation",
    "AllocatorPolicy",
    "CandidateStatus",
    "Condition",
    "ConditionType",
    "ExistingRequest",
    "Generation",
    "InferenceJob",
    "InferenceJobSpec",
    "InferenceJobStatus",
    "JobOptions",
    "Metadata",
    "Model",
    "ModelFormat",
    "ModelInput",
    "ModelStatus",
    "OnOutOfMemory",
    "OnUnknown",
    "Policy",
    "PolicyMode",
    "PredictionStatus",
    "Recommendation",
    "Repair",
    "SecretReference",
    "TargetReference",
    "WorkloadStatus",
    "group_of",
    "is_inference_job",
    "parse_inference_job",
]
