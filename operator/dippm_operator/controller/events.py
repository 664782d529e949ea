"""Events on an InferenceJob: one for each condition that changed, and for what was done."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import aiohttp

from dippm_operator.controller.conditions import MESSAGE_LIMIT, timestamp
from dippm_operator.kube import ApiClient, ApiFailure
from dippm_operator.resource import Condition, ConditionType, InferenceJob
from dippm_operator.resource.names import API_VERSION, KIND

logger = logging.getLogger(__name__)
COMPONENT = "dippm-operator"

_BAD_WHEN_TRUE = frozenset({ConditionType.OUT_OF_MEMORY, ConditionType.STALE})
_NEWS = _BAD_WHEN_TRUE | {ConditionType.RESOLVED, ConditionType.PREDICTED, ConditionType.PLACEABLE}
"""Ready repeats one of these, or what the Job's own event says."""


@dataclass(frozen=True, slots=True)
class News:
    """One Event to be."""

    warning: bool
    reason: str
    message: str


def changes(previous: Sequence[Condition], current: Sequence[Condition]) -> list[News]:
    """News of conditions whose status or reason changed, the same news once. Pure."""
    old = {c.type: (c.status, c.reason) for c in previous}
    news = [
        News(warning=(c.status == "True") == (c.type in _BAD_WHEN_TRUE), reason=c.reason, message=c.message)
        for c in current
        if c.type in _NEWS and c.status != "Unknown" and old.get(c.type) != (c.status, c.reason)
        if not (c.type in _BAD_WHEN_TRUE and c.status == "False")
    ]
    return list(dict.fromkeys(news))


def event_body(job: InferenceJob, news: News, *, instance: str, now: datetime) -> dict[str, Any]:
    """A v1 Event. Pure but for its random name."""
    metadata = job.metadata
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata.name}.{secrets.token_hex(8)}", "namespace": metadata.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
        },
        "type": "Warning" if news.warning else "Normal",
        "reason": news.reason,
        "message": news.message[:MESSAGE_LIMIT],
        "firstTimestamp": timestamp(now),
        "lastTimestamp": timestamp(now),
        "count": 1,
        "source": {"component": COMPONENT, "host": instance},
    }


async def post(api: ApiClient, job: InferenceJob, news: Sequence[News], *, instance: str, now: datetime) -> None:
    """Post Events. They are for people: one that cannot be posted is logged and left."""
    for one in news:
        try:
            await api.create(
                f"/api/v1/namespaces/{job.metadata.namespace}/events",
                event_body(job, one, instance=instance, now=now),
            )
        except (ApiFailure, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("no event for %s/%s: %s", *job.key, error)
