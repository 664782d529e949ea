"""`gs://bucket/object`: Google Cloud Storage's JSON API, with a service account's token where there is a Secret.

https://cloud.google.com/storage/docs/json_api/v1/objects (get and list),
https://developers.google.com/identity/protocols/oauth2/service-account
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

import aiohttp

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.credentials import Credentials
from dippm_operator.fetch.folder import LONGEST_LISTING, Listed
from dippm_operator.fetch.http import HttpSource, ask, refused, shown, spoken
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.listing import check_count, json_of, object_of, objects_of, text, whole_number

KEY = "gcloud-application-credentials.json"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


class GsFolder:
    """What a bucket has below a prefix. Raises ArtifactUnreachable where the URI names nothing in a bucket."""

    def __init__(
        self, session: aiohttp.ClientSession, limits: FetchLimits, uri: str, headers: Mapping[str, str]
    ) -> None:
        parts = urlsplit(uri)
        self.name = shown(uri)
        self.path = unquote(parts.path).lstrip("/")
        if not parts.netloc or not self.path:
            raise ArtifactUnreachable(
                f"{self.name} names no object; write gs://BUCKET/PATH/model.onnx or gs://BUCKET/FOLDER/."
            )
        self._session = session
        self._limits = limits
        self._headers = dict(headers)
        self._bucket = quote(parts.netloc, safe="")

    async def list(self) -> tuple[Listed, ...]:
        prefix, token, listed = self.path.rstrip("/") + "/", "", list[Listed]()
        while True:
            query = {"prefix": prefix, "fields": "items(name,size,etag,generation),nextPageToken"}
            query |= {"pageToken": token} if token else {}
            url = f"{self._limits.cloud_storage}/storage/v1/b/{self._bucket}/o?{urlencode(query)}"
            answer = await ask(
                self._session, self.name, url, self._headers, self._limits, most=LONGEST_LISTING, exact=True
            )
            if answer.status != 200:
                raise refused(self.name, answer.status, answer.reason)
            page = json_of(self.name, answer.body)
            for entry in objects_of(self.name, page.get("items", []) if isinstance(page, dict) else None):
                path = str(entry.get("name", "")).removeprefix(prefix)
                etag = str(entry.get("etag") or entry.get("generation") or "")
                listed.append(Listed(path, whole_number(entry.get("size")), etag))
            check_count(self.name, listed)
            token = text(object_of(page).get("nextPageToken"))
            if not token:
                return tuple(listed)

    def source(self, path: str) -> HttpSource:
        key = f"{self.path.rstrip('/')}/{path}" if path else self.path
        url = f"{self._limits.cloud_storage}/download/storage/v1/b/{self._bucket}/o/{quote(key, safe='')}?alt=media"
        name = f"{self.name.rstrip('/')}/{path}" if path else self.name
        return HttpSource(self._session, url, self._limits, name=name, headers=self._headers, exact=True)


async def gs_token(session: aiohttp.ClientSession, credentials: Credentials, *, endpoint: str, token_url: str) -> str:
    """A token for reading, by the service account's key in the Secret.

    `token_url` is the operator's setting: what the key file says of it is not believed, because a tenant writes that.

    Raises ArtifactUnreachable where the key is not one of a service account, or Google does not take it.
    """
    credentials.check_host(urlsplit(endpoint).hostname or "")
    assertion = _assertion(credentials, token_url)
    name = "Google's token service"
    with spoken(name):
        form = {"grant_type": _GRANT, "assertion": assertion}
        async with session.post(token_url, data=form, allow_redirects=False) as response:
            if response.status != 200:
                raise ArtifactUnreachable(
                    f"Secret {credentials.name}: {name} answered {response.status}; is the key still valid?"
                )
            answer: dict[str, Any] = await response.json()
    return str(answer.get("access_token", ""))


def _assertion(credentials: Credentials, audience: str) -> str:
    try:
        from google.auth import crypt, jwt
    except ImportError:
        raise ArtifactUnreachable("gs:// with a Secret needs google-auth; install dippm[sources].") from None
    try:
        info = json.loads(credentials.need(KEY))
        if info["type"] != "service_account":
            raise ArtifactUnreachable(
                f"Secret {credentials.name}: {KEY} is of type {info['type']}; only a service_account's key is used."
            )
        signer = crypt.RSASigner.from_service_account_info(info)  # type: ignore[no-untyped-call]
        now = int(time.time())
        claims = {"iss": info["client_email"], "scope": _SCOPE, "aud": audience, "iat": now, "exp": now + 3600}
    except (ValueError, KeyError, TypeError):
        raise ArtifactUnreachable(
            f"Secret {credentials.name}: {KEY} is not the key file of a service account; put that there."
        ) from None
    encoded: bytes = jwt.encode(signer, claims)  # type: ignore[no-untyped-call]
    return encoded.decode()
