"""What a pod is given: the slice, and the record of why. Pure; applying the patch twice changes nothing."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from dippm.profiles import resource_name
from dippm_operator.resource import (
    Allocation,
    AllocatorPolicy,
    ExistingRequest,
    InferenceJob,
    OnUnknown,
    PolicyMode,
    Recommendation,
)
from dippm_operator.resource.names import (
    GPU_TAINT,
    SIZING_ANNOTATION,
)
from dippm_operator.sizing.container import Json, choose_container, gpu_requests, opted_out
from dippm_operator.sizing.json_patch import Operation, PatchBuilder
from dippm_operator.sizing.tensor_parallel import tensor_parallel_size

ALLOCATOR_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
"""Either configures PyTorch's caching allocator; the second is its name from PyTorch 2.9 on."""
EXPANDABLE = "expandable_segments:True"


@dataclass(frozen=True, slots=True)
class PodSizing:
    """The answer for one pod."""

    patch: list[Operation]
    """RFC 6902 operations; empty when the pod stays as it is."""
    warnings: list[str]
    """Sentences for the person who made the pod."""
    reason: str
    """One CamelCase word: `Sized`, `AlreadySized`, or why the pod stays as it is."""
    pod: dict[str, Any]
    """The pod (or pod template) with the patch applied."""

    @property
    def sized(self) -> bool:
        """Whether the pod, patched, carries the slice that was chosen by us."""
        return self.reason in ("Sized", "AlreadySized")


def slice_for(job: InferenceJob) -> Recommendation | None:
    """What pods of this job get now: the last good recommendation, else the fallback, else None."""
    if job.status.recommendation is not None:
        return job.status.recommendation
    profile = job.spec.policy.fallback_profile
    if job.spec.policy.on_unknown is OnUnknown.FALLBACK and profile is not None:
        return Recommendation(profile=profile, resource=resource_name(profile), reason="Fallback")
    return None


def size_pod(pod: Json, job: InferenceJob, *, quota_resources: Collection[str] = ()) -> PodSizing:
    """Size a pod, or a pod template, by an InferenceJob.

    `quota_resources`: extended resources that a ResourceQuota of the namespace covers (without `requests.`).

    1. Pods that opted out, and jobs that only recommend, are left alone.
    2. The slice is the last good recommendation, else the fallback; without one the pod stays as it is.
    3. The container is chosen (`choose_container`); without one the pod stays as it is.
    4. A GPU that the container already names is kept, or replaced where that is asked for and safe.
    5. The resource goes into requests and limits, the record into an annotation; all else stays.
    """
    name, policy = job.metadata.name, job.spec.policy
    unchanged = dict(pod)

    def leave(reason: str, *warnings: str) -> PodSizing:
        return PodSizing([], [f"InferenceJob {name}: {w}." for w in warnings], reason, unchanged)

    if opted_out(pod):  # 1
        return leave("OptedOut")
    if policy.mode is PolicyMode.RECOMMEND:
        return leave("RecommendOnly")
    if policy.allocation is not Allocation.DEVICE_PLUGIN:
        return leave(
            "AllocationUnsupported",
            "policy.allocation: DRA is not served by this version, the pod stays as it is; use DevicePlugin",
        )
    chosen = slice_for(job)  # 2
    if chosen is None:
        return leave("Unpredicted", "there is no prediction yet, the pod stays as it is")
    if not chosen.fits or chosen.resource is None:
        return leave("NoProfileFits", "no MIG profile is large enough for the model, the pod stays as it is")
    container = choose_container(pod, job.spec.container)  # 3
    if container.index is None:
        return leave("NoContainer", f"{container.why_not}; the pod stays as it is")
    obstacle = _obstacle(pod, container.index, container.name, chosen.resource, job, quota_resources)  # 4
    if obstacle is not None:
        return leave(obstacle[0], *obstacle[1:])

    builder = PatchBuilder(pod)  # 5
    warnings = _apply(builder, container.index, container.name, chosen, job)
    reason = "Sized" if builder.operations else "AlreadySized"
    return PodSizing(builder.operations, [f"InferenceJob {name}: {w}." for w in warnings], reason, builder.document)


def sizing_record(pod: Json) -> Mapping[str, Any]:
    """What the annotation of a sized pod says; empty when there is none or it is not ours to read."""
    text = ((pod.get("metadata") or {}).get("annotations") or {}).get(SIZING_ANNOTATION, "")
    try:
        record = json.loads(text) if isinstance(text, str) and text else {}
    except ValueError:  # somebody else's text under our name: as good as none
        return {}
    return record if isinstance(record, dict) else {}


