"""The second hop: decode a review, have it answered in time, encode the answer; whatever fails here fails open."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import aiohttp

from dippm.errors import DippmError
from dippm_operator.kube.api import ApiFailure
from dippm_operator.resource.names import KIND
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.review import Answer, Review, read_review, refusal, write_review

logger = logging.getLogger(__name__)

Answerer = Callable[[Review], Awaitable[Answer]]


async def admit(body: bytes, answerer: Answerer, *, endpoint: str, budget_seconds: float, metrics: Metrics) -> bytes:
    """Answer one AdmissionReview within `budget_seconds`.

    A fault of ours, of whatever kind, is answered with "allowed" and a warning: a pod is never kept out by it. The one
    exception is an InferenceJob that names a Secret: unchecked, it could have one read that its author may not read.
    Raises ManifestError only for a body that is no review, since that has no uid to answer to.
    """
    begin = time.perf_counter()
    with metrics.step(endpoint, "decode"):
        review = read_review(body)
    try:
        async with asyncio.timeout(budget_seconds):
            answer = await answerer(review)
    except TimeoutError:
        answer = _let_through(review, endpoint, "Timeout", f"no answer within {budget_seconds:.1f} s", metrics)
    except DippmError as error:
        answer = _let_through(review, endpoint, error.reason, str(error), metrics)
    except (ApiFailure, aiohttp.ClientError) as error:
        logger.warning("%s of %s %s/%s: %s", endpoint, review.kind, review.namespace, review.name, error)
        answer = _let_through(review, endpoint, "ApiServer", "the API server did not answer the webhook", metrics)
    except Exception as error:  # fail open: the admission of a pod outranks whatever went wrong in here
        logger.exception("%s of %s %s/%s failed", endpoint, review.kind, review.namespace, review.name)
        answer = _let_through(review, endpoint, "Fault", f"{type(error).__name__} in the webhook", metrics)
    with metrics.step(endpoint, "encode"):
        encoded = write_review(review.uid, answer)
    metrics.reviews.labels(endpoint, answer.reason, str(answer.allowed).lower()).inc()
    metrics.review_seconds.labels(endpoint).observe(time.perf_counter() - begin)
    return encoded


def _let_through(review: Review, endpoint: str, fault: str, why: str, metrics: Metrics) -> Answer:
    metrics.faults.labels(endpoint, fault).inc()
    what = review.kind or "object"
    if _names_secret(review):
        message = f"dippm could not check this {what}, whose spec.model.secretRef names a Secret: {why}; try again"
        return refusal(503, "ServiceUnavailable", message, reason=fault)
    return Answer(warnings=(f"dippm could not look at this {what}, which stays as it is: {why}",), reason=fault)


def _names_secret(review: Review) -> bool:
    spec = review.object.get("spec")
    model = spec.get("model") if isinstance(spec, Mapping) else None
    return review.kind == KIND and isinstance(model, Mapping) and bool(model.get("secretRef"))
