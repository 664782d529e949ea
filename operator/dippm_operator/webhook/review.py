"""AdmissionReview v1 in and out.

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#request
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dippm.errors import ManifestError

API_VERSION = "admission.k8s.io/v1"
LONGEST_WARNING = 256
"""The API server may cut longer ones (and drops all above 4,096 characters together)."""
MOST_WARNINGS = 8
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Review:
    """What the API server asks about."""

    uid: str
    operation: str
    """CREATE, UPDATE, DELETE or CONNECT."""
    kind: str
    namespace: str
    name: str
    """Empty for an object whose name is still to be generated."""
    object: Mapping[str, Any]
    old_object: Mapping[str, Any] = field(default_factory=dict)
    user: Mapping[str, Any] = field(default_factory=dict)
    """The `userInfo`: username, uid, groups, extra."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Allowed, perhaps with a patch, or refused with a code and one sentence."""

    allowed: bool = True
    patch: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()
    code: int = 200
    status: str = ""
    """The `reason` of the metav1.Status: one CamelCase word of Kubernetes' own list (Invalid, Forbidden, ...)."""
    message: str = ""
    reason: str = ""
    """Our own word for what was done; goes to the metrics and the audit log."""


def is_name(text: object) -> bool:
    """Whether something can be the name of an object, and so a part of an API path."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def refusal(code: int, status: str, message: str, *, reason: str) -> Answer:
    """An answer that keeps the object out."""
    return Answer(allowed=False, code=code, status=status, message=message, reason=reason)


def read_review(body: bytes) -> Review:
    """Decode a request. Raises ManifestError when it is no AdmissionReview that can be answered."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # brackets in brackets in brackets
        raise ManifestError("the request's body is no JSON; send an AdmissionReview") from None
    if not isinstance(document, dict) or document.get("apiVersion") != API_VERSION:
        raise ManifestError(f"the request's body is no {API_VERSION} AdmissionReview")
    request = document.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str) or not request["uid"]:
        raise ManifestError("the AdmissionReview has no request.uid, so that it cannot be answered")

    if not is_name(request.get("namespace", "none")):
        raise ManifestError("the AdmissionReview's request.namespace is no name of a namespace")

    def mapping(key: str) -> Mapping[str, Any]:
        value = request.get(key)
        return value if isinstance(value, dict) else {}

    return Review(
        uid=request["uid"],
        operation=str(request.get("operation", "")),
        kind=str(mapping("kind").get("kind", "")),
        namespace=str(request.get("namespace", "")),
        name=str(request.get("name", "")),
        object=mapping("object"),
        old_object=mapping("oldObject"),
        user=mapping("userInfo"),
        dry_run=bool(request.get("dryRun")),
    )


def write_review(uid: str, answer: Answer) -> bytes:
    """Encode the response to the request with this uid."""
    response: dict[str, Any] = {"uid": uid, "allowed": answer.allowed}
    if answer.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(answer.patch).encode()).decode()
    if answer.warnings:
        response["warnings"] = [_short(warning) for warning in answer.warnings[:MOST_WARNINGS]]
    if not answer.allowed:
        response["status"] = {"code": answer.code, "reason": answer.status, "message": answer.message}
    if answer.reason:
        response["auditAnnotations"] = {"reason": answer.reason}
    return json.dumps({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}).encode()


def _short(warning: str) -> str:
    """One line (a warning travels in an HTTP header), of a length that is not cut."""
    line = " ".join(warning.split())
    return line if len(line) <= LONGEST_WARNING else line[: LONGEST_WARNING - 3] + "..."
