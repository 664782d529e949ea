"""Prometheus metrics of the operator, in a registry of their own."""

from __future__ import annotations

from collections import Counter as Counted
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily

from dippm_operator.controller.state import ClusterState
from dippm_operator.resource import ConditionType


class Metrics:
    """All metrics; one object per process (and per test)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.predictions = Counter(
            "dippm_predictions", "Predictions by result (Predicted, or the reason of the failure)", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.prediction_seconds = Histogram(
            "dippm_prediction_seconds", "From artifact on disk to prediction, parsing included",
            buckets=(0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128), registry=self.registry,
        )  # fmt: skip
        self.fetched_bytes = Counter("dippm_fetched_bytes", "Bytes of artifacts fetched", registry=self.registry)
        self.reconciles = Counter(
            "dippm_reconciles", "Looks at an InferenceJob by result (ok, conflict, failed)", ["result"],
            registry=self.registry,
        )  # fmt: skip
        self.reconcile_seconds = Histogram(
            "dippm_reconcile_seconds", "One look at an InferenceJob", registry=self.registry,
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 8, 32, 128),
        )  # fmt: skip
        self.queued = Gauge("dippm_queue_depth", "InferenceJobs that wait to be looked at", registry=self.registry)
        self.leading = Gauge("dippm_leading", "1 while this process holds the Lease", registry=self.registry)
        self.jobs_created = Counter("dippm_jobs_created", "Jobs made", registry=self.registry)


class JobsByReadiness:
    """InferenceJobs by status and reason of Ready, counted when they are asked for."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As prometheus_client calls it."""
        family = GaugeMetricFamily(
            "dippm_inference_jobs", "InferenceJobs by status and reason of Ready", labels=["ready", "reason"]
        )
        counts: Counted[tuple[str, str]] = Counted()
        for body in self._state.inference_jobs.values():
            conditions = (body.get("status") or {}).get("conditions") or []
            ready: dict[str, str] = next((c for c in conditions if c["type"] == ConditionType.READY), {})
            counts[ready.get("status", "Unknown"), ready.get("reason", "Waiting")] += 1
        for labels, count in sorted(counts.items()):
            family.add_metric(labels, count)
        yield family
