"""The Kubernetes API: a thin adapter over `kubernetes.aio`, the asyncio half of the official client.

Configuration, identity, TLS and requests are the library's; ours are the few verbs, one kind of failure, and how a
watch notices that its connection died. kopf watches for the operator with its own client, under the same identity.
"""

from dippm_operator.kube.api import METADATA_ONLY, ApiClient, ApiFailure
from dippm_operator.kube.connection import Connection

__all__ = ["METADATA_ONLY", "ApiClient", "ApiFailure", "Connection"]
