"""The Kubernetes API: where it is, who asks, and the few verbs that the operator and the webhook need.

A small client on aiohttp, which kopf and the webhook's server bring anyway: nothing blocks the loop, and the import of
the `kubernetes` package, larger than the whole webhook, is saved. kopf watches with its own client.
"""

from dippm_operator.kube.api import METADATA_ONLY, ApiClient, ApiFailure
from dippm_operator.kube.connection import Connection

__all__ = ["METADATA_ONLY", "ApiClient", "ApiFailure", "Connection"]
