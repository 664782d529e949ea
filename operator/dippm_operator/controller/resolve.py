"""From the URI to a prediction: when it is due, what it brings, and what stays when it fails."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta

from dippm.errors import ArtifactError, ArtifactUnreachable, DippmError, ModelFormatError, UnknownDevice
from dippm.prediction import Prediction
from dippm.profiles import FULL_GPU, Device, resolve_device
from dippm_operator.controller.claims import ClaimReader
from dippm_operator.controller.conditions import timestamp, verdict_of
from dippm_operator.controller.metrics import Metrics
from dippm_operator.controller.secrets import SecretReader
from dippm_operator.controller.worker import PredictorStopped
from dippm_operator.fetch import Credentials, Fetched, Fetcher, shown
from dippm_operator.predict import Question, question_for
from dippm_operator.resource import CandidateStatus, ConditionType, InferenceJob, InferenceJobStatus, ModelStatus
from dippm_operator.sizing.decision import Verdict, case_of, decide, policy_of
from dippm_operator.sizing.inventory import Inventory

AsyncPredictor = Callable[[Question], Awaitable[Prediction]]

FIRST_RETRY = timedelta(seconds=15)
"""After a failure that may pass (the host is down, the predictor was killed); doubled each time."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What is known of the model after this look."""

    answer: InferenceJobStatus
    """Its model, prediction, recommendation and candidates: those of the last good prediction."""
    resolved: Verdict
    predicted: Verdict
    next_look: datetime
    """When the URI is to be asked again."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """Kept here and not only in the status, because the status may not have been written (a conflict)."""

    generation: int
    device: str
    resolution: Resolution
    failures: int
    """In a row."""


class Resolver:
    """Fetches and predicts when it is due, and keeps the last good answer when it fails."""

    def __init__(
        self,
        fetcher: Fetcher,
        predictor: AsyncPredictor,
        metrics: Metrics,
        *,
        predictor_version: str,
        read_secret: SecretReader,
        claims: ClaimReader | None = None,
    ) -> None:
        self._claims = claims
        self._read_secret = read_secret
        self._version = predictor_version
        self._fetcher = fetcher
        self._predictor = predictor
        self._metrics = metrics
        self._attempts: dict[str, _Attempt] = {}

    def forget(self, uid: str) -> None:
        """The InferenceJob is gone."""
        self._attempts.pop(uid, None)

    async def resolve(self, job: InferenceJob, device: str, inventory: Inventory, now: datetime) -> Resolution:
        """The model's state: looked up anew when due, else as it was. `device` is as the user or the nodes name it."""
        uid, generation = job.metadata.uid, job.metadata.generation
        known = inventory.device(device)
        try:
            device = device if known is not None else resolve_device(device).product
        except UnknownDevice as error:
            return _failed(job, job.status, error, now + _interval(job))
        attempt = self._attempts.get(uid) or self._from_status(job)
        same = attempt is not None and (attempt.generation, attempt.device) == (generation, device)
        sized = attempt is None or _sized_alike(attempt.resolution, known)
        if attempt is not None and same and sized and now < attempt.resolution.next_look:
            self._attempts[uid] = attempt
            return attempt.resolution
        answer = attempt.resolution.answer if attempt is not None else job.status
        failures = attempt.failures if attempt is not None and same else 0
        try:
            resolution = await self._look(job, answer, device, inventory, now)
            failures = 0
        except DippmError as error:
            passing = isinstance(error, ArtifactUnreachable | PredictorStopped)
            wait = min(FIRST_RETRY * 2 ** min(failures, 20), _interval(job)) if passing else _interval(job)
            failures += 1
            self._metrics.predictions.labels(error.reason).inc()
            resolution = _failed(job, answer, error, now + wait)
        self._attempts[uid] = _Attempt(generation, device, resolution, failures)
        return resolution

    async def _look(
        self, job: InferenceJob, answer: InferenceJobStatus, device: str, inventory: Inventory, now: datetime
    ) -> Resolution:
        model = job.spec.model
        credentials = None
        if model.secret_ref is not None:
            credentials = await self._read_secret(job.metadata.namespace, model.secret_ref.name)
        next_look = now + _interval(job)
        async with self._open(job, credentials) as artifact:
            self._metrics.fetched_bytes.inc(artifact.fetched_bytes)
            resolved = Verdict(True, "ArtifactResolved", f"{shown(model.uri)} has {artifact.size_bytes} bytes.")
            if answer.model is not None and self._is_current(job, answer, device, inventory, artifact):
                model_status = answer.model.model_copy(update={"resolved_at": timestamp(now)})
                answer = answer.model_copy(update={"model": model_status})
                return Resolution(answer, resolved, _predicted(answer), next_look)
            case, policy = case_of(job.spec, device), policy_of(job.spec)
            question = question_for(job.spec, artifact, case=case, policy=policy, device=inventory.device(device))
            started = time.perf_counter()
            prediction = await self._predictor(question)
            self._metrics.prediction_seconds.observe(time.perf_counter() - started)
            self._metrics.predictions.labels("Predicted").inc()
        decision = decide(prediction, job.spec, inventory)
        answer = InferenceJobStatus(
            model=_model_status(artifact, prediction, now),
            prediction=decision.prediction.model_copy(update={"predictor_version": self._version}),
            candidates=decision.candidates,
            recommendation=decision.recommendation,
        )
        return Resolution(answer, resolved, _predicted(answer), next_look)

    def _open(self, job: InferenceJob, credentials: Credentials | None) -> AbstractAsyncContextManager[Fetched]:
        model = job.spec.model
        if model.uri.startswith("pvc:") and self._claims is not None:
            return self._claims.open(job)
        return self._fetcher.open(model.uri, digest=model.digest, credentials=credentials)

    def _from_status(self, job: InferenceJob) -> _Attempt | None:
        """What an earlier process did, as far as the status tells; None when it has to be done now."""
        status = job.status
        if status.model is None or status.prediction is None or status.model.resolved_at is None:
            return None
        predicted = verdict_of(status.condition(ConditionType.PREDICTED))
        if predicted.status is not True or status.prediction.predictor_version != self._version:
            return None
        next_look = datetime.fromisoformat(status.model.resolved_at) + _interval(job)
        resolved = verdict_of(status.condition(ConditionType.RESOLVED))
        resolution = Resolution(status, resolved, predicted, next_look)
        return _Attempt(status.observed_generation, status.prediction.device, resolution, 0)

    def _is_current(
        self, job: InferenceJob, answer: InferenceJobStatus, device: str, inventory: Inventory, artifact: Fetched
    ) -> bool:
        """Whether the answer in the status is to this very question about this very artifact and these slices."""
        model, needs, status = answer.model, answer.prediction, job.status
        if model is None or needs is None or status.observed_generation != job.metadata.generation:
            return False
        same_artifact = (
            artifact.content_digest == model.content_digest
            if artifact.content_digest and model.content_digest
            else bool(artifact.etag) and artifact.etag == model.etag
        )
        return (
            same_artifact
            and verdict_of(status.condition(ConditionType.PREDICTED)).status is True
            and (needs.predictor_version, needs.device) == (self._version, device)
            and _slices_are(answer.candidates, inventory.device(device))
        )


