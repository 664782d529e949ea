"""Ready only once the jobs are known and the API server would trust us."""

from __future__ import annotations

import asyncio
import logging

import aiohttp

from dippm_operator.failures import in_words
from dippm_operator.kube.api import ApiClient, ApiFailure
from dippm_operator.webhook.cache import JobCache
from dippm_operator.webhook.certificate import ServingCertificate, clients_of

logger = logging.getLogger(__name__)

KINDS = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
UNTRUSTED_SECONDS, TRUSTED_SECONDS = 2.0, 30.0
"""How often the configurations are asked, before and after they verify us."""


class Readiness:
    """Why the webhook is not ready, from the cache, the certificate and the configurations."""

    def __init__(self, cache: JobCache, certificate: ServingCertificate, api: ApiClient, configuration: str) -> None:
        """`configuration` names both webhook configurations; empty skips the check (nothing is configured yet)."""
        self._cache = cache
        self._certificate = certificate
        self._api = api
        self._configuration = configuration
        self._distrust = f"the webhook configuration {configuration} was not read yet" if configuration else ""
        self.stopping = False
        self.dead = ""
        """Why the process should be restarted; empty while all is well."""

    def why_not(self) -> str:
        """One clause; empty when ready."""
        if self.stopping:
            return "shutting down"
        if not self._certificate.loaded:
            return "there is no certificate to serve yet"
        if not self._cache.synced:
            return "the InferenceJobs were not listed yet"
        return self._distrust

    async def watch(self) -> None:
        """Check the configurations until cancelled. While the API server does not answer, the last verdict stands."""
        while True:
            try:
                self._distrust = await self.check() if self._configuration else ""
            except (ApiFailure, aiohttp.ClientError, TimeoutError) as error:
                logger.warning("webhook configuration %s: %s", self._configuration, in_words(error))
            await asyncio.sleep(UNTRUSTED_SECONDS if self._distrust else TRUSTED_SECONDS)

    async def check(self) -> str:
        """Why an API server that follows the configurations would refuse us; empty when it would not."""
        for kind in KINDS:
            found = await self._api.get_or_none(f"/apis/admissionregistration.k8s.io/v1/{kind}/{self._configuration}")
            if found is None:
                return f"there is no {kind[:-1]} {self._configuration}"
            for name, host, bundle in clients_of(found):
                if why := self._certificate.why_not_trusted(bundle, host):
                    return f"webhook {name} as {host}: {why}"
        return ""
