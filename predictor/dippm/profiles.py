"""MIG profiles and the devices that have them: names, sizes, and what a cluster's labels say about both.

Names follow NVIDIA: a profile is `[<ci>c.]<compute>g.<memory>gb[+attribute|-attribute]`, its extended resource is
`nvidia.com/mig-` and the name with `+` written as `.` (`1g.5gb+me` is `nvidia.com/mig-1g.5gb.me`, `-me` stays).
Sizes come from the node's labels first, then from the catalogue, and for a name in neither from the name itself.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from dippm import catalogue
from dippm.errors import UnknownDevice, UnknownProfile

RESOURCE_PREFIX = "nvidia.com/mig-"
FULL_GPU = "full"
"""The profile name that stands for a whole card with MIG off."""
FULL_GPU_RESOURCE = "nvidia.com/gpu"

LEAST_USABLE_MIB_PER_GB = 896
"""Usable MiB for each nominal GB of a profile that neither labels nor catalogue know. The tightest known is 910
(1g.18gb of an H200 offers 16,384 MiB): a slice taken for too small costs money, for too large the pod."""

NEAR = 0.2
"""A footprint this close to a profile's usable memory is near a boundary: there a small error changes the profile."""
_NAME = re.compile(
    r"(?:(?P<ci>\d+)c\.)?(?P<compute>\d+)g\.(?P<memory>\d+)gb(?P<attributes>(?:[+-][a-z0-9]+(?:\.all)?)*)"
)
_LABEL = re.compile(
    re.escape(RESOURCE_PREFIX) + r"(?P<profile>.+)\.(?P<what>memory|slices\.gi|multiprocessors|product)"
)
_MIG_PRODUCT = re.compile(r"(?P<product>.+)-MIG-(?P<profile>.+)", re.IGNORECASE)
_SHARED = re.compile(r"[.-]shared$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ProfileName:
    """A profile's name, taken apart."""

    compute: int
    """Compute slices (the `2` of `2g.10gb`)."""
    memory_gb: int
    """Nominal size in GB, which is not what is usable."""
    attributes: str = ""
    """`+me`, `-me`, `+gfx`, `+me.all`, or nothing."""
    compute_instance: int | None = None
    """The `1` of `1c.3g.20gb`: a share of a GPU instance, for which the device plugin has no resource."""


def parse_profile(name: str) -> ProfileName:
    """Takes a profile's name apart, whether or not any table has it. Raises UnknownProfile if it is no such name."""
    match = _NAME.fullmatch(name.strip())
    if match is None or int(match["compute"]) == 0 or int(match["memory"]) == 0:
        raise UnknownProfile(
            f"{name!r} is not a MIG profile: write it as nvidia-smi does, for example 1g.5gb or 1g.10gb+me"
        )
    return ProfileName(
        compute=int(match["compute"]),
        memory_gb=int(match["memory"]),
        attributes=match["attributes"],
        compute_instance=int(match["ci"]) if match["ci"] else None,
    )


def resource_name(profile: str) -> str:
    """The extended resource of a profile under the device plugin's `mixed` strategy, e.g. `nvidia.com/mig-1g.5gb`.

    Raises UnknownProfile for a name that is none, and for a compute instance (`1c.3g.20gb`), which has no resource.
    """
    if profile == FULL_GPU:
        return FULL_GPU_RESOURCE
    if parse_profile(profile).compute_instance is not None:
        raise UnknownProfile(
            f"{profile} is a compute instance, which Kubernetes has no resource for: use its GPU instance"
        )
    return RESOURCE_PREFIX + profile.strip().replace("+", ".")


def profile_of_resource(resource: str) -> str | None:
    """The profile that an extended resource stands for; None if it is no MIG slice, or a time-shared one.

    A shared slice (`nvidia.com/mig-1g.5gb.shared`) has no memory of its own, so nothing can be sized on it.
    """
    if not resource.startswith(RESOURCE_PREFIX) or _SHARED.search(resource):
        return None
    name = resource.removeprefix(RESOURCE_PREFIX)
    size, found, rest = name.partition("gb")
    name = size + found + re.sub(r"\.(?!all)", "+", rest)
    return name if _NAME.fullmatch(name) else None


@dataclass(frozen=True, slots=True)
class Profile:
    """One MIG profile of one device (or, named `full`, the whole card)."""

    name: str
    usable_mib: int
    """What a process on this slice can have, context included, MiB."""
    compute: int
    """Compute slices."""
    memory_eighths: int
    """Share of the memory system (bandwidth, L2), in eighths."""

    @property
    def resource(self) -> str:
        """Extended resource name, e.g. `nvidia.com/mig-1g.5gb`."""
        return resource_name(self.name)

    @classmethod
    def from_name(cls, name: str, usable_mib: int | None = None, compute: int | None = None) -> Profile:
        """A profile of which only the name is known, and perhaps what a label says of its size or compute slices."""
        parsed = parse_profile(name)
        return cls(
            name=name,
            usable_mib=parsed.memory_gb * LEAST_USABLE_MIB_PER_GB if usable_mib is None else usable_mib,
            compute=parsed.compute if compute is None else compute,
            memory_eighths=parsed.compute,
        )


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU product and its profiles, smallest first."""

    product: str
    """As GPU Feature Discovery gives it, without `NVIDIA-`."""
    entry: str
    """The catalogue entry (`A100-40GB`); the product itself where the catalogue has none."""
    profiles: tuple[Profile, ...]
    full_usable_mib: int | None = None
    """Usable MiB of the whole card with MIG off; None if not known."""

    def profile(self, name: str) -> Profile:
        """The profile called `name`. Raises UnknownProfile, naming those that there are."""
        for profile in self.with_full_gpu():
            if profile.name == name.strip():
                return profile
        names = ", ".join(p.name for p in self.profiles)
        raise UnknownProfile(f"{self.product} has no MIG profile {name!r}: it has {names}")

    def with_full_gpu(self) -> tuple[Profile, ...]:
        """The profiles, and the whole card last where its size is known."""
        if self.full_usable_mib is None:
            return self.profiles
        return (*self.profiles, Profile(FULL_GPU, self.full_usable_mib, compute=self._slices(), memory_eighths=8))

    def _slices(self) -> int:
        return max((p.compute for p in self.profiles), default=7)


def size_order(usable_mib: float, profile: str) -> tuple[bool, float, int, str]:
    """Sort key of "smaller": usable memory, then compute slices, then the name; a whole card after every slice."""
    full = profile == FULL_GPU
    return full, usable_mib, 0 if full else parse_profile(profile).compute, profile


@cache
def known_devices() -> Mapping[str, Device]:
    """Every product in the catalogue, by its name."""
    body = catalogue.read("mig_profiles.yaml")
    devices = {}
    for product, entry in body["products"].items():
        profiles = [
            Profile(name, p["usable_mib"], p["compute"], p["mem"]) for name, p in body["profiles"][entry].items()
        ]
        profiles.sort(key=lambda p: size_order(p.usable_mib, p.name))
        devices[product] = Device(product, entry, tuple(profiles), body["full_gpu"].get(entry))
    return devices


def product_name(name: str) -> str:
    """GPU Feature Discovery's product label without `NVIDIA-` and what it appends (`-MIG-1g.5gb`, `-SHARED`)."""
    name = _SHARED.sub("", name.strip().replace(" ", "-"))
    if match := _MIG_PRODUCT.fullmatch(name):
        name = match["product"]
    return name[len("NVIDIA-") :] if name.upper().startswith("NVIDIA-") else name


def resolve_device(name: str) -> Device:
    """The device that a user means: a product, a catalogue entry (its first product) or an alias (`A100`).

    Letter case and `NVIDIA-` do not matter. Raises UnknownDevice in one sentence that lists near matches.
    """
    body = catalogue.read("mig_profiles.yaml")
    spelled: dict[str, str] = {}
    for product, entry in body["products"].items():
        spelled.setdefault(entry.lower(), product)
        spelled[product.lower()] = product
    spelled.update({alias.lower(): product for alias, product in body["aliases"].items()})
    key = product_name(name).lower()
    if key in spelled:
        return known_devices()[spelled[key]]
    near = difflib.get_close_matches(key, spelled, n=4, cutoff=0.5)
    family = [s for s in spelled if key and s.startswith(key[:4])]
    products = list(dict.fromkeys(spelled[s] for s in (*near, *family))) or list(known_devices())
    raise UnknownDevice(
        f"unknown device {name!r}: did you mean {', '.join(products)}? (GPU Feature Discovery's product name without "
        "NVIDIA-; `dippm profiles` lists all)"
    )


def advertised_profiles(labels: Mapping[str, str]) -> dict[str, Profile]:
    """The profiles that a node's GPU Feature Discovery labels describe, by name, sized as the labels say.

    Reads both strategies: `mixed` (`nvidia.com/mig-<p>.memory`) and `single` (product `...-MIG-<p>`,
    `nvidia.com/gpu.memory`). Shared slices and broken layouts (`MIG-INVALID`) are left out.
    """
    return {name: Profile.from_name(name, usable, compute) for name, (usable, compute) in _said(labels).items()}


def _said(labels: Mapping[str, str]) -> dict[str, tuple[int | None, int | None]]:
    """What labels say of each profile: usable MiB and compute slices, None where they are silent."""
    found: dict[str, dict[str, str]] = {}
    for key, value in labels.items():
        if (match := _LABEL.fullmatch(key)) and (name := profile_of_resource(RESOURCE_PREFIX + match["profile"])):
            found.setdefault(name, {})[match["what"]] = value
    found = {name: said for name, said in found.items() if not _SHARED.search(said.get("product", ""))}
    product = labels.get("nvidia.com/gpu.product", "")
    if (match := _MIG_PRODUCT.fullmatch(product)) and _NAME.fullmatch(match["profile"]):
        found[match["profile"]] = {
            "memory": labels.get("nvidia.com/gpu.memory", ""),
            "slices.gi": labels.get("nvidia.com/gpu.slices.gi", ""),
        }
    return {name: (_positive(said.get("memory")), _positive(said.get("slices.gi"))) for name, said in found.items()}


def device_from_labels(labels: Mapping[str, str]) -> Device | None:
    """The device of a node, its profiles sized as its labels say; None if no label names a GPU product.

    The table fills in what the labels leave out; a product that the table lacks has the advertised profiles alone.
    """
    said = [labels.get("nvidia.com/gpu.product", "")]
    said += [v for k, v in sorted(labels.items()) if k.startswith(RESOURCE_PREFIX) and k.endswith(".product")]
    product = next((product_name(s) for s in said if s), None)
    if product is None:
        return None
    device = known_devices().get(product) or Device(product, product, ())
    return with_labels(device, labels)


def with_labels(device: Device, labels: Mapping[str, str]) -> Device:
    """`device` with the sizes that a node's labels give; profiles that only the labels know are added."""
    table = {p.name: p for p in device.profiles}
    for name, (usable, compute) in _said(labels).items():
        if name not in table:
            table[name] = Profile.from_name(name, usable, compute)
        elif usable is not None:
            table[name] = replace(table[name], usable_mib=usable)
    profiles = sorted(table.values(), key=lambda p: size_order(p.usable_mib, p.name))
    return replace(device, profiles=tuple(profiles))


def _positive(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and int(text) > 0 else None
