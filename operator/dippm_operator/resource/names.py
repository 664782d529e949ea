"""Names that users and other controllers see: group, kind, labels, annotations, limits of the InferenceJob."""

from __future__ import annotations

GROUP = "dippm.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceJob"
PLURAL = "inferencejobs"
SINGULAR = "inferencejob"
SHORT_NAME = "infjob"

JOB_LABEL = "dippm.dev/inference-job"
"""On a pod: the InferenceJob, in the pod's namespace, that it is sized by."""
INJECTION_LABEL = "dippm.dev/injection"
"""On a namespace, `enabled`: pods join by their owners as well as by label."""
INJECT_ANNOTATION = "dippm.dev/inject"
"""On a pod, as label or annotation, `"false"`: never sized."""
SIZING_ANNOTATION = "dippm.dev/sizing"
"""On a sized pod: what was chosen and why, as one JSON object."""
RUN_ANNOTATION = "dippm.dev/run"
"""On a Job: the `spec.runID` that it was made for."""
TEMPLATE_ANNOTATION = "dippm.dev/template-digest"
"""On a Job: digest of what it was rendered from, to tell a stale one."""
PREDICTED_ANNOTATION = "dippm.dev/predicted-at"
"""On a ReplicaSet whose pods waited for the prediction: set so that it tries again at once."""
DEFAULT_CONTAINER_ANNOTATION = "kubectl.kubernetes.io/default-container"

NAME_LIMIT = 52
"""Longest InferenceJob name: it becomes a label value (63) and, with `-` and a hash of 10, the name of a Job (63)."""

GPU_TAINT = "nvidia.com/gpu"
"""Key of the taint that the GPU Operator's users put on GPU nodes."""

PROFILE_PATTERN = r"^[1-9][0-9]*g\.[1-9][0-9]*gb([+-][a-z0-9]+(\.all)?)*$"
"""A MIG profile as `nvidia-smi` spells it: `1g.5gb`, `1g.10gb+me`, `1g.5gb-me`; no compute instances."""
NO_PROFILE = "None"
"""`status.recommendation.profile` where no profile fits."""
AZURE_SCHEMES = ("azure", "abfs", "abfss", "wasb", "wasbs")
"""Spellings of Azure's Blob Storage beside its https URLs."""
URI_SCHEMES = ("https", "http", "s3", "gs", "hf", "oci", *AZURE_SCHEMES, "pvc", "file")
"""Schemes of `spec.model.uri`, spelled as KServe spells them."""


def not_fetched(scheme: str) -> str:
    """Why a URI's scheme is not fetched, with the way out; empty for one that is fetched."""
    if scheme in URI_SCHEMES:
        return ""
    way_out = f"give the model by {', '.join(URI_SCHEMES[:-1])} or {URI_SCHEMES[-1]}"
    return f"{scheme or 'a URI without a scheme'} is not fetched; {way_out}"
