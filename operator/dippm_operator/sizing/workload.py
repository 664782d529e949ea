"""Where the pod template of a workload is, so that any of them can be sized in a manifest. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from dippm_operator.resource import InferenceJob, group_of
from dippm_operator.sizing.patch import PodSizing, size_pod

_PATHS: tuple[tuple[str, ...], ...] = (("spec", "template"), ("spec", "jobTemplate", "spec", "template"))
"""Deployment, StatefulSet, DaemonSet, ReplicaSet, Job and most custom workloads; CronJob."""


def size_workload(workload: Mapping[str, Any], job: InferenceJob) -> tuple[dict[str, Any], PodSizing] | None:
    """The workload with its pod template sized; None for a kind that has no pod template where one is known."""
    if workload.get("kind") == "Pod":
        sizing = size_pod(workload, job)
        return sizing.pod, sizing
    for path in _PATHS:
        node: Any = workload
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        if isinstance(node, Mapping) and isinstance(node.get("spec"), Mapping):
            sizing = size_pod(node, job)
            sized = copy.deepcopy(dict(workload))
            parent = sized
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = sizing.pod
            return sized, sizing
    return None


def is_target(document: Mapping[str, Any], job: InferenceJob) -> bool:
    """Whether a manifest is the workload that `spec.targetRef` names, in the job's namespace or in none."""
    target, metadata = job.spec.target_ref, document.get("metadata") or {}
    return (
        target is not None
        and (group_of(str(document.get("apiVersion", ""))), document.get("kind"), metadata.get("name"))
        == target.workload
        and metadata.get("namespace", "default") == job.metadata.namespace
    )
