"""Azure Blob Storage, in the spellings that are in use, with a Secret's key, token or client.

`https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH` (KServe's), `azure://ACCOUNT/CONTAINER/PATH`,
`abfs[s]://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH` and `wasb[s]://CONTAINER@ACCOUNT.blob.core.windows.net/PATH`.
https://learn.microsoft.com/rest/api/storageservices/authorize-with-shared-key,
https://learn.microsoft.com/rest/api/storageservices/list-blobs,
https://learn.microsoft.com/entra/identity-platform/v2-oauth2-client-creds-grant-flow
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit
from xml.etree.ElementTree import Element

import aiohttp

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.credentials import Credentials, is_loopback
from dippm_operator.fetch.folder import LONGEST_LISTING, Listed
from dippm_operator.fetch.http import HttpSource, Signer, ask, refused, shown, spoken
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.listing import check_count, text_of, whole_number, xml_of
from dippm_operator.resource.names import AZURE_SCHEMES

VERSION = "2021-08-06"
"""Of the REST API: the first header that is signed."""
_HOST = re.compile(
    r"[a-z0-9]{3,24}\.(z[0-9]{1,2}\.)?(blob|dfs)\.(core\.windows\.net|storage\.azure\.net)", re.IGNORECASE
)
_ACCOUNT = re.compile(r"[a-z0-9]{3,24}")
_SCOPE = "https://storage.azure.com/.default"
_SIGNED = ("Content-Encoding", "Content-Language", "Content-Length", "Content-MD5", "Content-Type", "Date",
           "If-Modified-Since", "If-Match", "If-None-Match", "If-Unmodified-Since", "Range")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Container:
    """What a URI names."""

    account: str
    endpoint: str
    """URL of the account, without a slash at its end."""
    container: str
    path: str
    """Of the blob or folder, not quoted."""
    query: str
    """A shared access signature, which the URI itself may carry."""


def is_azure(uri: str) -> bool:
    """Whether a URI is of Azure's Blob Storage."""
    parts = urlsplit(uri)
    return parts.scheme in AZURE_SCHEMES or (parts.scheme == "https" and bool(_HOST.fullmatch(parts.hostname or "")))


def parse_azure(uri: str) -> Container:
    """Take a URI apart. Raises ArtifactUnreachable."""
    parts = urlsplit(uri)
    host, path = parts.hostname or "", unquote(parts.path).lstrip("/")
    if parts.scheme in ("abfs", "abfss", "wasb", "wasbs"):
        container, rest = unquote(parts.username or ""), path
    elif _HOST.fullmatch(host):
        container, _, rest = path.partition("/")
    else:
        host = f"{host}.blob.core.windows.net" if _ACCOUNT.fullmatch(host) else ""
        container, _, rest = path.partition("/")
    if not _HOST.fullmatch(host) or not container or not rest:
        raise ArtifactUnreachable(
            f"{shown(uri)} names no blob; write https://ACCOUNT.blob.core.windows.net/CONTAINER/PATH, "
            "azure://ACCOUNT/CONTAINER/PATH or abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH."
        )
    host = host.replace(".dfs.", ".blob.", 1)  # the other door of the same store
    return Container(host.partition(".")[0], f"https://{host}", container, rest, parts.query)


def for_secret(place: Container, credentials: Credentials | None) -> Container:
    """The same with what a Secret says of the store: AZURE_SERVICE_URL (an emulator, another cloud), a signature.

    Raises ArtifactUnreachable where the Secret may not be sent there.
    """
    if credentials is None:
        return place
    endpoint = credentials.data.get("AZURE_SERVICE_URL", "").strip().rstrip("/") or place.endpoint
    parts = urlsplit(endpoint)
    credentials.check_host(parts.hostname or "")
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ArtifactUnreachable(
            f"Secret {credentials.name} is not sent over http:; use an https:// AZURE_SERVICE_URL."
        )
    signature = credentials.data.get("AZURE_STORAGE_SAS_TOKEN", "").strip().lstrip("?")
    return replace(place, endpoint=endpoint, query=signature or place.query)


async def azure_signer(
    session: aiohttp.ClientSession, place: Container, credentials: Credentials | None, limits: FetchLimits
) -> Signer:
    """What authorizes requests, by the first of these that the Secret has; anonymous without a Secret.

    1. A shared access signature (AZURE_STORAGE_SAS_TOKEN): it is in the URL.
    2. AZURE_STORAGE_ACCESS_KEY: each request is signed.
    3. AZURE_ACCESS_TOKEN; or a client's, for AZURE_CLIENT_ID, AZURE_CLIENT_SECRET and AZURE_TENANT_ID (or AZ_...).
    Raises ArtifactUnreachable where the Secret has none of them, or they are not taken.
    """
    if credentials is None or "sig" in dict(parse_qsl(place.query)):
        return _with_version
    if credentials.data.get("AZURE_STORAGE_ACCESS_KEY", "").strip():
        return _shared_key(place.account, credentials)
    token = credentials.data.get("AZURE_ACCESS_TOKEN", "").strip()
    token = token or await _client_token(session, credentials, limits)
    return lambda url, headers: {**_with_version(url, headers), "Authorization": f"Bearer {token}"}


