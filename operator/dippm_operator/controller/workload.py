"""The workload of an InferenceJob: its Job is made once for each run, and never again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dippm_operator.controller.events import News
from dippm_operator.controller.metrics import Metrics
from dippm_operator.controller.state import ClusterState
from dippm_operator.kube import ApiClient, ApiFailure
from dippm_operator.resource import ConditionType, InferenceJob, PolicyMode, WorkloadStatus, group_of
from dippm_operator.resource.names import TEMPLATE_ANNOTATION
from dippm_operator.sizing.decision import Verdict
from dippm_operator.sizing.job import job_name, render_job, template_digest

_MADE_AS_WRITTEN = frozenset({"AlreadyAsked", "ExistingRequest", "OptedOut"})
"""Why a template is run without our slice: its owner wrote what it shall have."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the workload."""

    workload: WorkloadStatus | None
    verdict: Verdict
    stale: Verdict | None = None
    """None where there is no Job that could be stale."""
    news: list[News] = field(default_factory=list)


class Workloads:
    """Makes Jobs, and tells how workloads stand."""

    def __init__(self, api: ApiClient, state: ClusterState, metrics: Metrics) -> None:
        self._api = api
        self._state = state
        self._metrics = metrics

    async def ensure(self, job: InferenceJob, *, predicted: Verdict, placeable: Verdict) -> Outcome:
        """Make the world match. `job` has its new recommendation in its status."""
        if job.spec.policy.mode is PolicyMode.RECOMMEND:
            verdict = Verdict(predicted.status, "RecommendOnly", "policy.mode is Recommend: nothing is touched.")
            return Outcome(job.status.workload, verdict)
        if job.spec.target_ref is not None:
            return self._target(job, placeable)
        return await self._run(job, predicted, placeable)

    def _target(self, job: InferenceJob, placeable: Verdict) -> Outcome:
        """A workload of somebody else's, sized by the webhook when its pods are admitted."""
        target = job.spec.target_ref
        assert target is not None  # the caller looked
        workload = WorkloadStatus(api_version=target.api_version, kind=target.kind, name=target.name)
        recommendation = job.status.recommendation
        if (older := self._older_claim(job)) is not None:
            message = f"InferenceJob {older} names {target.kind} {target.name} too and is older; remove one of them."
            return Outcome(workload, Verdict(False, "TargetConflict", message))
        if recommendation is None:
            return Outcome(workload, Verdict(None, "Waiting", "there is no prediction yet."))
        if not recommendation.fits or placeable.status is False:
            return Outcome(workload, Verdict(False, placeable.reason, placeable.message))
        message = f"new pods of {target.kind} {target.name} get {recommendation.resource}."
        return Outcome(workload, Verdict(True, "SizedAtAdmission", message))

    def _older_claim(self, job: InferenceJob) -> str | None:
        """Name of an older InferenceJob with the same target."""
        mine = (job.metadata.creation_timestamp, job.metadata.name)
        target = job.spec.target_ref
        for (namespace, name), body in self._state.inference_jobs.items():
            reference = (body.get("spec") or {}).get("targetRef")
            if namespace != job.metadata.namespace or name == job.metadata.name or not reference or target is None:
                continue
            if _workload(reference) == target.workload and (body["metadata"].get("creationTimestamp", ""), name) < mine:
                return name
        return None

    async def _run(self, job: InferenceJob, predicted: Verdict, placeable: Verdict) -> Outcome:
        """The Job of the current run.

        1. One that is there is told about; edits since only make it stale.
        2. One that was made for this run and is gone has finished or was removed: it is not made again.
        3. It is made once there is a prediction of this spec, and a slice that it can get.
        """
        previous, name = job.status.workload, job_name(job)
        made = previous is not None and previous.kind == "Job" and previous.run_id == job.spec.run_id
        existing = self._state.job((job.metadata.namespace, name))
        if existing is None and made:  # the watch may lag behind our own call
            existing = await self._api.get_or_none(f"{_jobs(job)}/{name}")
        if existing is not None:  # 1
            return _told(job, existing)
        if made:  # 2
            message = f"Job {name} ran and is gone; change spec.runID to run again."
            return Outcome(previous, Verdict(False, "JobGone", message))
        if predicted.status is not True:  # 3
            return Outcome(previous, Verdict(None, "Waiting", "the Job waits for a prediction of this spec."))
        recommendation = job.status.recommendation
        if recommendation is None or not recommendation.fits or placeable.status is False:
            return Outcome(previous, Verdict(False, placeable.reason, placeable.message))
        return await self._make(job, previous)

    async def _make(self, job: InferenceJob, previous: WorkloadStatus | None) -> Outcome:
        rendered = render_job(job)
        sizing, name = rendered.sizing, rendered.manifest["metadata"]["name"]
        news = [News(True, sizing.reason, warning) for warning in sizing.warnings]
        if not sizing.sized and sizing.reason not in _MADE_AS_WRITTEN:
            verdict = Verdict(False, sizing.reason, " ".join(sizing.warnings))
            return Outcome(previous, verdict, news=_unless_told(job, verdict, news))
        try:
            created = await self._api.create(_jobs(job), rendered.manifest)
        except ApiFailure as failure:
            if failure.code == 409:
                return await self._adopt(job, name, previous)
            if failure.code in (400, 403, 422):  # what the API server says will not change by asking again at once
                verdict = Verdict(False, "JobRefused", f"the API server refused Job {name}: {failure.message}")
                refused = [News(True, verdict.reason, verdict.message)]
                return Outcome(previous, verdict, news=_unless_told(job, verdict, refused))
            raise
        self._metrics.jobs_created.inc()
        self._state.see_job(None, created)
        what = job.status.recommendation.resource if job.status.recommendation and sizing.sized else "no slice of ours"
        news.append(News(False, "JobCreated", f"made Job {name} with {what}."))
        outcome = _told(job, created)
        return Outcome(outcome.workload, outcome.verdict, outcome.stale, news)

    async def _adopt(self, job: InferenceJob, name: str, previous: WorkloadStatus | None) -> Outcome:
        """A Job of that name is there: ours from a look that was cut short, or somebody else's."""
        existing = await self._api.get_or_none(f"{_jobs(job)}/{name}")
        if existing is None:  # it went in between: the next look makes it
            return Outcome(previous, Verdict(None, "Waiting", f"Job {name} is about to be made."))
        return _told(job, existing)


