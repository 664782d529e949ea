"""The Secret that an InferenceJob names, read with the operator's own account: only where a Role allows it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch import Credentials
from dippm_operator.kube import ApiClient, ApiFailure

SecretReader = Callable[[str, str], Awaitable[Credentials]]
"""From namespace and name of a Secret to what it holds. Raises ArtifactUnreachable."""


def secret_reader(api: ApiClient) -> SecretReader:
    """Reads Secrets by name; nothing is kept, so that what an owner takes back is gone at the next look."""

    async def read(namespace: str, name: str) -> Credentials:
        try:
            return Credentials.from_secret(await api.get(f"/api/v1/namespaces/{namespace}/secrets/{name}"))
        except ApiFailure as failure:
            if failure.code == 404:
                raise ArtifactUnreachable(
                    f"spec.model.secretRef: there is no Secret {name} in namespace {namespace}; create it."
                ) from None
            if failure.code == 403:
                raise ArtifactUnreachable(
                    f"spec.model.secretRef: the operator may not read Secret {name}; bind a Role that allows get on it "
                    "to the operator's ServiceAccount (docs/guide/sources.md)."
                ) from None
            raise

    return read
