"""The webhook's settings, parsed once from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

MIB = 1024 * 1024
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class Settings:
    """How the webhook listens and what it reads."""

    certificates: Path = Path("/certificates")
    """Folder with `tls.crt` and `tls.key`; read again when they change."""
    webhook_configuration: str = ""
    """Name of both webhook configurations; empty: readiness does not look at them."""
    kubeconfig: str | None = None
    """None: the pod's service account, else $KUBECONFIG or ~/.kube/config."""
    host: str = "0.0.0.0"
    port: int = 9443
    """/mutate, /mutate-owned and /validate, and the probes, over TLS."""
    health_port: int = 8080
    """/healthz, /readyz and /metrics, plain HTTP."""
    max_body_bytes: int = 7 * MIB
    """The API server limits a request to 3 MiB; a review carries the object twice at an update."""
    budget_seconds: float = 4.0
    """A review is answered within this time, or let through; below the configuration's timeoutSeconds (5)."""
    drain_seconds: float = 5.0
    """Between the end of readiness and the end of listening: Services and API servers need time to notice."""
    log_level: str = "info"


_TYPES: dict[str, Callable[[str], object]] = {"Path": Path, "str": str, "int": int, "float": float}
_HELP = {
    "certificates": "folder with tls.crt and tls.key",
    "webhook_configuration": "name of both webhook configurations: ready only once they verify the certificate",
    "kubeconfig": "kubeconfig file (default: the pod's service account, else $KUBECONFIG, else ~/.kube/config)",
    "host": "address to listen on",
    "port": "TLS port for reviews",
    "health_port": "plain port for /healthz, /readyz and /metrics",
    "max_body_bytes": "largest review that is read",
    "budget_seconds": "a review that is not answered in this time is let through",
    "drain_seconds": "how long it answers on after SIGTERM",
    "log_level": "least level that is logged",
}


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Parse the command line; exits with a usage message and code 2 on a bad one."""
    parser = argparse.ArgumentParser(
        prog="dippm-webhook",
        description="Answers admission reviews: sizes labelled pods by stored predictions, validates InferenceJobs.",
        epilog="Example: dippm-webhook --certificates /certificates --webhook-configuration dippm",
    )
    for field in fields(Settings):
        flag, text = "--" + field.name.replace("_", "-"), _HELP[field.name]
        if field.default is None:
            parser.add_argument(flag, help=text)
        else:
            parser.add_argument(
                flag,
                type=_TYPES[str(field.type)],
                default=field.default,
                choices=LOG_LEVELS if field.name == "log_level" else None,
                help=f"{text} (%(default)s)",
            )
    return Settings(**vars(parser.parse_args(arguments)))
