"""What the nodes offer: devices, slices, and whether they are tainted. Pure: from v1 Node objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dippm.errors import UnknownDevice
from dippm.profiles import Device, device_from_labels, product_name, profile_of_resource, resource_name
from dippm_operator.resource.names import GPU_TAINT
from dippm_operator.sizing.container import is_gpu_resource

_STATE_LABEL = "nvidia.com/mig.config.state"
_SETTLED = ("success", "")


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """One node's GPU and what a pod can ask of it."""

    device: Device
    """Profiles sized as the node's labels say."""
    resources: frozenset[str]
    """Extended resources with at least one allocatable."""
    tainted: bool
    """It has the taint `nvidia.com/gpu:NoSchedule`."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the cluster's GPU nodes offer."""

    nodes: tuple[NodeOffer, ...] = ()
    declared: tuple[tuple[str, str], ...] = ()
    """(product, resource) of node groups that scale from zero: no node says so now, one will when a pod waits."""

    def offers(self, product: str, resource: str) -> bool:
        """Whether a node of that product has the resource allocatable."""
        return any(n.device.product == product and resource in n.resources for n in self.nodes)

    def expects(self, product: str, resource: str) -> bool:
        """Whether a node with that resource is declared to come when it is needed."""
        return (product, resource) in self.declared

    def device(self, product: str) -> Device | None:
        """The device as its nodes' labels size it; None if no node has it."""
        return next((n.device for n in self.nodes if n.device.product == product), None)

    def offers_slices(self, product: str) -> bool:
        """Whether a node of that product has any MIG slice allocatable."""
        return any(profile_of_resource(r) for n in self.nodes if n.device.product == product for r in n.resources)

    def usual_product(self) -> str | None:
        """The product that most nodes with MIG slices advertise (the first by name among equals); else one declared."""
        counts: dict[str, int] = {}
        for node in self.nodes:
            if any(profile_of_resource(r) for r in node.resources):
                counts[node.device.product] = counts.get(node.device.product, 0) + 1
        if not counts:
            return min((product for product, _ in self.declared), default=None)
        return min(counts, key=lambda product: (-counts[product], product))

    def needs_toleration(self, product: str, resource: str) -> bool:
        """Whether every node of the product that offers the resource is tainted."""
        offering = [n for n in self.nodes if n.device.product == product and resource in n.resources]
        return bool(offering) and all(n.tainted for n in offering)


def declare(text: str) -> tuple[tuple[str, str], ...]:
    """Read `PRODUCT=PROFILE,PROFILE`. Raises UnknownProfile for a name that is none, UnknownDevice for no product."""
    product, equals, profiles = text.partition("=")
    if not equals or not product:
        raise UnknownDevice(f"{text!r} declares nothing: write PRODUCT=PROFILE,PROFILE, as in A30=1g.6gb,2g.12gb")
    return tuple((product_name(product), resource_name(profile)) for profile in profiles.split(","))


def inventory_of(nodes: Iterable[Mapping[str, Any]]) -> Inventory:
    """Read v1 Node objects. A node that is being repartitioned is left out: what it says may be stale."""
    offers = [offer for node in nodes if (offer := node_offer(node)) is not None]
    return Inventory(tuple(offers))


def node_offer(node: Mapping[str, Any]) -> NodeOffer | None:
    """What one v1 Node offers; None without a GPU, or while it is being repartitioned."""
    labels: Mapping[str, str] = (node.get("metadata") or {}).get("labels") or {}
    if labels.get(_STATE_LABEL, "") not in _SETTLED or "paused-for-mig-change" in labels.values():
        return None
    device = device_from_labels(labels)
    if device is None:
        return None
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    resources = frozenset(
        name for name, quantity in allocatable.items() if is_gpu_resource(name) and str(quantity) not in ("", "0")
    )
    taints = (node.get("spec") or {}).get("taints") or []
    tainted = any(t.get("key") == GPU_TAINT and t.get("effect") == "NoSchedule" for t in taints)
    return NodeOffer(device, resources, tainted)
