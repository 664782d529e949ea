"""The operator's settings, parsed once from the command line."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dippm_operator.fetch import HUB, LINK_LOCAL, LOOPBACK, PRIVATE, FetchLimits
from dippm_operator.sizing.inventory import declare

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class ClaimSettings:
    """How claims are read."""

    image: str
    """Of the reader: the operator's own. Empty: claims are not read."""
    seconds: float = 120.0
    """From the Job to its answer; then it is ended."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the operator runs."""

    namespace: str
    """The release's own: Lease, Service and certificate Secret are there."""
    lease: str
    """Name of the Lease that the active one holds."""
    identity: str
    """Who holds it: the pod's name."""
    watch_namespaces: tuple[str, ...]
    """Namespaces whose InferenceJobs are served; none: all."""
    default_device: str
    """Device of jobs that name none, where no node's labels say one."""
    declared: tuple[tuple[str, str], ...]
    """(product, resource) that node groups scaled to zero will have."""
    cache: Path
    """Folder for artifacts, and for the graphs that they were converted to."""
    cache_bytes: int
    """What all of it may take on disk."""
    fetch: FetchLimits
    claims: ClaimSettings
    prediction_seconds: float
    """Longest wait for one prediction."""
    workers: int
    """InferenceJobs that are looked at at once."""
    health_port: int
    metrics_port: int
    certificates: str
    """`self`: the webhook's certificate is issued here; `cert-manager`: there."""
    certificate_secret: str
    webhook_service: str
    """Empty: there is no webhook to care for."""
    webhook_configuration: str
    kubeconfig: str | None
    log_level: str

    @property
    def graph_bytes(self) -> int:
        """The graphs' share of the cache; ResNet-50's takes about 30 kB."""
        return _graph_bytes(self.cache_bytes)

    @property
    def artifact_bytes(self) -> int:
        """The artifacts' share."""
        return self.cache_bytes - self.graph_bytes


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Parse the command line; exits with a usage message and code 2 on a bad one.

    Raises UnknownProfile, UnknownDevice for a --declare that cannot be read.
    """
    parser = argparse.ArgumentParser(
        prog="dippm-operator",
        description="Watches InferenceJobs, predicts what they need, and makes their Jobs.",
        epilog="Example: dippm-operator --namespace dippm --kubeconfig ~/.kube/config --file-root /models",
    )
    add = parser.add_argument
    add("--namespace", default="default", help="the release's own, with the Lease (%(default)s)")
    add("--lease", default="dippm-operator", help="name of the Lease that the active one holds (%(default)s)")
    add("--identity", default=os.environ.get("POD_NAME") or socket.gethostname(), help="who holds it (%(default)s)")
    add("--watch-namespace", action="append", default=[], metavar="NAME", help="serve these only (default: all)")
    add("--default-device", default="A100-SXM4-40GB", help="where neither job nor nodes name one (%(default)s)")
    add("--declare", action="append", default=[], metavar="PRODUCT=PROFILE,...", help="what scaled-down groups have")
    add("--cache", type=Path, default=Path("/var/cache/dippm"), help="folder for artifacts and graphs (%(default)s)")
    add("--cache-bytes", type=int, default=8 * GIB, help="what is kept there at most (%(default)s)")
    add(
        "--max-artifact-bytes",
        type=int,
        default=20 * GIB,
        help="largest artifact; never more than --cache-bytes (%(default)s)",
    )
    add("--file-root", type=Path, action="append", default=[], help="folder that file: URIs may name (default: none)")
    add("--claim-image", default="", help="image that reads pvc: URIs, the operator's own (default: they are refused)")
    add("--claim-seconds", type=float, default=120.0, help="longest wait for it (%(default)s)")
    add("--block-private-addresses", action="store_true", help="fetch from public addresses only")
    add("--hub", default=os.environ.get("HF_ENDPOINT") or HUB, help="where hf:// URIs lead (%(default)s)")
    add("--allow-loopback", action="store_true", help="fetch from this host's own addresses too: for trying out")
    add("--prediction-seconds", type=float, default=600.0, help="longest wait for one prediction (%(default)s)")
    add("--workers", type=int, default=4, help="InferenceJobs looked at at once (%(default)s)")
    add("--health-port", type=int, default=8080, help="/healthz and /readyz; 0: off (%(default)s)")
    add("--metrics-port", type=int, default=8081, help="/metrics; 0: off (%(default)s)")
    add("--certificates", choices=["self", "cert-manager"], default="self", help="who issues the webhook's")
    add("--certificate-secret", default="dippm-webhook-tls", help="Secret with the webhook's (%(default)s)")
    add("--webhook-service", default="", help="Service of the webhook (default: there is none to care for)")
    add("--webhook-configuration", default="dippm", help="name of both webhook configurations (%(default)s)")
    add("--kubeconfig", help="kubeconfig file (default: the pod's service account, else $KUBECONFIG)")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"], help="(%(default)s)")
    given = parser.parse_args(arguments)
    return Settings(
        namespace=given.namespace,
        lease=given.lease,
        identity=given.identity,
        watch_namespaces=tuple(given.watch_namespace),
        default_device=given.default_device,
        declared=tuple(pair for text in given.declare for pair in declare(text)),
        cache=given.cache,
        cache_bytes=given.cache_bytes,
        fetch=FetchLimits(
            max_bytes=min(given.max_artifact_bytes, given.cache_bytes - _graph_bytes(given.cache_bytes)),
            blocked_networks=(
                *LINK_LOCAL,
                *(() if given.allow_loopback else LOOPBACK),
                *(PRIVATE if given.block_private_addresses else ()),
            ),
            file_roots=tuple(given.file_root),
            hub=given.hub.rstrip("/"),
        ),
        claims=ClaimSettings(given.claim_image, given.claim_seconds),
        prediction_seconds=given.prediction_seconds,
        workers=given.workers,
        health_port=given.health_port,
        metrics_port=given.metrics_port,
        certificates=given.certificates,
        certificate_secret=given.certificate_secret,
        webhook_service=given.webhook_service,
        webhook_configuration=given.webhook_configuration,
        kubeconfig=given.kubeconfig,
        log_level=given.log_level,
    )


def _graph_bytes(cache_bytes: int) -> int:
    return min(cache_bytes // 8, GIB // 2)
