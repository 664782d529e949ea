"""Pods that were refused until a prediction came (`policy.onUnknown: Deny`): their ReplicaSets are asked to retry now.

A ReplicaSet whose pods are refused tries again later and later, up to a quarter of an hour. A change of its metadata
makes its controller look at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import aiohttp

from dippm_operator.controller.conditions import timestamp
from dippm_operator.kube import ApiClient, ApiFailure
from dippm_operator.resource import InferenceJob, OnUnknown
from dippm_operator.resource.names import JOB_LABEL, PREDICTED_ANNOTATION
from dippm_operator.sizing.json_patch import PatchBuilder

logger = logging.getLogger(__name__)

SPREAD_SECONDS = 0.5
"""The new status reaches every webhook's cache before the pods come again."""


def just_predicted(job: InferenceJob, now_fits: bool) -> bool:
    """Whether pods may have been held back until now: the job had no recommendation, and has one."""
    return job.spec.policy.on_unknown is OnUnknown.DENY and job.status.recommendation is None and now_fits


async def wake(api: ApiClient, job: InferenceJob, now: datetime) -> list[str]:
    """Touch the ReplicaSets of this job that lack pods; their names. Where it fails they try again by themselves."""
    path = f"/apis/apps/v1/namespaces/{job.metadata.namespace}/replicasets"
    await asyncio.sleep(SPREAD_SECONDS)
    names = []
    try:
        for replica_set in (await api.get(path))["items"]:
            if lacks_pods_of(replica_set, job):
                builder = PatchBuilder(replica_set)
                builder.put(timestamp(now), "metadata", "annotations", PREDICTED_ANNOTATION)
                name = replica_set["metadata"]["name"]
                await api.json_patch(f"{path}/{name}", builder.operations)
                names.append(name)
    except (ApiFailure, aiohttp.ClientError, TimeoutError) as error:
        logger.warning("%s/%s: ReplicaSets are not asked to retry: %s", *job.key, error)
    return names


def lacks_pods_of(replica_set: Mapping[str, Any], job: InferenceJob) -> bool:
    """Whether it has fewer pods than it wants, and they are sized by this job (by label, or by their Deployment)."""
    spec, metadata = replica_set.get("spec") or {}, replica_set["metadata"]
    if (replica_set.get("status") or {}).get("replicas", 0) >= spec.get("replicas", 1):
        return False
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    if (named := labels.get(JOB_LABEL)) is not None:
        return bool(named == job.metadata.name)
    target = job.spec.target_ref
    owners = [(o.get("kind"), o.get("name")) for o in metadata.get("ownerReferences") or []]
    return target is not None and (target.kind, target.name) in [*owners, ("ReplicaSet", metadata["name"])]
