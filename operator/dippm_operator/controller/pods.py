"""What the pods of an InferenceJob say about its size: unsized, sized for an earlier answer, out of memory. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dippm_operator.resource import InferenceJob, PolicyMode
from dippm_operator.sizing.decision import Verdict
from dippm_operator.sizing.pod_state import PodState

_NAMED = 3
"""Pods that a message names; more are counted."""


def missized(job: InferenceJob, pods: Sequence[PodState]) -> Verdict | None:
    """Ready=False where pods came up without their slice, or with an old one; None where all is well."""
    chosen = job.status.recommendation
    if job.spec.policy.mode is PolicyMode.RECOMMEND or chosen is None or not chosen.fits:
        return None
    ours = [pod for pod in pods if pod.ours_to_size]
    if unsized := [pod.name for pod in ours if pod.resource is None]:
        message = f"{_names(unsized)} came up without {chosen.resource}; start them anew to have them sized."
        return Verdict(False, "UnsizedPods", message)
    if job.spec.target_ref is not None and (old := [pod.name for pod in ours if pod.resource != chosen.resource]):
        message = f"{_names(old)} came up with another slice than {chosen.resource}; start them anew to change it."
        return Verdict(False, "OutdatedPods", message)
    return None


def out_of_memory(job: InferenceJob, pods: Sequence[PodState]) -> Verdict | None:
    """OutOfMemory=True where a pod with the present slice ran out of it; None where none is known to."""
    chosen = job.status.recommendation
    ends = [
        (pod.out_of_memory.finished_at, pod.name, pod.out_of_memory)
        for pod in pods
        if pod.out_of_memory is not None and chosen is not None and pod.resource == chosen.resource
    ]
    if not ends or chosen is None:
        return None
    _, name, end = max(ends, key=lambda e: e[:2])
    return Verdict(
        True,
        "GpuMemoryExhausted",
        f"container {end.container} of pod {name} ran out of memory on {chosen.profile} ({end.line}); "
        "raise policy.headroomMiB, or say how it really runs: batchSize, precision, processes, generation.",
    )


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{'pod' if len(names) == 1 else 'pods'} {shown}{more}"
