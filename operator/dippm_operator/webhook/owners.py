"""Who made a pod: the chain of controlling owners, from metadata alone, each owner asked for once."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dippm_operator.kube.api import METADATA_ONLY, ApiClient, ApiFailure
from dippm_operator.resource import InferenceJob, group_of
from dippm_operator.webhook.review import is_name

logger = logging.getLogger(__name__)

ASKED = {
    ("apps", "ReplicaSet"): "apps/v1/{}/replicasets",
    ("apps", "Deployment"): "apps/v1/{}/deployments",
    ("apps", "StatefulSet"): "apps/v1/{}/statefulsets",
    ("apps", "DaemonSet"): "apps/v1/{}/daemonsets",
    ("batch", "Job"): "batch/v1/{}/jobs",
}
"""Owners that are asked for their age and their own owner (the chart's ClusterRole names the same). Others, such as
Argo's Rollout above a ReplicaSet, are known by the reference to them."""
LONGEST_CHAIN = 5
MOST_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Owner:
    """A reference to the controlling owner of an object."""

    group: str
    """API group without the version; empty for the core group."""
    kind: str
    name: str
    uid: str

    def is_meant_by(self, job: InferenceJob) -> bool:
        """Whether the job's `targetRef` names it. Versions of one group are the same object."""
        target = job.spec.target_ref
        return target is not None and target.workload == (self.group, self.kind, self.name)


def controller_of(metadata: Mapping[str, Any]) -> Owner | None:
    """The controlling owner that an object's metadata names."""
    for reference in metadata.get("ownerReferences") or ():
        if reference.get("controller"):
            group = group_of(str(reference.get("apiVersion", "")))
            return Owner(group, str(reference["kind"]), str(reference["name"]), str(reference["uid"]))
    return None


def job_of(chain: Iterable[Owner], jobs: Iterable[InferenceJob]) -> InferenceJob | None:
    """The job whose `targetRef` names an object of the chain; the oldest, where several do."""
    objects = tuple(chain)
    return min(
        (job for job in jobs if any(owner.is_meant_by(job) for owner in objects)),
        key=lambda job: (job.metadata.creation_timestamp, job.metadata.name),
        default=None,
    )


class Owners:
    """Looks owners up; creation time and parent of an object never change, so each is asked for once."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._known: dict[str, tuple[str, Owner | None]] = {}

    async def chain(self, pod: Mapping[str, Any], namespace: str) -> tuple[Owner, ...]:
        """The pod itself, its controller, the controller's controller and so on.

        Raises ApiFailure, aiohttp.ClientError or TimeoutError where the API server does not say.
        """
        metadata = pod.get("metadata") or {}
        found = [Owner("", "Pod", str(metadata.get("name", "")), "")]
        above = controller_of(metadata)
        while above is not None and len(found) < LONGEST_CHAIN:
            found.append(above)
            known = await self._ask(above, namespace)
            above = known[1] if known is not None else None
        return tuple(found)

    async def created(self, pod: Mapping[str, Any], namespace: str) -> str | None:
        """When the pod's controller was made; None for a bare pod or a controller of a kind that is not asked for."""
        owner = controller_of(pod.get("metadata") or {})
        known = await self._ask(owner, namespace) if owner is not None else None
        return known[0] if known is not None else None

    async def _ask(self, owner: Owner, namespace: str) -> tuple[str, Owner | None] | None:
        """(creation time, controller) of an owner; None where it is gone, hidden from us or of another kind."""
        place = ASKED.get((owner.group, owner.kind))
        if place is None or not is_name(owner.name):
            return None
        if owner.uid not in self._known:
            path = f"/apis/{place.format(f'namespaces/{namespace}')}/{owner.name}"
            try:
                found = await self._api.get_or_none(path, accept=METADATA_ONLY)
            except ApiFailure as failure:
                if failure.code != 403:
                    raise
                logger.warning("the owners of pods are known up to here only: %s", failure.message)
                return None
            if found is None or found["metadata"]["uid"] != owner.uid:
                return None
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            self._known[owner.uid] = (found["metadata"]["creationTimestamp"], controller_of(found["metadata"]))
        return self._known[owner.uid]
