"""What a Secret holds for a store, as KServe names its keys. Pure: from the Secret's data to what a client is given.

Keys and annotations: https://kserve.github.io/website/docs/model-serving/storage/providers/s3 (and its neighbours).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import urlsplit

from dippm.errors import ArtifactUnreachable

HOSTS_ANNOTATION = "dippm.dev/hosts"
"""On a Secret: the hosts that it may be sent to, separated by commas; `*` stands for part of a name."""
_KSERVE = ("serving.kserve.io/", "serving.kubeflow.org/")


@dataclass(frozen=True, slots=True)
class Credentials:
    """A Secret's content, and where it may go."""

    data: Mapping[str, str] = field(repr=False)
    hosts: tuple[str, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)
    """KServe's own, without their prefix: `s3-endpoint`, `s3-region`, `s3-usehttps`."""
    name: str = ""
    """The Secret's."""

    @staticmethod
    def from_secret(secret: Mapping[str, Any]) -> Credentials:
        """From a Secret as the API gives it.

        Raises ArtifactUnreachable where a value is not base64 text.
        """
        metadata = secret.get("metadata") or {}
        name = str(metadata.get("name", ""))
        try:
            data = {
                key: base64.b64decode(value, validate=True).decode()
                for key, value in (secret.get("data") or {}).items()
            }
        except (binascii.Error, UnicodeDecodeError):
            raise ArtifactUnreachable(
                f"Secret {name} has a value that is not text; see docs/guide/sources.md."
            ) from None
        annotations = metadata.get("annotations") or {}
        own = {
            key.removeprefix(prefix): value
            for prefix in reversed(_KSERVE)
            for key, value in annotations.items()
            if key.startswith(prefix)
        }
        hosts = tuple(host.strip().lower() for host in annotations.get(HOSTS_ANNOTATION, "").split(",") if host.strip())
        return Credentials(data, hosts, own, name)

    def check_host(self, host: str) -> None:
        """Raise ArtifactUnreachable unless the Secret says that it may be sent there."""
        if not any(fnmatchcase(host.lower(), pattern) for pattern in self.hosts):
            raise ArtifactUnreachable(
                f"Secret {self.name} may not be sent to {host}; "
                f"its owner allows it with the annotation {HOSTS_ANNOTATION}: {host}."
            )

    def need(self, key: str) -> str:
        """The value of a key. Raises ArtifactUnreachable where the Secret lacks it."""
        value = self.data.get(key, "").strip()
        if not value:
            raise ArtifactUnreachable(f"Secret {self.name} has no {key}, which this URI needs; add it.")
        return value


@dataclass(frozen=True, slots=True)
class S3Options:
    """How an S3 store is spoken to."""

    endpoint: str
    """URL; empty: AWS's own."""
    region: str
    key: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    token: str = field(default="", repr=False)


def s3_options(credentials: Credentials | None) -> S3Options:
    """Keys AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN; anonymous without a Secret.

    Raises ArtifactUnreachable where a key is missing, or the Secret may not be sent to its endpoint.
    """
    if credentials is None:
        return S3Options("", "")
    notes = credentials.annotations
    endpoint = notes.get("s3-endpoint", "") or credentials.data.get("AWS_ENDPOINT_URL", "").strip()
    if endpoint and "://" not in endpoint:
        endpoint = ("http://" if notes.get("s3-usehttps") == "0" else "https://") + endpoint
    region = notes.get("s3-region", "") or credentials.data.get("AWS_DEFAULT_REGION", "").strip()
    host = endpoint.partition("://")[2].partition("/")[0].rpartition("@")[2] if endpoint else "s3.amazonaws.com"
    credentials.check_host(host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host)
    if notes.get("s3-useanoncredential", "").lower() in ("true", "1"):
        return S3Options(endpoint, region)
    return S3Options(
        endpoint, region, credentials.need("AWS_ACCESS_KEY_ID"), credentials.need("AWS_SECRET_ACCESS_KEY"),
        credentials.data.get("AWS_SESSION_TOKEN", "").strip(),
    )  # fmt: skip


def http_headers(uri: str, credentials: Credentials) -> dict[str, str]:
    """Headers for a URL: the key `headers` (a JSON object, or lines of `Name: value`), as KServe's HTTPS Secrets have.

    Raises ArtifactUnreachable where the Secret has none, or may not be sent to the URL's host.
    """
    parts = urlsplit(uri)
    credentials.check_host(parts.hostname or "")
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ArtifactUnreachable(f"Secret {credentials.name} is not sent over http:; use an https:// URI.")
    text = credentials.need("headers")
    try:
        given = json.loads(text)
        headers = {str(key): str(value) for key, value in given.items()}
    except (ValueError, AttributeError):
        lines = (line.partition(":") for line in text.splitlines() if line.strip())
        headers = {key.strip(): value.strip() for key, _, value in lines}
    if not all(key and key.isascii() and value and "\n" not in value for key, value in headers.items()):
        raise ArtifactUnreachable(f"Secret {credentials.name}: headers is neither JSON nor lines of Name: value.")
    return headers


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, where nobody listens on the wire."""
    return host in ("localhost", "127.0.0.1", "::1")
