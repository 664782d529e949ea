"""What the watches have seen: InferenceJobs, the Jobs made for them, and what the nodes offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dippm_operator.resource.names import JOB_LABEL
from dippm_operator.sizing.inventory import Inventory, NodeOffer, node_offer
from dippm_operator.sizing.pod_state import PodState, pod_state

Key = tuple[str, str]
"""(namespace, name)."""
Body = Mapping[str, Any]

DELETED = "DELETED"


def key_of(body: Body) -> Key:
    """(namespace, name) of an object."""
    metadata = body["metadata"]
    return metadata.get("namespace", "default"), metadata["name"]


class ClusterState:
    """The last version of each watched object."""

    def __init__(self, declared: tuple[tuple[str, str], ...] = ()) -> None:
        self._declared = declared
        self._inference_jobs: dict[Key, Body] = {}
        self._jobs: dict[Key, Body] = {}
        self._pods: dict[Key, dict[str, PodState]] = {}
        self._nodes: dict[str, NodeOffer] = {}
        self._inventory: Inventory | None = None

    @property
    def inventory(self) -> Inventory:
        """What the nodes offer now."""
        if self._inventory is None:
            self._inventory = Inventory(tuple(self._nodes[name] for name in sorted(self._nodes)), self._declared)
        return self._inventory

    @property
    def inference_jobs(self) -> Mapping[Key, Body]:
        """All InferenceJobs."""
        return self._inference_jobs

    def inference_job(self, key: Key) -> Body | None:
        """An InferenceJob as last seen."""
        return self._inference_jobs.get(key)

    def job(self, key: Key) -> Body | None:
        """A batch/v1 Job with our label, as last seen."""
        return self._jobs.get(key)

    def pods(self, key: Key) -> Sequence[PodState]:
        """Pods that name this InferenceJob in their label."""
        return tuple(self._pods.get(key, {}).values())

    def see_inference_job(self, event: str | None, body: Body) -> Key:
        """Take in an InferenceJob; its key."""
        return _see(self._inference_jobs, event, body)

    def see_job(self, event: str | None, body: Body) -> Key:
        """Take in a Job; the key of the InferenceJob that its label names."""
        namespace, _ = _see(self._jobs, event, body)
        return namespace, (body["metadata"].get("labels") or {}).get(JOB_LABEL, "")

    def see_pod(self, event: str | None, body: Body) -> Key | None:
        """Take in a pod; the key of the InferenceJob that its label names, if that pod now stands otherwise."""
        namespace, name = key_of(body)
        key = namespace, (body["metadata"].get("labels") or {}).get(JOB_LABEL, "")
        pods = self._pods.setdefault(key, {})
        before = pods.pop(name, None)
        after = None if event == DELETED else pod_state(body)
        if after is not None:
            pods[name] = after
        if not pods:
            del self._pods[key]
        return None if before == after else key

    def see_node(self, event: str | None, body: Body) -> bool:
        """Take in a node; whether what the cluster offers changed."""
        name = body["metadata"]["name"]
        offer = None if event == DELETED else node_offer(body)
        if offer == self._nodes.get(name):
            return False
        if offer is None:
            del self._nodes[name]
        else:
            self._nodes[name] = offer
        self._inventory = None
        return True


def _see(objects: dict[Key, Body], event: str | None, body: Body) -> Key:
    key = key_of(body)
    if event == DELETED:
        objects.pop(key, None)
    else:
        objects[key] = body
    return key
