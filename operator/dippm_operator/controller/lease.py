"""One active operator: a coordination.k8s.io Lease, held as client-go's leader election holds it.

(https://pkg.go.dev/k8s.io/client-go/tools/leaderelection) Whether another's Lease has run out is told by this process's
own clock, from when it last saw the record change: clocks of nodes differ.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import aiohttp

from dippm_operator.failures import in_words
from dippm_operator.kube import ApiClient, ApiFailure

logger = logging.getLogger(__name__)
_UNREACHED = (aiohttp.ClientError, TimeoutError, OSError)


class LeaseLost(Exception):
    """Somebody else may be active now: this process must stop at once."""


class Lease:
    """A Lease that one of several identities holds."""

    def __init__(
        self,
        api: ApiClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        duration_seconds: float = 15.0,
        renew_deadline_seconds: float = 10.0,
        retry_seconds: float = 2.0,
    ) -> None:
        self._api = api
        self._folder = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._identity = identity
        self._duration = duration_seconds
        self._deadline = renew_deadline_seconds
        self._retry = retry_seconds
        self._seen: tuple[Any, ...] = ()
        self._seen_at = 0.0

    async def acquire(self) -> None:
        """Wait until this identity holds the Lease."""
        waiting = False
        while True:
            try:
                if await self._try():
                    logger.info("%s holds the Lease %s", self._identity, self._name)
                    return
            except (ApiFailure, *_UNREACHED) as error:
                logger.warning("Lease %s: %s", self._name, in_words(error))
            if not waiting:
                logger.info("%s waits for the Lease %s", self._identity, self._name)
                waiting = True
            await asyncio.sleep(self._retry)

    async def keep(self) -> None:
        """Renew for ever. Raises LeaseLost when another holds it, or it could not be renewed in time."""
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(self._retry)
            try:
                async with asyncio.timeout(max(renewed + self._deadline - time.monotonic(), 0.001)):
                    if not await self._try():
                        raise LeaseLost(f"the Lease {self._name} was taken by another")
                renewed = time.monotonic()
            except (ApiFailure, *_UNREACHED) as error:
                if time.monotonic() - renewed > self._deadline:
                    raise LeaseLost(f"the Lease {self._name} could not be renewed: {in_words(error)}") from error
                logger.warning("Lease %s is not renewed: %s", self._name, in_words(error))

    async def release(self) -> None:
        """Let another have it at once. Failing that it runs out by itself."""
        try:
            lease = await self._api.get(f"{self._folder}/{self._name}")
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _micro_time()}
                await self._api.replace(f"{self._folder}/{self._name}", lease)
        except (ApiFailure, *_UNREACHED) as error:
            logger.warning("Lease %s is not released: %s", self._name, in_words(error))

    async def _try(self) -> bool:
        """One attempt to take or renew; False while another holds it."""
        lease = await self._api.get_or_none(f"{self._folder}/{self._name}")
        now = _micro_time()
        if lease is None:
            spec: dict[str, Any] = {"acquireTime": now, "leaseTransitions": 0}
            lease = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": self._name},
                "spec": self._claim(spec, now),
            }
            return await self._written(self._api.create(self._folder, lease))
        spec = dict(lease.get("spec") or {})
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._has_run_out(spec):
            return False
        if holder != self._identity:
            spec |= {"acquireTime": now, "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        # resourceVersion in the body: of two that try at once, one gets a conflict.
        return await self._written(
            self._api.replace(f"{self._folder}/{self._name}", lease | {"spec": self._claim(spec, now)})
        )

    def _claim(self, spec: Mapping[str, Any], now: str) -> dict[str, Any]:
        duration = max(round(self._duration), 1)
        return {**spec, "holderIdentity": self._identity, "leaseDurationSeconds": duration, "renewTime": now}

    def _has_run_out(self, spec: Mapping[str, Any]) -> bool:
        record = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if record != self._seen:
            self._seen, self._seen_at = record, time.monotonic()
        return time.monotonic() - self._seen_at > float(spec.get("leaseDurationSeconds") or self._duration)

    @staticmethod
    async def _written(call: Any) -> bool:
        try:
            await call
        except ApiFailure as failure:
            if failure.code == 409:
                return False
            raise
        return True


def _micro_time() -> str:
    """A metav1.MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