def _obstacle(
    pod: Json, index: int, name: str, resource: str, job: InferenceJob, quota_resources: Collection[str]
) -> tuple[str, ...] | None:
    """(reason, warning...) why the GPU that the container already names keeps it from being sized, else None."""
    containers = pod["spec"]["containers"]
    named = gpu_requests(containers[index])
    record = sizing_record(pod)
    ours = record.get("container") == name and set(named) == {record.get("resource")}
    if not named or ours:
        return None
    asked = ", ".join(f"{key}: {quantity}" for key, quantity in named.items())
    if job.spec.policy.existing_request is ExistingRequest.KEEP:
        if named == {resource: "1"}:
            return ("AlreadyAsked",)
        return (
            "ExistingRequest",
            f"container {name} already asks for {asked} and keeps it; "
            f"set policy.existingRequest: Replace to have it replaced by {resource}: 1",
        )
    others = [
        str(c.get("name"))
        for section in ("containers", "initContainers")
        for position, c in enumerate(pod["spec"].get(section) or [])
        if (section, position) != ("containers", index) and gpu_requests(c)
    ]
    if others:
        return (
            "ReplaceRefused",
            f"policy.existingRequest: Replace needs one GPU in one container, but {', '.join(others)} asks for one; "
            "the pod stays as it is",
        )
    if len(named) != 1 or set(named.values()) != {"1"}:
        return (
            "ReplaceRefused",
            f"policy.existingRequest: Replace needs exactly one GPU, but container {name} asks for {asked}; "
            "one process sees one slice, so the pod stays as it is",
        )
    (old,) = named
    if old in quota_resources and resource not in quota_resources:
        return (
            "QuotaUncovered",
            f"a ResourceQuota covers {old} but not {resource}, so replacing one by the other would get around it; "
            f"add requests.{resource} to the quota",
        )
    return None


def _apply(builder: PatchBuilder, index: int, name: str, chosen: Recommendation, job: InferenceJob) -> list[str]:
    """Put the slice on the container; returns clauses for warnings."""
    place: tuple[str | int, ...] = ("spec", "containers", index)
    resource = str(chosen.resource)
    warnings: list[str] = []
    replaced = [key for key in gpu_requests(builder.get(*place)) if key != resource]
    for section in ("limits", "requests"):
        for key in replaced:
            builder.remove(*place, "resources", section, key)
        if str(builder.get(*place, "resources", section, resource)) != "1":
            builder.put(1, *place, "resources", section, resource)
    if not builder.get(*place, "terminationMessagePolicy"):
        builder.put("FallbackToLogsOnError", *place, "terminationMessagePolicy")
    if job.spec.policy.allocator is AllocatorPolicy.EXPANDABLE:
        warnings += _set_expandable(builder, place, name)
    if chosen.tolerate_gpu_taint:
        add_gpu_toleration(builder)
    degree = tensor_parallel_size(builder.get(*place))
    if degree > 1:
        warnings.append(
            f"container {name} asks for tensor parallelism of {degree}, but a process sees one slice: set it to 1"
        )
    record = {
        "job": job.metadata.name,
        "container": name,
        "profile": chosen.profile,
        "resource": resource,
        "reason": chosen.reason,
    }
    old = sizing_record(builder.document).get("replaced")
    if replaced or old:
        record["replaced"] = old or replaced[0]
    if (prediction := job.status.prediction) is not None and chosen.reason != "Fallback":
        record["because"] = (
            f"needs {prediction.required_mib} MiB, at most {prediction.required_upper_mib} MiB, "
            f"on {prediction.device} ({prediction.basis})"
        )
    builder.put(json.dumps(record), "metadata", "annotations", SIZING_ANNOTATION)
    return warnings


def _set_expandable(builder: PatchBuilder, place: tuple[str | int, ...], name: str) -> list[str]:
    container = builder.get(*place)
    for entry in container.get("env") or []:
        if entry.get("name") in ALLOCATOR_VARIABLES:
            if EXPANDABLE in str(entry.get("value", "")).replace(" ", ""):
                return []
            return [
                f"container {name} sets {entry['name']} itself, which is kept; the size assumes {EXPANDABLE}, "
                "so add it there or set policy.allocator: AsIs"
            ]
    builder.append({"name": ALLOCATOR_VARIABLES[0], "value": EXPANDABLE}, *place, "env")
    if container.get("envFrom"):
        return [f"{ALLOCATOR_VARIABLES[0]} was set on container {name}; it outranks one that envFrom may bring"]
    return []


def add_gpu_toleration(builder: PatchBuilder) -> None:
    """Let the pod onto nodes with the taint `nvidia.com/gpu`.

    ExtendedResourceToleration only tolerates a taint keyed by the resource's own name, here `nvidia.com/mig-...`.
    """
    for toleration in builder.get("spec", "tolerations") or []:
        key, effect = toleration.get("key"), toleration.get("effect")
        everything = not key and toleration.get("operator") == "Exists"
        if (everything or (key == GPU_TAINT and toleration.get("operator") == "Exists")) and effect in (
            None,
            "",
            "NoSchedule",
        ):
            return
    builder.append({"key": GPU_TAINT, "operator": "Exists", "effect": "NoSchedule"}, "spec", "tolerations")
