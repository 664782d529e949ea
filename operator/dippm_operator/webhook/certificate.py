"""The serving certificate: loaded from files, loaded again when they change, and checked against a caBundle."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import ssl
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

logger = logging.getLogger(__name__)

POLL_SECONDS = 5.0


class ServingCertificate:
    """`tls.crt` and `tls.key` of a folder, as kubelet mounts a Secret of type `kubernetes.io/tls`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._digest = b""
        self.context = _server_context()
        """For the listener; a certificate that is loaded later counts from the next handshake on."""
        self.expires: datetime | None = None

    @property
    def loaded(self) -> bool:
        return bool(self._digest)

    def load(self) -> bool:
        """Load the files if they are there, sound and changed; says whether it did.

        Files that do not go together (one of the two replaced) are left for the next call: what is served stays.
        """
        folder = (self._folder / "tls.crt").resolve().parent  # through kubelet's `..data` link: both of one version
        try:
            certificate, key = (folder / "tls.crt").read_bytes(), (folder / "tls.key").read_bytes()
        except OSError:
            return False
        digest = hashlib.sha256(certificate + b"\0" + key).digest()
        if digest == self._digest:
            return False
        try:
            expires = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
            _server_context().load_cert_chain(folder / "tls.crt", folder / "tls.key")  # a mismatch must not reach ours
            self.context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        except (ssl.SSLError, ValueError, OSError) as error:
            logger.warning("the certificate in %s cannot be used yet: %s", self._folder, error)
            return False
        self._digest, self.expires = digest, expires
        logger.info("serving the certificate that expires at %s", expires.isoformat())
        return True

    async def watch(self) -> None:
        """Load new and changed files until cancelled (kubelet swaps a link, which inotify on a file would miss).

        The Secret may be issued after the pod started: until there is a certificate, handshakes fail.
        """
        while True:
            self.load()
            await asyncio.sleep(POLL_SECONDS if self.loaded else 1.0)

    def why_not_trusted(self, bundle: bytes, host: str) -> str:
        """Why a client that trusts `bundle` (PEM) refuses us as `host`; empty when it does not.

        A whole TLS handshake in memory, so that chain, key, name and validity are judged as a client judges them.
        """
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            client.load_verify_locations(cadata=bundle.decode("ascii"))
        except (ssl.SSLError, ValueError):
            return "its caBundle has no certificate"
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = [
            client.wrap_bio(to_client, to_server, server_hostname=host),
            self.context.wrap_bio(to_server, to_client, server_side=True),
        ]
        for _ in range(4):  # TLS 1.3 needs two rounds, 1.2 three
            if not ends:
                return ""
            for end in tuple(ends):
                try:
                    end.do_handshake()
                    ends.remove(end)
                except ssl.SSLWantReadError:
                    continue
                except ssl.SSLCertVerificationError as error:
                    return f"its caBundle does not verify our certificate: {error.verify_message}"
                except ssl.SSLError as error:
                    return f"the handshake fails: {error.reason}"
        return "" if not ends else "the handshake does not end"


def clients_of(configuration: Mapping[str, Any]) -> list[tuple[str, str, bytes]]:
    """(webhook's name, host that the API server asks for, caBundle) of each webhook of a configuration."""
    found = []
    for webhook in configuration.get("webhooks") or ():
        client = webhook.get("clientConfig") or {}
        service = client.get("service")
        if service:
            host = f"{service['name']}.{service['namespace']}.svc"
        else:
            host = urlsplit(client.get("url", "")).hostname or ""
        found.append((str(webhook.get("name", "")), host, base64.b64decode(client.get("caBundle") or "")))
    return found


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
