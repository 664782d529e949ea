"""The InferenceJob itself, and reading one from a manifest or from the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails

from dippm.errors import ManifestError
from dippm_operator.resource.base import Part
from dippm_operator.resource.model import DIGEST_PATTERN, URI_MESSAGE, URI_PATTERN
from dippm_operator.resource.names import API_VERSION, GROUP, KIND, NAME_LIMIT, PROFILE_PATTERN
from dippm_operator.resource.spec import InferenceJobSpec
from dippm_operator.resource.status import InferenceJobStatus

_PATTERNS = {
    URI_PATTERN: URI_MESSAGE,
    DIGEST_PATTERN: "must be sha256: followed by 64 hexadecimal digits",
    PROFILE_PATTERN: "must be a MIG profile such as 1g.5gb",
}


class Metadata(Part):
    """The part of ObjectMeta that is read."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class InferenceJob(Part):
    """One InferenceJob; `status` is empty before the operator saw it."""

    metadata: Metadata
    spec: InferenceJobSpec
    status: InferenceJobStatus = Field(default_factory=InferenceJobStatus)

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.metadata.namespace, self.metadata.name


def is_inference_job(document: object) -> bool:
    """Whether a parsed manifest says that it is an InferenceJob, of whatever version of the group."""
    return (
        isinstance(document, Mapping)
        and document.get("kind") == KIND
        and str(document.get("apiVersion", "")).partition("/")[0] == GROUP
    )


def parse_inference_job(body: Mapping[str, Any], *, strict: bool = True) -> InferenceJob:
    """Read an InferenceJob from its parsed manifest.

    `strict` refuses unknown fields of `spec` (a manifest that a person wrote); without it they are ignored (an object
    from the API server, which has validated it and may know a newer version of the schema).
    Raises ManifestError: one sentence that names the field and what it must be.
    """
    named = _name(body)
    if body.get("apiVersion") != API_VERSION or body.get("kind") != KIND:
        raise ManifestError(
            f"{named}: apiVersion and kind are {body.get('apiVersion')!r} and {body.get('kind')!r}; "
            f"this version reads {API_VERSION} {KIND}."
        )
    metadata = body.get("metadata")
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("name"), str):
        raise ManifestError(f"{named}: metadata.name is missing; give the InferenceJob a name.")
    if len(metadata["name"]) > NAME_LIMIT:
        raise ManifestError(
            f"{named}: metadata.name has {len(metadata['name'])} characters; "
            f"at most {NAME_LIMIT} are allowed, because it becomes a label and the name of a Job."
        )
    if not isinstance(body.get("spec"), Mapping):
        raise ManifestError(
            f"{named}: spec is missing; it must at least have model, batchSize and template or targetRef."
        )
    try:
        return InferenceJob(
            metadata=Metadata.model_validate({k: v for k, v in metadata.items() if v is not None}, extra="ignore"),
            spec=InferenceJobSpec.model_validate(body["spec"], extra="forbid" if strict else "ignore"),
            status=InferenceJobStatus.model_validate(body.get("status") or {}, extra="ignore"),
        )
    except ValidationError as error:
        root = {"InferenceJobSpec": "spec", "Metadata": "metadata"}.get(error.title, "status")
        raise ManifestError(f"{named}: {_sentence(root, error.errors()[0])}") from None


def _name(body: Mapping[str, Any]) -> str:
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    return f"InferenceJob {name}" if isinstance(name, str) and name else "InferenceJob without a name"


def _sentence(root: str, error: ErrorDetails) -> str:
    """One pydantic error as a sentence: the field as a user writes it, and what it must be."""
    field = root + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"])
    context = error.get("ctx", {})
    kind = error["type"]
    if kind == "missing":
        return f"{field} is missing; it is required."
    if kind == "extra_forbidden":
        return f"{field} is not a field of an InferenceJob; check its spelling or remove it."
    if kind == "value_error":
        return f"{field}: {context['error']}."
    if kind == "string_pattern_mismatch":
        must = _PATTERNS.get(str(context["pattern"]), f"must match {context['pattern']}")
        return f"{field} is {error['input']!r}; it {must}."
    if kind == "enum":
        return f"{field} is {error['input']!r}; it must be {context['expected']}."
    message = error["msg"].replace("Input should be", "it must be").replace("String should", "it should")
    value = error["input"]
    shown = repr(value) if isinstance(value, str | int | float | bool) or value is None else f"a {type(value).__name__}"
    return f"{field} is {shown}; {message}."