def _sized_alike(resolution: Resolution, device: Device | None) -> bool:
    """Whether a prediction that is in force is for the slices that the nodes' labels tell of now.

    True without a prediction of this spec: a failure waits for its own next look, whatever the nodes say.
    """
    return resolution.predicted.status is not True or _slices_are(resolution.answer.candidates, device)


def _slices_are(candidates: Sequence[CandidateStatus], device: Device | None) -> bool:
    """Whether the candidates are this device's slices at their sizes; True where no node has the device now."""
    if device is None:
        return True
    predicted = {c.profile: c.usable_mib for c in candidates if c.profile != FULL_GPU}
    return predicted == {p.name: p.usable_mib for p in device.profiles}


def _interval(job: InferenceJob) -> timedelta:
    return timedelta(minutes=job.spec.model.resolve_interval_minutes)


def _model_status(artifact: Fetched, prediction: Prediction, now: datetime) -> ModelStatus:
    return ModelStatus(
        graph_digest=prediction.digest,
        etag=artifact.etag,
        content_digest=artifact.content_digest,
        resolved_at=timestamp(now),
        format=prediction.format,
        size_bytes=artifact.size_bytes,
        fetched_bytes=artifact.fetched_bytes,
    )


def _predicted(status: InferenceJobStatus) -> Verdict:
    needs = status.prediction
    assert needs is not None  # called with a prediction only
    return Verdict(
        True,
        "Predicted",
        f"needs {needs.required_mib} MiB, at most {needs.required_upper_mib} MiB, on {needs.device} "
        f"({needs.runtime} runtime, {needs.basis}).",
    )


def _failed(job: InferenceJob, answer: InferenceJobStatus, error: DippmError, next_look: datetime) -> Resolution:
    """The last good answer stays in force; the condition says what went wrong."""
    message = str(error).rstrip(".") + "."
    if (good := answer.recommendation) is not None and good.fits:
        message = f"{message} The last good recommendation, {good.profile}, stays in force."
    failure = Verdict(False, error.reason, message)
    if isinstance(error, ArtifactError | ModelFormatError):
        return Resolution(answer, failure, failure, next_look)
    fetched = Verdict(True, "ArtifactResolved", f"{shown(job.spec.model.uri)} was fetched.")
    return Resolution(answer, fetched, failure, next_look)
