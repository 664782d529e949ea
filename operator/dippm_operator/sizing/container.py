"""Which container of a pod is sized, and which GPU resources its containers already name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dippm.profiles import FULL_GPU_RESOURCE, RESOURCE_PREFIX
from dippm_operator.resource.names import DEFAULT_CONTAINER_ANNOTATION, INJECT_ANNOTATION

Json = Mapping[str, Any]

DAS_RESOURCE_PREFIX = "mig.das.com/"
"""InstaSlice (Dynamic Accelerator Slicer) renames `nvidia.com/mig-X` to this at admission, before or after us."""


def is_gpu_resource(name: str) -> bool:
    """Whether an extended resource is an NVIDIA GPU, a slice of one, or a shared one."""
    return name == FULL_GPU_RESOURCE or name.startswith((FULL_GPU_RESOURCE + ".", RESOURCE_PREFIX, DAS_RESOURCE_PREFIX))


def gpu_requests(container: Json) -> dict[str, str]:
    """GPU resources that a container names, in limits or requests, with their quantities; limits count first."""
    resources = container.get("resources") or {}
    named: dict[str, str] = {}
    for section in ("limits", "requests"):
        for name, quantity in (resources.get(section) or {}).items():
            if is_gpu_resource(name):
                named.setdefault(name, str(quantity))
    return named


def opted_out(pod: Json) -> bool:
    """Whether the pod's owner wants it left alone: `dippm.dev/inject: "false"`, as an annotation or a label."""
    metadata = pod.get("metadata") or {}
    return any(
        str((metadata.get(section) or {}).get(INJECT_ANNOTATION, "")).lower() == "false"
        for section in ("annotations", "labels")
    )


@dataclass(frozen=True, slots=True)
class ContainerChoice:
    """The container that is sized, or why none is."""

    index: int | None
    """Index in `spec.containers`; None when no container can be told."""
    name: str = ""
    why_not: str = ""
    """A clause for the warning, empty when there is a choice."""


def choose_container(pod: Json, wanted: str | None) -> ContainerChoice:
    """The container that is sized (never an injected sidecar by accident).

    1. `spec.container` of the InferenceJob, when given: that one or none.
    2. The annotation `kubectl.kubernetes.io/default-container` of the pod, when it names one.
    3. The only container that names a GPU resource.
    4. The only container.
    """
    containers: Sequence[Json] = (pod.get("spec") or {}).get("containers") or []
    by_name = {str(c.get("name", "")): index for index, c in enumerate(containers)}
    if wanted is not None:
        if wanted in by_name:
            return ContainerChoice(by_name[wanted], wanted)
        return ContainerChoice(None, why_not=f"the pod has no container {wanted!r}, which spec.container names")
    annotations = (pod.get("metadata") or {}).get("annotations") or {}
    default = annotations.get(DEFAULT_CONTAINER_ANNOTATION)
    if default in by_name:
        return ContainerChoice(by_name[default], default)
    with_gpu = [name for name, index in by_name.items() if gpu_requests(containers[index])]
    for names in (with_gpu, list(by_name)):
        if len(names) == 1:
            return ContainerChoice(by_name[names[0]], names[0])
    if not containers:
        return ContainerChoice(None, why_not="the pod has no containers")
    return ContainerChoice(
        None,
        why_not=f"it cannot be told which of the containers {', '.join(by_name)} runs the model; "
        "name it in spec.container of the InferenceJob",
    )
