"""A real control plane for the tests: etcd and kube-apiserver on loopback, nothing else.

The binaries are looked for in `KUBEBUILDER_ASSETS` (default `/usr/local/kubebuilder/bin`), as controller-runtime's
envtest does. No controller-manager runs: a namespace is never finalised, a Deployment makes no pods, a Job makes
none either, and garbage is not collected. Tests create what those controllers would have created.

Fixtures
    control_plane   session: a running `ControlPlane` (kubeconfig path and a small synchronous admin client)
    namespace       a fresh namespace's name
    webhook         module: a running webhook process under the chart's account and configurations
"""

from __future__ import annotations

import ctypes
import http.client
import itertools
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.integration.webhook_process import Webhook, running_webhook

START_SECONDS = 90.0
"""How long the API server may take to become ready; 6 s on a quiet machine of two cores."""

_serial = itertools.count(1)


class ApiRefusal(Exception):
    """The API server answered with an error; `code` is the HTTP status, `status` the metav1.Status."""

    def __init__(self, code: int, status: Mapping[str, Any]) -> None:
        super().__init__(f"{code}: {status.get('message', status)}")
        self.code = code
        self.status = status

    @property
    def message(self) -> str:
        return str(self.status.get("message", ""))


@dataclass(frozen=True)
class ControlPlane:
    """A running API server and an administrator's way into it."""

    url: str
    """`https://127.0.0.1:PORT`."""
    ca_file: Path
    token: str
    """Bearer token of a member of `system:masters`."""
    kubeconfig: Path
    log: Path
    """The API server's log: failed webhook calls are reported here only."""

    def request(
        self, method: str, path: str, body: Any = None, *, content_type: str = "application/json"
    ) -> tuple[dict[str, Any], list[str]]:
        """One call; returns the decoded answer and its warnings. Raises ApiRefusal on a status of 400 or more."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        host, port = self.url.removeprefix("https://").split(":")
        connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
        try:
            connection.request(
                method,
                path,
                body=None if body is None else json.dumps(body),
                headers={"Authorization": f"Bearer {self.token}", "Content-Type": content_type},
            )
            response = connection.getresponse()
            text = response.read()
            answer = json.loads(text) if text.startswith(b"{") else {"message": text.decode(errors="replace")}
            if response.status >= 400:
                raise ApiRefusal(response.status, answer)
            return answer, response.headers.get_all("Warning") or []
        finally:
            connection.close()

    def get(self, path: str) -> dict[str, Any]:
        return self.request("GET", path)[0]

    def create(self, path: str, body: Any) -> dict[str, Any]:
        return self.request("POST", path, body)[0]

    def replace(self, path: str, body: Any) -> dict[str, Any]:
        return self.request("PUT", path, body)[0]

    def delete(self, path: str) -> dict[str, Any]:
        return self.request("DELETE", path)[0]

    def patch(self, path: str, body: Any) -> dict[str, Any]:
        """A JSON merge patch (RFC 7386); `path` may end in `/status`."""
        return self.request("PATCH", path, body, content_type="application/merge-patch+json")[0]

    def apply(self, path: str, body: Any) -> dict[str, Any]:
        """Server-side apply, as `kubectl apply --server-side --force-conflicts` does it."""
        return self.request(
            "PATCH", f"{path}?fieldManager=tests&force=true", body, content_type="application/apply-patch+yaml"
        )[0]

    def kubeconfig_of(self, namespace: str, account: str, path: Path) -> Path:
        """Write a kubeconfig with a token of a ServiceAccount: what a pod of it may do, and no more."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        made = self.create(f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token", request)
        _write_kubeconfig(path, self.url, self.ca_file, made["status"]["token"])
        return path

    def install_crd(self, crd: Mapping[str, Any]) -> None:
        """Apply a CustomResourceDefinition and wait until its resources can be listed."""
        name = crd["metadata"]["name"]
        self.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}", dict(crd))
        spec = crd["spec"]
        listing = f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"
        deadline = time.monotonic() + 20
        while True:
            try:
                self.get(listing)
                return
            except ApiRefusal:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _die_with_parent() -> None:
    """A test run that is killed must not leave an API server behind (Linux: PR_SET_PDEATHSIG is option 1)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    with log.open("wb") as sink:
        return subprocess.Popen(
            command, stdout=sink, stderr=sink, stdin=subprocess.DEVNULL, env=environment, preexec_fn=_die_with_parent
        )


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def _write_keys(folder: Path, token: str) -> None:
    """The service-account signing key pair and the token file."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = serialization.Encoding.PEM
    (folder / "sa.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
    (folder / "sa.pub").write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    (folder / "tokens.csv").write_text(f'{token},admin,1,"system:masters"\n')


def _commands(assets: Path, folder: Path, etcd_port: int, port: int) -> tuple[list[str], list[str]]:
    etcd_url = f"http://127.0.0.1:{etcd_port}"
    etcd = [
        str(assets / "etcd"),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={etcd_url}",
        f"--advertise-client-urls={etcd_url}",
        "--listen-peer-urls=http://127.0.0.1:0",
        "--unsafe-no-fsync=true",
    ]
    server = [
        str(assets / "kube-apiserver"),
        f"--etcd-servers={etcd_url}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--secure-port={port}",
        f"--cert-dir={folder / 'certs'}",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--authorization-mode=RBAC",
        f"--token-auth-file={folder / 'tokens.csv'}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-signing-key-file={folder / 'sa.key'}",
        f"--service-account-key-file={folder / 'sa.pub'}",
        # No controller-manager makes the default ServiceAccount that this plugin would insist on.
        "--disable-admission-plugins=ServiceAccount",
        "--allow-privileged=true",
    ]
    return etcd, server


def _wait_ready(plane: ControlPlane, processes: list[subprocess.Popen[bytes]]) -> bool:
    """True once `/readyz` says ok; False when a process died (a port taken meanwhile). Raises at the deadline."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if any(process.poll() is not None for process in processes):
            return False
        try:
            if plane.ca_file.exists():
                plane.get("/readyz")
                plane.get("/api/v1/namespaces/default")
                return True
        except (OSError, http.client.HTTPException, ApiRefusal):
            pass  # not up yet
        time.sleep(0.2)
    raise TimeoutError(f"kube-apiserver was not ready within {START_SECONDS:.0f} s; its log is {plane.log}")


def _write_kubeconfig(path: Path, url: str, ca_file: Path, token: str) -> None:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": url, "certificate-authority": str(ca_file)}}],
                "users": [{"name": "admin", "user": {"token": token}}],
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            }
        )
    )


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and kube-apiserver, started once a session; the test is skipped where the binaries are missing."""
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS", "/usr/local/kubebuilder/bin"))
    missing = [name for name in ("etcd", "kube-apiserver") if not os.access(assets / name, os.X_OK)]
    if missing:
        pytest.skip(f"no {' and '.join(missing)} in {assets}: set KUBEBUILDER_ASSETS to a folder that has them")
    for _ in range(3):
        folder = tmp_path_factory.mktemp("control-plane")
        token = secrets.token_hex(16)
        _write_keys(folder, token)
        port = _free_port()
        plane = ControlPlane(
            url=f"https://127.0.0.1:{port}",
            ca_file=folder / "certs" / "apiserver.crt",
            token=token,
            kubeconfig=folder / "kubeconfig",
            log=folder / "apiserver.log",
        )
        _write_kubeconfig(plane.kubeconfig, plane.url, plane.ca_file, token)
        etcd_command, server_command = _commands(assets, folder, _free_port(), port)
        processes = [_start(etcd_command, folder / "etcd.log")]
        try:
            processes.append(_start(server_command, plane.log))
            if _wait_ready(plane, processes):
                yield plane
                return
        finally:
            for process in reversed(processes):
                _stop(process)
    pytest.fail(f"kube-apiserver or etcd stopped at once, three times; the last logs are in {folder}")


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A namespace of the test's own; it stays (nothing finalises namespaces here)."""
    name = f"test-{next(_serial)}-{secrets.token_hex(3)}"
    control_plane.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


@pytest.fixture(scope="module")
def webhook(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Webhook]:
    """A running `dippm-webhook` that the API server asks about labelled pods and InferenceJobs of every namespace."""
    with running_webhook(control_plane, tmp_path_factory.mktemp("webhook")) as running:
        yield running
