"""The third hop of /validate: an InferenceJob as somebody wants to write it."""

from __future__ import annotations

import logging

import aiohttp

from dippm.errors import DippmError
from dippm_operator.kube.api import ApiFailure
from dippm_operator.resource import InferenceJob, parse_inference_job
from dippm_operator.resource.names import KIND
from dippm_operator.webhook.cache import JobCache
from dippm_operator.webhook.facts import FactFinder
from dippm_operator.webhook.metrics import Metrics
from dippm_operator.webhook.review import Answer, Review, refusal
from dippm_operator.webhook.rules import check_job, older_rival

logger = logging.getLogger(__name__)

ENDPOINT = "validate"


class JobValidation:
    """Answers reviews of InferenceJobs."""

    def __init__(self, jobs: JobCache, facts: FactFinder, metrics: Metrics) -> None:
        self._jobs = jobs
        self._facts = facts
        self._metrics = metrics

    async def answer(self, review: Review) -> Answer:
        """Refused with one sentence, or allowed.

        An object that is being deleted, or whose spec is not touched, is always allowed: a rule that is new, or that
        it broke before we were there, must not stop finalizers and labels from being written.
        """
        if review.kind != KIND or review.operation not in ("CREATE", "UPDATE"):
            return Answer(reason="NotAJob")
        if (review.object.get("metadata") or {}).get("deletionTimestamp"):
            return Answer(reason="Deleting")
        if review.operation == "UPDATE" and review.object.get("spec") == review.old_object.get("spec"):
            return Answer(reason="SpecUnchanged")
        body = dict(review.object)
        if not (body.get("metadata") or {}).get("name"):
            # generateName: the API server has not made up the name yet.
            prefix = (body.get("metadata") or {}).get("generateName", "")
            body["metadata"] = {**(body.get("metadata") or {}), "name": f"{prefix}xxxxx"}
        with self._metrics.step(ENDPOINT, "calculate"):
            try:
                job = parse_inference_job(body, strict=False)
                check_job(job)
            except DippmError as error:
                return refusal(422, "Invalid", str(error), reason=error.reason)
        if (refused := await self._secret_refusal(job, review)) is not None:
            return refused
        rival = older_rival(job, self._jobs.jobs_of(review.namespace))
        if rival is not None and job.spec.target_ref is not None:
            target = job.spec.target_ref
            return Answer(
                warnings=(
                    f"InferenceJob {rival.metadata.name} is older and sizes {target.kind} {target.name} already; "
                    "it stays in force, so delete one of the two",
                ),
                reason="TargetConflict",
            )
        return Answer(reason="Valid")

    async def _secret_refusal(self, job: InferenceJob, review: Review) -> Answer | None:
        """Whoever names a Secret must be allowed to read it, or a job would read it for him.

        The one place that fails closed: without the authorizer's word the job is refused, to be tried again.
        """
        reference = job.spec.model.secret_ref
        old = ((review.old_object.get("spec") or {}).get("model") or {}).get("secretRef") or {}
        old_uri = ((review.old_object.get("spec") or {}).get("model") or {}).get("uri")
        if reference is None or (old.get("name") == reference.name and old_uri == job.spec.model.uri):
            return None
        name, user = f"InferenceJob {job.metadata.name}", str(review.user.get("username", "the user"))
        secret = f"Secret {reference.name} in namespace {review.namespace}"
        try:
            with self._metrics.step(ENDPOINT, "lookup"):
                if await self._facts.may_read_secret(review.user, review.namespace, reference.name):
                    return None
        except (ApiFailure, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("SubjectAccessReview for %s: %s", secret, error)
            return refusal(
                503,
                "ServiceUnavailable",
                f"{name}: it could not be checked whether {user} may read {secret}, which spec.model.secretRef names; "
                "try again",
                reason="SecretUnchecked",
            )
        return refusal(
            403,
            "Forbidden",
            f"{name}: {user} may not read {secret}, which spec.model.secretRef names; "
            "ask for a Role that allows get on it, or name another",
            reason="SecretForbidden",
        )
