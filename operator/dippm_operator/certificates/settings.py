"""What the certificate is for and how long it lives."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class Provider(StrEnum):
    """Who issues the certificate (`certificates.provider` of the chart's values)."""

    SELF = "self"
    """The operator: `ensure_certificates` does all of it."""
    CERT_MANAGER = "cert-manager"
    """cert-manager, by the chart's Certificate and its injector's annotations: nothing is done here."""


@dataclass(frozen=True, slots=True)
class CertificateSettings:
    """Names of the objects, and times."""

    namespace: str
    """The release's namespace, which holds the Secret and the Service."""
    secret: str
    """Secret of type `kubernetes.io/tls` that the webhook's pods mount."""
    dns_names: tuple[str, ...]
    """Names that the certificate is for; the API server asks for `SERVICE.NAMESPACE.svc`."""
    configuration: str
    """Name of both webhook configurations, mutating and validating."""
    provider: Provider = Provider.SELF
    lifetime: timedelta = timedelta(days=90)
    """From issue to expiry: as long as the public authorities' default, short enough that rotation is exercised."""
    renew_before: timedelta = timedelta(days=30)
    """A renewal starts this long before expiry, so that an operator may be down for weeks."""
    publish_before: timedelta = timedelta(minutes=5)
    """How long old and new CA are both published before the certificate is switched: every API server of the cluster
    sees a changed configuration within seconds."""
    retire_after: timedelta = timedelta(hours=1)
    """How long the old CA stays published after the switch: kubelet brings a changed Secret to the pods
    within minutes."""

    @staticmethod
    def for_service(
        namespace: str, service: str, *, secret: str, configuration: str, provider: str
    ) -> CertificateSettings:
        """The certificate of a Service in the release's namespace."""
        host = f"{service}.{namespace}.svc"
        return CertificateSettings(
            namespace=namespace,
            secret=secret,
            dns_names=(host, f"{host}.cluster.local"),
            configuration=configuration,
            provider=Provider(provider),
        )
