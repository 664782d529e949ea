"""`gs://bucket/object`: Google Cloud Storage's JSON API, with a service account's token where there is a Secret.

https://cloud.google.com/storage/docs/json_api/v1/objects/get, https://developers.google.com/identity/protocols/oauth2/service-account
"""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import aiohttp

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.credentials import Credentials
from dippm_operator.fetch.http import shown, spoken

KEY = "gcloud-application-credentials.json"
_SCOPE = "https://www.googleapis.com/auth/devstorage.read_only"
_GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"


def gs_url(uri: str, endpoint: str) -> str:
    """The URL of an object's content. Raises ArtifactUnreachable where the URI names none."""
    parts = urlsplit(uri)
    bucket, name = parts.netloc, unquote(parts.path).lstrip("/")
    if not bucket or not name or name.endswith("/"):
        raise ArtifactUnreachable(f"{shown(uri)} names no object; write gs://BUCKET/PATH/model.onnx.")
    return f"{endpoint}/download/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='')}?alt=media"


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
