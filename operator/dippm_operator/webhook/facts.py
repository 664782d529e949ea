"""Facts about a pod that are in no InferenceJob: how long its owner has waited, which quotas its namespace has."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dippm_operator.kube.api import ApiClient
from dippm_operator.resource import InferenceJob
from dippm_operator.webhook.calculate import Facts, needs_owner_age, needs_quota
from dippm_operator.webhook.owners import MOST_REMEMBERED, Owners
from dippm_operator.webhook.unknown import age_seconds

QUOTA_SECONDS = 10.0


class FactFinder:
    """Looks up what `calculate_patches` needs, and only that."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self.owners = Owners(api)
        self._quotas: dict[str, tuple[float, frozenset[str]]] = {}

    async def facts(self, pod: Mapping[str, Any], namespace: str, job: InferenceJob) -> Facts:
        """Raises ApiFailure, aiohttp.ClientError or TimeoutError where the API server does not say."""
        age = float("inf")
        if needs_owner_age(job):
            created = await self.owners.created(pod, namespace) or job.metadata.creation_timestamp
            age = age_seconds(created, datetime.now(UTC))
        quota = await self._quota_resources(namespace) if needs_quota(pod, job) else frozenset()
        return Facts(owner_age_seconds=age, quota_resources=quota)

    async def _quota_resources(self, namespace: str) -> frozenset[str]:
        """Resources that quotas of the namespace cover, without the `requests.` of extended ones."""
        until, resources = self._quotas.get(namespace, (0.0, frozenset()))
        if time.monotonic() >= until:
            listed = await self._api.get(f"/api/v1/namespaces/{namespace}/resourcequotas")
            resources = frozenset(
                name.removeprefix("requests.")
                for quota in listed.get("items") or ()
                for name in (quota.get("spec") or {}).get("hard") or {}
            )
            if len(self._quotas) >= MOST_REMEMBERED:
                self._quotas.clear()
            self._quotas[namespace] = (time.monotonic() + QUOTA_SECONDS, resources)
        return resources

    async def may_read_secret(self, user: Mapping[str, Any], namespace: str, secret: str) -> bool:
        """Whether the authorizer lets this user read the Secret (SubjectAccessReview)."""
        spec: dict[str, Any] = {
            "user": user.get("username", ""),
            "uid": user.get("uid", ""),
            "groups": user.get("groups") or [],
            "extra": user.get("extra") or {},
            "resourceAttributes": {
                "namespace": namespace,
                "verb": "get",
                "version": "v1",
                "resource": "secrets",
                "name": secret,
            },
        }
        answer = await self._api.create(
            "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec},
        )
        return bool((answer.get("status") or {}).get("allowed"))
