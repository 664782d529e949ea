"""`pvc://` models: a short-lived Job in the InferenceJob's namespace reads the claim and prints what the model is.

docs/adr/0019-claims-are-read-by-a-job.md says why, and what it may do.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from dippm.errors import ArtifactUnreachable
from dippm_operator.controller.settings import ClaimSettings
from dippm_operator.fetch import ArtifactCache, Fetched, shown
from dippm_operator.fetch.cache import Entry
from dippm_operator.fetch.claim import MAX_LOG_BYTES, ClaimPath, Handed, parse_pvc, understood, write
from dippm_operator.fetch.local import check_digest, folder_digest
from dippm_operator.fetch.source import Look
from dippm_operator.kube import ApiClient, ApiFailure
from dippm_operator.resource import InferenceJob
from dippm_operator.resource.names import API_VERSION, INJECT_ANNOTATION, KIND

CONTAINER = "reader"
_FIRST_LOOK_SECONDS = 0.5
_MAX_WAIT_SECONDS = 3.0


class ClaimsOff(ArtifactUnreachable):
    """This operator reads no claims."""

    reason = "ClaimsOff"


class ClaimNotFound(ArtifactUnreachable):
    """There is no such claim, or nothing was ever behind it."""

    reason = "ClaimNotFound"


class ClaimPending(ArtifactUnreachable):
    """The pod that reads the claim did not start in time."""

    reason = "ClaimPending"


class ClaimReadFailed(ArtifactUnreachable):
    """The pod that reads the claim ended without an answer, or took too long."""

    reason = "ClaimReadFailed"


class ClaimReader:
    """Reads models in claims, and keeps what it read."""

    def __init__(self, api: ApiClient, cache: ArtifactCache, settings: ClaimSettings) -> None:
        self._api = api
        self._cache = cache
        self._settings = settings

    @asynccontextmanager
    async def open(self, job: InferenceJob) -> AsyncIterator[Fetched]:
        """As `Fetcher.open`, of the claim that the job's URI names in its own namespace.

        The claim is read each time, and hands nothing over where times and sizes are what they were.
        Raises ArtifactUnreachable (ClaimsOff, ClaimNotFound, ClaimPending, ClaimReadFailed), ArtifactTooLarge,
        DigestMismatch.
        """
        uri, digest, namespace = job.spec.model.uri, job.spec.model.digest, job.metadata.namespace
        if not self._settings.image:
            raise ClaimsOff(
                f"{shown(uri)}: claims are not read by this operator; set operator.claims.enabled of the chart, or "
                "give the model by another URI."
            )
        place, key = parse_pvc(uri), f"{uri} in {namespace}"
        entry = await asyncio.to_thread(self._cache.get, key)
        kept: Entry | None = None
        try:
            lacking = entry is None or (digest is not None and not entry.is_folder and not entry.content_digest)
            known = "" if entry is None or lacking else entry.look.etag
            handed, received = await self._read(job, place, known=known, whole=digest is not None)
            if not handed.files and entry is not None:
                kept, entry = entry, None
        finally:
            if entry is not None:
                await asyncio.to_thread(self._cache.release, entry)
        if kept is None:
            kept = await self._keep(shown(uri), key, handed)
        try:
            told = kept.content_digest
            if digest is not None:
                told = await asyncio.to_thread(folder_digest, shown(uri), kept.path) if kept.is_folder else told
                check_digest(shown(uri), told, digest)
            yield Fetched(uri, kept.path, kept.size_bytes, received, kept.look.etag, told, kept.content)
        finally:
            await asyncio.to_thread(self._cache.release, kept)

    async def _keep(self, name: str, key: str, handed: Handed) -> Entry:
        look = Look(handed.etag, main_etag=handed.main_etag)
        with self._cache.filling(name) as folder:
            await asyncio.to_thread(write, handed, folder / "model")
            return await asyncio.to_thread(
                self._cache.put, key, folder, look, handed.content_digest, handed.files, is_folder=handed.is_folder
            )

    async def _read(self, job: InferenceJob, place: ClaimPath, *, known: str, whole: bool) -> tuple[Handed, int]:
        """What the claim has, and the bytes of the log that said so.

        1. The claim must be there: a pod for one that is not would wait for it.
        2. The Job; 3. its pod, until it ended; 4. its log.
        """
        namespace, name = job.metadata.namespace, shown(job.spec.model.uri)
        await self._check_claim(namespace, place.claim, name)
        body = reader_job(job, place, self._settings, known=known, whole=whole)
        try:
            made = await self._api.create(f"/apis/batch/v1/namespaces/{namespace}/jobs", body)
        except ApiFailure as failure:
            raise ClaimReadFailed(f"{name}: no Job may be made to read it ({failure.message}).") from None
        pod = await self._ended(namespace, made["metadata"], name)
        path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/log"
        try:
            log = await self._api.get_text(path, most=MAX_LOG_BYTES, container=CONTAINER)
        except ApiFailure as failure:
            raise ClaimReadFailed(f"{name}: the log of its reader cannot be had ({failure.message}).") from None
        if pod["status"].get("phase") != "Succeeded":
            raise ClaimReadFailed(f"{name}: its reader ended without an answer ({_end_of(pod)}).")
        handed = await asyncio.to_thread(understood, name, log)
        if not known and not handed.files:
            raise ClaimReadFailed(f"{name}: its reader says that nothing has changed, and nothing was known.")
        return handed, len(log)

    async def _check_claim(self, namespace: str, claim: str, name: str) -> None:
        try:
            found = await self._api.get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}")
        except ApiFailure as failure:
            if failure.code != 404:
                raise
            raise ClaimNotFound(
                f"{name}: there is no PersistentVolumeClaim {claim} in namespace {namespace}; create it."
            ) from None
        if (found.get("status") or {}).get("phase") == "Lost":
            raise ClaimNotFound(f"{name}: the volume of PersistentVolumeClaim {claim} is lost; bind it to another.")

    async def _ended(self, namespace: str, made: Mapping[str, Any], name: str) -> dict[str, Any]:
        """The Job's pod, once it succeeded or failed. Labels may be anybody's: the Job must own it."""
        job_name = made["name"]
        deadline, wait = time.monotonic() + self._settings.seconds, _FIRST_LOOK_SECONDS
        pods: list[dict[str, Any]] = []
        while time.monotonic() < deadline:
            await asyncio.sleep(min(wait, max(deadline - time.monotonic(), 0.0)))
            wait = min(wait * 1.5, _MAX_WAIT_SECONDS)
            selector = f"batch.kubernetes.io/job-name={job_name}"
            listed = await self._api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)
            pods = [pod for pod in listed["items"] if _owned_by(pod, made["uid"])]
            for pod in pods:
                if (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
                    return pod
        seconds = f"{self._settings.seconds:g} s"
        if not pods:
            raise ClaimPending(f"{name}: Job {job_name} got no pod to read it within {seconds}; see its events.")
        if (pods[0].get("status") or {}).get("phase") == "Running":
            raise ClaimReadFailed(f"{name}: its reader took longer than {seconds} and was stopped; is the volume slow?")
        raise ClaimPending(f"{name}: the pod that reads it did not start within {seconds} ({_why_pending(pods[0])}).")


def _owned_by(pod: Mapping[str, Any], uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or ())


def reader_job(
    job: InferenceJob, place: ClaimPath, settings: ClaimSettings, *, known: str, whole: bool
) -> dict[str, Any]:
    """The Job that reads a claim: no rights, no token, a claim that it cannot write, and an end."""
    # Not JOB_LABEL: it is no workload of the InferenceJob. The webhook leaves it alone.
    labels = {
        "app.kubernetes.io/name": "dippm",
        "app.kubernetes.io/component": "claim-reader",
        INJECT_ANNOTATION: "false",
    }
    owner = {"apiVersion": API_VERSION, "kind": KIND, "name": job.metadata.name, "uid": job.metadata.uid}
    options = [f"--known={known}"] * bool(known) + ["--whole"] * whole
    container = {
        "name": CONTAINER,
        "image": settings.image,
        "command": ["python", "-m", "dippm_operator.fetch.claim_reader"],
        "args": [*options, "--", "/claim", place.path],
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "1Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "claim", "mountPath": "/claim", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": f"{job.metadata.name}-read-{secrets.token_hex(3)[:5]}",
            "namespace": job.metadata.namespace,
            "labels": labels,
            "ownerReferences": [owner],
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": int(settings.seconds),
            "ttlSecondsAfterFinished": 60,
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
                    "containers": [container],
                    "volumes": [
                        {
                            "name": "claim",
                            "persistentVolumeClaim": {"claimName": place.claim, "readOnly": True},
                        },
                        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
                    ],
                },
            },
        },
    }


def _why_pending(pod: dict[str, Any]) -> str:
    """What the scheduler or the kubelet says."""
    status = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return _line(condition.get("message") or condition.get("reason") or "not scheduled")
    for container in status.get("containerStatuses") or []:
        if waiting := (container.get("state") or {}).get("waiting"):
            return _line(": ".join(str(waiting[key]) for key in ("reason", "message") if waiting.get(key)))
    return "it is still being prepared; is the claim in use on another node?"


def _end_of(pod: dict[str, Any]) -> str:
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        if ended := (container.get("state") or {}).get("terminated"):
            return _line(f"exit code {ended.get('exitCode')}, {ended.get('reason') or 'no reason given'}")
    return _line(status.get("message") or status.get("reason") or "no reason given")


def _line(text: str) -> str:
    return re.sub(r"\s+", " ", str(text))[:300].rstrip(".")
