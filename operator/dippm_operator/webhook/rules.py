"""Rules of an InferenceJob that a schema cannot hold: devices, profiles, what is not served yet. Pure.

Each refusal is one sentence that names the field and the way out. What the schema and CEL say already is said again
by `parse_inference_job`, for clusters whose CRD is of another version.
"""

from __future__ import annotations

from collections.abc import Iterable

from dippm.errors import ManifestError, UnknownDevice, UnknownProfile
from dippm.profiles import Device, parse_profile, resolve_device
from dippm_operator.resource import InferenceJob
from dippm_operator.resource.served import not_served


def check_job(job: InferenceJob) -> None:
    """Raises ManifestError, UnknownDevice or UnknownProfile for the first rule that the job breaks."""
    name, spec = f"InferenceJob {job.metadata.name}", job.spec
    if sentences := not_served(spec):
        raise ManifestError(f"{name}: {sentences[0]}")
    device: Device | None = None
    if spec.device is not None:
        try:
            device = resolve_device(spec.device)
        except UnknownDevice as error:
            raise UnknownDevice(f"{name}: spec.device: {error}") from None
    _check_profiles(name, "allowedProfiles", spec.policy.allowed_profiles or (), device)
    if spec.policy.fallback_profile is not None:
        _check_profiles(name, "fallbackProfile", (spec.policy.fallback_profile,), device)


def _check_profiles(name: str, field: str, profiles: Iterable[str], device: Device | None) -> None:
    """A profile must be one by its name, and where the device is given one of that device's."""
    for profile in profiles:
        try:
            parsed = parse_profile(profile)
            if device is not None:
                # `+me` and the like are variants of a size: the catalogue lists sizes.
                device.profile(profile.removesuffix(parsed.attributes) if parsed.attributes else profile)
        except UnknownProfile as error:
            raise UnknownProfile(f"{name}: spec.policy.{field}: {error}") from None


def older_rival(job: InferenceJob, others: Iterable[InferenceJob]) -> InferenceJob | None:
    """The older job that sizes the same workload already: the older one stays in force."""
    target = job.spec.target_ref
    rivals = [
        other
        for other in others
        if target is not None
        and other.spec.target_ref is not None
        and other.metadata.name != job.metadata.name
        and target.workload == other.spec.target_ref.workload
        and (other.metadata.creation_timestamp or "9") <= (job.metadata.creation_timestamp or "9")
    ]
    return min(rivals, key=lambda other: (other.metadata.creation_timestamp, other.metadata.name), default=None)