class AzureFolder:
    """What a container has below a prefix."""

    def __init__(
        self, session: aiohttp.ClientSession, limits: FetchLimits, place: Container, sign: Signer, name: str
    ) -> None:
        self.name = name
        self.path = place.path
        self._session = session
        self._limits = limits
        self._place = place
        self._sign = sign
        self._base = f"{place.endpoint}/{quote(place.container, safe='')}"

    async def list(self) -> tuple[Listed, ...]:
        prefix, marker, listed = self.path.rstrip("/") + "/", "", list[Listed]()
        while True:
            query = {"restype": "container", "comp": "list", "prefix": prefix, "include": "metadata"}
            query |= {"marker": marker} if marker else {}
            url = self._url(self._base, urlencode(query, quote_via=quote, safe=""))
            headers = self._sign(url, {})
            answer = await ask(self._session, self.name, url, headers, self._limits, most=LONGEST_LISTING, exact=True)
            if answer.status != 200:
                raise refused(self.name, answer.status, answer.reason)
            root = xml_of(self.name, answer.body)
            for blob in root.iter("Blob"):
                if _is_directory(blob):
                    continue
                size = whole_number(text_of(blob, "Properties/Content-Length"))
                path = text_of(blob, "Name").removeprefix(prefix)
                listed.append(Listed(path, size, text_of(blob, "Properties/Etag")))
            check_count(self.name, listed)
            marker = text_of(root, "NextMarker")
            if not marker:
                return tuple(listed)

    def source(self, path: str) -> HttpSource:
        key = f"{self.path.rstrip('/')}/{path}" if path else self.path
        url = self._url(f"{self._base}/{quote(key)}", "")
        name = f"{self.name.rstrip('/')}/{path}" if path else self.name
        return HttpSource(self._session, url, self._limits, name=name, sign=self._sign, exact=True)

    def _url(self, base: str, query: str) -> str:
        whole = "&".join(part for part in (query, self._place.query) if part)
        return f"{base}?{whole}" if whole else base


def _is_directory(blob: Element) -> bool:
    """Whether a blob stands for a directory of a hierarchical namespace (Data Lake Storage Gen2)."""
    marked = next((one.text or "" for one in blob.iterfind("Metadata/*") if one.tag.lower() == "hdi_isfolder"), "")
    return marked.lower() == "true" or text_of(blob, "Properties/ResourceType") == "directory"


def _with_version(_: str, headers: Mapping[str, str]) -> dict[str, str]:
    return {**headers, "x-ms-version": VERSION}


def _shared_key(account: str, credentials: Credentials) -> Signer:
    try:
        key = base64.b64decode(credentials.need("AZURE_STORAGE_ACCESS_KEY"), validate=True)
    except binascii.Error:
        raise ArtifactUnreachable(
            f"Secret {credentials.name}: AZURE_STORAGE_ACCESS_KEY is not base64; copy the account's key again."
        ) from None

    def sign(url: str, headers: Mapping[str, str]) -> dict[str, str]:
        sent = {**_with_version(url, headers), "x-ms-date": formatdate(usegmt=True)}
        parts = urlsplit(url)
        own = "".join(f"{name}:{sent[name]}\n" for name in sorted(n for n in sent if n.startswith("x-ms-")))
        query = sorted((name.lower(), value) for name, value in parse_qsl(parts.query, keep_blank_values=True))
        resource = f"/{account}{parts.path}" + "".join(f"\n{name}:{value}" for name, value in query)
        text = "\n".join(["GET", *(sent.get(name, "") for name in _SIGNED), own]) + resource
        signature = base64.b64encode(hmac.digest(key, text.encode(), hashlib.sha256)).decode()
        return {**sent, "Authorization": f"SharedKey {account}:{signature}"}

    return sign


async def _client_token(session: aiohttp.ClientSession, credentials: Credentials, limits: FetchLimits) -> str:
    """A token for the client (service principal) in the Secret, from the operator's own authority."""
    tenant, client, secret = (_either(credentials, name) for name in ("TENANT_ID", "CLIENT_ID", "CLIENT_SECRET"))
    name = "Microsoft's token service"
    form = {"grant_type": "client_credentials", "client_id": client, "client_secret": secret, "scope": _SCOPE}
    url = f"{limits.azure_authority}/{quote(tenant, safe='')}/oauth2/v2.0/token"
    with spoken(name):
        async with session.post(url, data=form, allow_redirects=False) as response:
            if response.status != 200:
                raise ArtifactUnreachable(
                    f"Secret {credentials.name}: {name} answered {response.status}; is the client secret still valid?"
                )
            answer = await response.json()
    return str(answer.get("access_token", "")) if isinstance(answer, dict) else ""


def _either(credentials: Credentials, name: str) -> str:
    """KServe takes both the old and the new name of a key."""
    value = credentials.data.get(f"AZURE_{name}", "").strip() or credentials.data.get(f"AZ_{name}", "").strip()
    if not value:
        raise ArtifactUnreachable(
            f"Secret {credentials.name} has no AZURE_{name}, which this URI needs (or AZURE_STORAGE_ACCESS_KEY, or "
            "AZURE_STORAGE_SAS_TOKEN); add it."
        )
    return value