def _workload(reference: Mapping[str, Any]) -> tuple[str, str, str]:
    """As `TargetReference.workload`, of a job that may not be readable as a whole."""
    return group_of(str(reference.get("apiVersion"))), str(reference.get("kind")), str(reference.get("name"))


def _unless_told(job: InferenceJob, verdict: Verdict, news: list[News]) -> list[News]:
    """The news, or none where Ready has that reason since an earlier look: what stands still is no Event. Pure."""
    before = job.status.condition(ConditionType.READY)
    return [] if before is not None and before.reason == verdict.reason else news


def _jobs(job: InferenceJob) -> str:
    return f"/apis/batch/v1/namespaces/{job.metadata.namespace}/jobs"


def _told(job: InferenceJob, existing: Mapping[str, Any]) -> Outcome:
    """How a Job that is there stands. Pure."""
    metadata = existing["metadata"]
    name = metadata["name"]
    if not any(owner.get("uid") == job.metadata.uid for owner in metadata.get("ownerReferences") or []):
        message = f"a Job {name} that is not ours has that name; rename it, the InferenceJob, or change spec.runID."
        return Outcome(job.status.workload, Verdict(False, "NameTaken", message))
    finished = {c["type"]: c for c in (existing.get("status") or {}).get("conditions") or [] if c["status"] == "True"}
    end = finished.get("Complete") or finished.get("Failed")
    workload = WorkloadStatus(
        api_version="batch/v1",
        kind="Job",
        name=name,
        uid=metadata["uid"],
        run_id=job.spec.run_id,
        finished_at=None if end is None else end.get("lastTransitionTime"),
    )
    if "Failed" in finished:
        message = f"Job {name} failed: {finished['Failed'].get('message', '')}; change spec.runID to run again."
        verdict = Verdict(False, "JobFailed", message)
    elif "Complete" in finished:
        verdict = Verdict(True, "JobComplete", f"Job {name} is complete.")
    else:
        verdict = Verdict(True, "JobMade", f"Job {name} was made with its size.")
    annotations = metadata.get("annotations") or {}
    if annotations.get(TEMPLATE_ANNOTATION) == template_digest(job):
        stale = Verdict(False, "UpToDate", f"Job {name} is of this spec and recommendation.")
    else:
        message = f"Job {name} was made of another spec or recommendation; change spec.runID to run this one."
        stale = Verdict(True, "JobOutdated", message)
    return Outcome(workload, verdict, stale)
