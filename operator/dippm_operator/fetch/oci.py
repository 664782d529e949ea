"""`oci://registry/repository[:tag|@digest]`: a model in the layers of an OCI artifact.

A layer is a file (`oras push`, `modctl`), or a tar archive of files: a ModelKit of KitOps, a model image of KServe.
https://github.com/opencontainers/distribution-spec/blob/main/spec.md,
https://distribution.github.io/distribution/spec/auth/token/ (how a registry says where tokens are),
https://kitops.org/docs/modelkit/spec, https://github.com/modelpack/model-spec/blob/main/docs/spec.md
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp

from dippm.errors import ArtifactUnreachable, DigestMismatch
from dippm_operator.fetch.credentials import Credentials, is_loopback
from dippm_operator.fetch.folder import LONGEST_LISTING, Listed
from dippm_operator.fetch.http import HttpSource, ask, shown
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.listing import json_of, object_of, text, whole_number
from dippm_operator.fetch.source import Look, Ranged, Source
from dippm_operator.fetch.tar import COMPRESSED_BYTES, Gunzipped, Member, RangedWindow, Window, members_of

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_IMAGE_CONFIGS = frozenset(
    ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
)
_TAR = re.compile(r"\.tar([.+](?P<compression>gzip|gz|zstd))?$")
_OTHER = re.compile(r"\.(datasets?|code|docs?)\.v1")
"""Media types of what a ModelKit or a ModelPack brings beside the model."""
FILE_PATH = "org.cncf.model.filepath"
"""As TITLE, of a ModelPack."""
TITLE = "org.opencontainers.image.title"
"""Annotation of a layer: the name of the file in it."""
KEY = ".dockerconfigjson"
_URI = re.compile(
    r"oci://(?P<host>[\w.-]+(:\d+)?)/(?P<name>[a-z0-9]+(([._/]|__|-+)[a-z0-9]+)*)"
    r"(:(?P<tag>\w[\w.-]{0,127})|@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
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


@dataclass(frozen=True, slots=True)
class Layer:
    """One blob of an artifact."""

    digest: str
    size_bytes: int
    media_type: str
    title: str
    """The file that it is; empty for one that is an archive, or says nothing."""

    @property
    def is_archive(self) -> bool:
        return bool(_TAR.search(self.media_type))

    @property
    def compression(self) -> str:
        """`gzip`, `zstd` or empty."""
        match = _TAR.search(self.media_type)
        found = match["compression"] or "" if match else ""
        return "gzip" if found == "gz" else found


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest, or an index of several: what of it is used, and of the types that it must have."""

    schema: int
    layers: tuple[Layer, ...] | None
    """None where it has no list of layers."""
    config: str
    """Media type of its config."""
    platforms: tuple[tuple[str, Mapping[str, Any]], ...]
    """Of an index: digests, and the platforms that they are for."""

    @classmethod
    def parse(cls, name: str, body: bytes) -> Manifest:
        """The manifest in a registry's answer. What has a type that it must not have counts as not there.

        Raises ArtifactUnreachable for what is no JSON object.
        """
        value = json_of(name, body)
        if not isinstance(value, dict):
            raise ArtifactUnreachable(f"{name} does not answer with a manifest; is that a registry?")
        listed, schema = value.get("layers"), value.get("schemaVersion")
        platforms = value.get("manifests")
        return cls(
            schema if isinstance(schema, int) else 0,
            tuple(map(_layer, listed)) if isinstance(listed, list) else None,
            text(object_of(value.get("config")).get("mediaType")),
            tuple(
                (text(entry.get("digest")), object_of(entry.get("platform")))
                for entry in (platforms if isinstance(platforms, list) else ())
                if isinstance(entry, dict)
            ),
        )

    def platform(self) -> str | None:
        """Of an index, the digest of what it has for linux/amd64, or of the only one that it has."""
        wanted = {"os": "linux", "architecture": "amd64"}.items()
        fitting = [d for d, about in self.platforms if all(about.get(k) == v for k, v in wanted)]
        found = fitting or [digest for digest, _ in self.platforms]
        return found[0] if len(found) == 1 and _DIGEST.fullmatch(found[0]) else None


def _layer(value: object) -> Layer:
    entry = object_of(value)
    notes = object_of(entry.get("annotations"))
    title = text(notes.get(TITLE)) or text(notes.get(FILE_PATH))
    return Layer(text(entry.get("digest")), whole_number(entry.get("size")), text(entry.get("mediaType")), title)


def layers_of(name: str, manifest: Manifest) -> tuple[Layer, ...]:
    """The layers of a manifest that may hold a model. Pure.

    Raises ArtifactUnreachable where it is no manifest of one artifact, or a layer is named by anything but sha256.
    """
    if manifest.schema != 2 or manifest.layers is None:
        raise ArtifactUnreachable(f"{name} is not one artifact with layers; name one by its digest.")
    layers = tuple(layer for layer in manifest.layers if not _OTHER.search(layer.media_type))
    for layer in layers:
        if not _DIGEST.fullmatch(layer.digest):
            named = layer.digest[:20] or "nothing"
            raise ArtifactUnreachable(f"{name} names a layer by {named}, not by sha256; push it again.")
    return layers


class LayerSource(HttpSource):
    """A blob, known by its digest, which the registry vouches for."""

    digest = ""

    async def look(self, known: Look | None) -> Look | None:
        if known is not None and known.content_digest == self.digest:
            return None  # the manifest has just said so, to these credentials
        look = await super().look(None)
        return None if look is None else replace(look, content_digest=self.digest)


