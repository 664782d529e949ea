"""Prometheus metrics of the webhook, on a registry of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """Counts and times, by endpoint (`mutate`, `validate`)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reviews = Counter(
            "dippm_webhook_reviews_total",
            "Reviews answered, by what was done",
            ("endpoint", "reason", "allowed"),
            registry=self.registry,
        )
        self.faults = Counter(
            "dippm_webhook_faults_total",
            "Reviews that were let through because of a fault of the webhook itself",
            ("endpoint", "fault"),
            registry=self.registry,
        )
        self.review_seconds = Histogram(
            "dippm_webhook_review_seconds",
            "From the request's body to the answer's",
            ("endpoint",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.step_seconds = Histogram(
            "dippm_webhook_step_seconds",
            "Each step of a review: decode, look up, calculate, encode",
            ("endpoint", "step"),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.jobs = Gauge("dippm_webhook_cached_jobs", "InferenceJobs in the watch cache", registry=self.registry)
        self.silence = Gauge(
            "dippm_webhook_cache_silence_seconds",
            "Since the API server was last heard from by the watch",
            registry=self.registry,
        )
        self.ready = Gauge("dippm_webhook_ready", "1 when /readyz says so", registry=self.registry)
        self.expires = Gauge(
            "dippm_webhook_certificate_expires_timestamp_seconds",
            "End of validity of the served certificate",
            registry=self.registry,
        )

    @contextmanager
    def step(self, endpoint: str, step: str) -> Iterator[None]:
        """Time one step."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.step_seconds.labels(endpoint, step).observe(time.perf_counter() - begin)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
