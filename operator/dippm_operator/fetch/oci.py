"""`oci://registry/repository[:tag|@digest]`: a model file as a layer of an OCI artifact, as `oras push` makes one.

https://github.com/opencontainers/distribution-spec/blob/main/spec.md,
https://distribution.github.io/distribution/spec/auth/token/ (how a registry says where tokens are)
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
from yarl import URL

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable, DigestMismatch
from dippm_operator.fetch.address import check_host
from dippm_operator.fetch.credentials import Credentials, is_loopback
from dippm_operator.fetch.folder import MODEL_SUFFIXES
from dippm_operator.fetch.http import HttpSource, shown, spoken
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.source import Look

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
TITLE = "org.opencontainers.image.title"
"""Annotation of a layer: the name of the file in it."""
KEY = ".dockerconfigjson"
_LONGEST_ANSWER = 4 * 1024 * 1024
_URI = re.compile(
    r"oci://(?P<host>[\w.-]+(:\d+)?)/(?P<name>[a-z0-9]+(([._/]|__|-+)[a-z0-9]+)*)"
    r"(:(?P<tag>\w[\w.-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Reference:
    """What an `oci://` URI names."""

    host: str
    """With its port, if it has one."""
    name: str
    version: str
    """A tag, or the digest of the manifest."""

    @property
    def url(self) -> str:
        """Where the repository's API is: over https, but for a registry on this very machine."""
        scheme = "http" if is_loopback(self.host.partition(":")[0]) else "https"
        return f"{scheme}://{self.host}/v2/{self.name}"


def parse_oci(uri: str) -> Reference:
    """Take a URI apart. Raises ArtifactUnreachable."""
    match = _URI.fullmatch(uri)
    if match is None:
        raise ArtifactUnreachable(f"{shown(uri)} is not oci://REGISTRY/REPOSITORY[:TAG|@sha256:DIGEST]; write it so.")
    return Reference(match["host"], match["name"], match["digest"] or match["tag"] or "latest")


def model_layer(name: str, manifest: Mapping[str, Any]) -> str:
    """The digest of the layer that is the model file. Pure.

    Raises ArtifactUnreachable where there is none that can be told, or several.
    """
    layers = manifest.get("layers")
    if manifest.get("schemaVersion") != 2 or not isinstance(layers, list):
        raise ArtifactUnreachable(f"{name} is not one artifact with layers; name one by its digest.")
    titles = {str((layer.get("annotations") or {}).get(TITLE, "")): str(layer.get("digest", "")) for layer in layers}
    found = sorted(title for title in titles if title.endswith(MODEL_SUFFIXES))
    if len(found) != 1:
        has = f"several model files ({', '.join(found[:5])})" if found else "no layer that is a model file"
        raise ArtifactUnreachable(
            f"{name} has {has}; push exactly one file with one of {', '.join(MODEL_SUFFIXES)} (oras push), "
            "not in a tar."
        )
    digest = titles[found[0]]
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise ArtifactUnreachable(f"{name} names its model by {digest[:20]}, not by sha256; push it again.")
    return digest


class LayerSource(HttpSource):
    """A blob, known by its digest, which the registry vouches for."""

    digest = ""

    async def look(self, known: Look | None) -> Look | None:
        if known is not None and known.content_digest == self.digest:
            return None  # the manifest has just said so, to these credentials
        look = await super().look(None)
        return None if look is None else replace(look, content_digest=self.digest)


async def oci_source(
    session: aiohttp.ClientSession, uri: str, credentials: Credentials | None, limits: FetchLimits
) -> LayerSource:
    """The model's layer: 1. the manifest, 2. a token where the registry asks for one, 3. the layer in it."""
    reference, name = parse_oci(uri), shown(uri)
    basic = _basic(reference.host, credentials)
    url = f"{reference.url}/manifests/{reference.version}"
    headers = {"Accept": MANIFEST} | ({"Authorization": basic} if basic else {})
    with spoken(name):
        status, answered, body = await _get(session, name, url, headers, limits)
        challenge = answered.get("WWW-Authenticate", "")
        if status == 401 and challenge.lower().startswith("bearer "):
            token = await _token(session, name, dict(_CHALLENGE.findall(challenge)), basic, credentials, limits)
            headers["Authorization"] = f"Bearer {token}"
            status, answered, body = await _get(session, name, url, headers, limits)
        if status != 200:
            raise ArtifactUnreachable(f"{name} answered {status}; check its name and tag, and spec.model.secretRef.")
        if reference.version.startswith("sha256:") and hashlib.sha256(body).hexdigest() != reference.version[7:]:
            raise DigestMismatch(f"{name}: the registry gave another manifest than that; was it replaced?")
        digest = model_layer(name, json.loads(body))
    allowed = {"Authorization": headers["Authorization"]} if "Authorization" in headers else {}
    source = LayerSource(session, f"{reference.url}/blobs/{digest}", limits, name=name, headers=allowed)
    source.digest = digest
    return source


async def _token(
    session: aiohttp.ClientSession, name: str, challenge: Mapping[str, str], basic: str,
    credentials: Credentials | None, limits: FetchLimits,
) -> str:  # fmt: skip
    realm = challenge.get("realm", "")
    parts = urlsplit(realm)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ArtifactUnreachable(f"{name}: the registry names {realm[:100]} for tokens, which is no https URL.")
    if basic and credentials is not None:
        credentials.check_host(parts.hostname or "")
    query = {key: challenge[key] for key in ("service", "scope") if key in challenge}
    headers = {"Authorization": basic} if basic else {}
    status, _, body = await _get(session, name, f"{realm}?{urlencode(query)}", headers, limits)
    if status != 200:
        raise ArtifactUnreachable(f"{name}: no token ({status}); check spec.model.secretRef.")
    answer = json.loads(body)
    return str(answer.get("token") or answer.get("access_token") or "")


async def _get(
    session: aiohttp.ClientSession, name: str, url: str, headers: Mapping[str, str], limits: FetchLimits
) -> tuple[int, Mapping[str, str], bytes]:
    target = URL(url)
    check_host(target.raw_host or "", limits.blocked_networks)
    async with session.get(target, headers=headers, allow_redirects=False) as response:
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > _LONGEST_ANSWER:
                raise ArtifactTooLarge(f"{name}: the registry's answer has no end; is it a registry?")
        return response.status, response.headers, bytes(body)


def _basic(host: str, credentials: Credentials | None) -> str:
    """The `Authorization` that a docker configuration has for a registry."""
    if credentials is None:
        return ""
    credentials.check_host(host.partition(":")[0])
    try:
        entry = json.loads(credentials.need(KEY))["auths"][host]
        plain = base64.b64encode(f"{entry['username']}:{entry['password']}".encode()).decode()
        return f"Basic {entry.get('auth') or plain}" if "username" in entry else f"Basic {entry['auth']}"
    except (ValueError, KeyError, TypeError):
        raise ArtifactUnreachable(
            f"Secret {credentials.name}: {KEY} has no entry for {host}; make it with kubectl create secret "
            "docker-registry."
        ) from None
