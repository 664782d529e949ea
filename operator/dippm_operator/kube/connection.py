"""Where the API server is and how to prove who asks: parsed once, at the edge.

`Connection.from_service_account()` reads what kubelet mounts into every pod
(https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/); `Connection.from_kubeconfig(path)` reads the
current context of a kubeconfig file. Neither needs the `kubernetes` package, whose import alone costs more memory than
the whole webhook.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dippm.errors import ManifestError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_LIFETIME_SECONDS = 60.0
"""Bound service-account tokens are rotated by kubelet well before they expire; the file is read again this often."""


@dataclass(slots=True)
class Token:
    """A bearer token: a fixed one, or one whose file is read again every minute."""

    fixed: str = ""
    file: Path | None = None
    _read_at: float = field(default=float("-inf"), repr=False)
    _value: str = field(default="", repr=False)

    def header(self) -> dict[str, str]:
        """The Authorization header, or none where the client certificate speaks for itself."""
        value = self.fixed
        if self.file is not None:
            if time.monotonic() - self._read_at > TOKEN_LIFETIME_SECONDS:
                self._value = self.file.read_text().strip()
                self._read_at = time.monotonic()
            value = self._value
        return {"Authorization": f"Bearer {value}"} if value else {}

    def forget(self) -> None:
        """Read the file again at the next call: the server said 401."""
        self._read_at = float("-inf")


@dataclass(frozen=True, slots=True)
class Connection:
    """An API server, its trust anchor and a token."""

    server: str
    """`https://HOST:PORT`, no slash at the end."""
    tls: ssl.SSLContext
    token: Token
    namespace: str = "default"

    @staticmethod
    def from_environment(kubeconfig: str | None = None) -> Connection:
        """The given kubeconfig, else the pod's service account, else `$KUBECONFIG` or `~/.kube/config`."""
        if kubeconfig:
            return Connection.from_kubeconfig(Path(kubeconfig))
        if "KUBERNETES_SERVICE_HOST" in os.environ and (SERVICE_ACCOUNT / "token").exists():
            return Connection.from_service_account()
        return Connection.from_kubeconfig(Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config"))

    @staticmethod
    def from_service_account(folder: Path = SERVICE_ACCOUNT) -> Connection:
        """What kubelet gives a pod: token, CA and namespace files, host and port in the environment."""
        host = os.environ["KUBERNETES_SERVICE_HOST"]
        port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        namespace = folder / "namespace"
        return Connection(
            server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
            tls=ssl.create_default_context(cafile=str(folder / "ca.crt")),
            token=Token(file=folder / "token"),
            namespace=namespace.read_text().strip() if namespace.exists() else "default",
        )

    @staticmethod
    def from_kubeconfig(path: Path) -> Connection:
        """The current context of a kubeconfig file.

        Raises ManifestError where the file is missing, names a context that it lacks, or logs in by a plugin
        (`exec`, `auth-provider`): a server has no terminal to run one on.
        """
        try:
            config = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ManifestError(f"{path}: cannot be read as a kubeconfig; give its path with --kubeconfig") from error
        context = _named(config, "contexts", "context", config.get("current-context"), path)
        cluster = _named(config, "clusters", "cluster", context.get("cluster"), path)
        user = _named(config, "users", "user", context.get("user"), path)
        if "exec" in user or "auth-provider" in user:
            raise ManifestError(
                f"{path}: user {context['user']} logs in by a plugin; use a token or a client certificate"
            )
        token_file = user.get("tokenFile")
        return Connection(
            server=str(cluster["server"]).rstrip("/"),
            tls=_tls(cluster, user, path.parent),
            token=Token(fixed=user.get("token", ""), file=path.parent / token_file if token_file else None),
            namespace=context.get("namespace", "default"),
        )


def _named(config: Mapping[str, Any], listing: str, kind: str, name: str | None, path: Path) -> Mapping[str, Any]:
    for entry in config.get(listing) or ():
        if entry.get("name") == name:
            found: Mapping[str, Any] = entry[kind]
            return found
    raise ManifestError(f"{path}: has no {kind} named {name}; set current-context to one that it has")


def _tls(cluster: Mapping[str, Any], user: Mapping[str, Any], folder: Path) -> ssl.SSLContext:
    """The client's TLS side: trust from the cluster entry, identity from the user entry."""
    authority = cluster.get("certificate-authority-data")
    context = ssl.create_default_context(
        cafile=str(folder / cluster["certificate-authority"]) if "certificate-authority" in cluster else None,
        cadata=base64.b64decode(authority).decode() if authority else None,
    )
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if "client-certificate-data" in user:
        # Python's ssl loads a certificate chain from files only.
        with tempfile.TemporaryDirectory() as scratch:
            certificate, key = Path(scratch) / "crt", Path(scratch) / "key"
            certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
            key.touch(mode=0o600)
            key.write_bytes(base64.b64decode(user["client-key-data"]))
            context.load_cert_chain(certificate, key)
    elif "client-certificate" in user:
        context.load_cert_chain(folder / user["client-certificate"], folder / user["client-key"])
    return context