class OciFolder:
    """The files of an artifact: layers that are files, and what archives among them hold."""

    path = ""

    def __init__(
        self, session: aiohttp.ClientSession, limits: FetchLimits, threads: Executor, name: str, reference: Reference,
        layers: tuple[Layer, ...], headers: Mapping[str, str], *, is_image: bool,
    ) -> None:  # fmt: skip
        self.name = name
        self._session = session
        self._limits = limits
        self._threads = threads
        self._reference = reference
        self._layers = layers
        self._headers = dict(headers)
        self._is_image = is_image
        self._files: dict[str, tuple[Layer, Member | None]] = {}

    async def list(self) -> tuple[Listed, ...]:
        """A folder that all files are in is left out of their paths; of an image only `/models` is looked at."""
        found: dict[str, tuple[Layer, Member | None]] = {}
        for layer in self._layers:
            if not layer.is_archive:
                found[layer.title] = (layer, None)
                continue
            self._check_archive(layer)
            source = self._blob(layer)
            try:
                members = await members_of(source, self._limits, self._threads)
            finally:
                await source.close()
            found |= {member.name: (layer, member) for member in members}
        if self._is_image:
            found = {path: file for path, file in found.items() if path.startswith("models/")}
        root = _common_folder(list(found))
        self._files = {path.removeprefix(root): file for path, file in found.items()}
        return tuple(
            Listed(
                path,
                layer.size_bytes if member is None else member.size_bytes,
                layer.digest if member is None else f"{layer.digest}+{member.offset}",
            )
            for path, (layer, member) in self._files.items()
        )

    def source(self, path: str) -> Source:
        layer, member = self._files[path]
        blob = self._blob(layer)
        if member is None:
            return blob
        if isinstance(blob, Ranged):
            return RangedWindow(blob, member, layer.digest)
        return Window(blob, member, layer.digest)

    def _check_archive(self, layer: Layer) -> None:
        if layer.compression not in ("", "gzip"):
            raise ArtifactUnreachable(
                f"{self.name} has a layer that is compressed with {layer.compression}, which is not read; pack it "
                "uncompressed (kit pack --compression none), or push the files by themselves (oras push)."
            )
        if layer.compression and layer.size_bytes > COMPRESSED_BYTES:
            raise ArtifactUnreachable(
                f"{self.name} has a compressed layer of {layer.size_bytes >> 20} MiB, of which no part can be read by "
                "itself; pack it uncompressed (kit pack --compression none), or push the files alone (oras push)."
            )

    def _blob(self, layer: Layer) -> Source:
        url = f"{self._reference.url}/blobs/{layer.digest}"
        source = LayerSource(self._session, url, self._limits, name=self.name, headers=self._headers)
        source.digest = layer.digest
        return Gunzipped(source, self._limits) if layer.is_archive and layer.compression else source


def _common_folder(paths: list[str]) -> str:
    parents = [PurePosixPath(path).parent.parts for path in paths]
    together = zip(*parents, strict=False)
    return "".join(f"{parts[0]}/" for parts in takewhile(lambda parts: len(set(parts)) == 1, together))


async def oci_folder(
    session: aiohttp.ClientSession, uri: str, credentials: Credentials | None, limits: FetchLimits, threads: Executor
) -> OciFolder:
    """The artifact: 1. its manifest, 2. a token where the registry asks for one, 3. of several platforms' one."""
    reference, name = parse_oci(uri), shown(uri)
    basic = _basic(reference.host, credentials)
    headers = {"Accept": ", ".join((*MANIFESTS, *INDEXES))} | ({"Authorization": basic} if basic else {})

    async def manifest_of(version: str) -> Manifest:
        url = f"{reference.url}/manifests/{version}"
        answer = await ask(session, name, url, headers, limits, most=LONGEST_LISTING)
        challenge = answer.headers.get("WWW-Authenticate", "")
        if answer.status == 401 and challenge.lower().startswith("bearer "):
            token = await _token(session, name, dict(_CHALLENGE.findall(challenge)), basic, credentials, limits)
            headers["Authorization"] = f"Bearer {token}"
            answer = await ask(session, name, url, headers, limits, most=LONGEST_LISTING)
        if answer.status != 200:
            raise ArtifactUnreachable(
                f"{name} answered {answer.status}; check its name and tag, and spec.model.secretRef."
            )
        if version.startswith("sha256:") and hashlib.sha256(answer.body).hexdigest() != version[7:]:
            raise DigestMismatch(f"{name}: the registry gave another manifest than that; was it replaced?")
        return Manifest.parse(name, answer.body)

    manifest = await manifest_of(reference.version)
    if (version := manifest.platform()) is not None:
        manifest = await manifest_of(version)
    allowed = {"Authorization": headers["Authorization"]} if "Authorization" in headers else {}
    layers = layers_of(name, manifest)
    return OciFolder(
        session, limits, threads, name, reference, layers, allowed, is_image=manifest.config in _IMAGE_CONFIGS
    )


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
    given = await ask(session, name, f"{realm}?{urlencode(query)}", headers, limits, most=LONGEST_LISTING)
    if given.status != 200:
        raise ArtifactUnreachable(f"{name}: no token ({given.status}); check spec.model.secretRef.")
    answer = object_of(json_of(name, given.body))
    return text(answer.get("token")) or text(answer.get("access_token"))


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
