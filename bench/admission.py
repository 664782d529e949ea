"""How fast is a pod admitted, and how much memory does the webhook take?

    python bench/admission.py [--rate 200] [--seconds 30] [--jobs 1000] [--json]

Starts `dippm-webhook` as a process of its own and sends it reviews of a pod with a stored prediction over TLS on
loopback, from this process, at a constant rate. Latency counts from the moment at which a review was due, not from
when it could be sent, so that a stall is charged to every review that it delays. The API server that the webhook
lists and watches is a stand-in in this process, idle while the load runs. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import platform
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / half) for half in ("predictor", "operator")]

from dippm_operator.certificates.issue import Serving, issue  # noqa: E402  # the checkout's own packages, see above

P99_TARGET_MS, MEMORY_TARGET_MB = 25.0, 120.0
MOST_REQUESTS = 60_000
CONNECTIONS = 16
WARM_UP_SECONDS = 2.0


@dataclass(frozen=True)
class Figures:
    """What was measured."""

    rate: int
    """Reviews a second that were asked for."""
    requests: int
    achieved_rate: float
    median_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    worst_ms: float
    failed: int
    """Answers that were not "allowed, with a patch"."""
    webhook_rss_mb: float
    webhook_peak_mb: float
    webhook_cpu_share: float
    """CPU seconds of the webhook a second of load: 1.0 is one core."""
    cached_jobs: int
    cpus: int
    machine: str

    @property
    def met(self) -> bool:
        return self.failed == 0 and self.p99_ms < P99_TARGET_MS and self.webhook_peak_mb < MEMORY_TARGET_MB


STORED_JOB = """
metadata: {name: job-0, namespace: vision, resourceVersion: "1", creationTimestamp: "2026-01-01T00:00:00Z"}
spec:
  model: {uri: "https://models.example/resnet50.onnx"}
  batchSize: 32
  device: A100-SXM4-40GB
  targetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
status:
  observedGeneration: 1
  prediction: {device: A100-SXM4-40GB, runtime: eager, basis: transferred, memoryMiB: 1790, requiredMiB: 1700,
    requiredUpperMiB: 1985, latencyMicroseconds: 12600, energyMillijoules: 2900}
  recommendation: {profile: 1g.5gb, resource: nvidia.com/mig-1g.5gb, reason: FitsWithHeadroom}
  candidates:
    - {profile: 1g.5gb, usableMiB: 4864, utilizationPercent: 41, fits: true, latencyMicroseconds: 83000}
    - {profile: 2g.10gb, usableMiB: 9856, utilizationPercent: 20, fits: true, latencyMicroseconds: 44000}
    - {profile: 3g.20gb, usableMiB: 19968, utilizationPercent: 10, fits: true, latencyMicroseconds: 30000}
"""
REVIEW = """
apiVersion: admission.k8s.io/v1
kind: AdmissionReview
request:
  uid: 10000000-0000-4000-8000-000000000000
  kind: {group: "", version: v1, kind: Pod}
  resource: {group: "", version: v1, resource: pods}
  namespace: vision
  operation: CREATE
  userInfo: {username: "system:serviceaccount:kube-system:replicaset-controller"}
  object:
    apiVersion: v1
    kind: Pod
    metadata:
      generateName: web-5d8c7b9f6-
      labels: {app: web, dippm.dev/inference-job: job-0}
      annotations: {kubectl.kubernetes.io/default-container: server}
    spec:
      volumes: [{name: models, emptyDir: {}}]
      containers:
        - &server
          name: server
          image: registry.example/server:1
          args: [--port, "8080"]
          resources: {requests: {cpu: "2", memory: 4Gi}}
          volumeMounts: [{name: models, mountPath: /models}]
          terminationMessagePath: /dev/termination-log
          terminationMessagePolicy: File
          imagePullPolicy: IfNotPresent
        - {<<: *server, name: proxy, image: "registry.example/proxy:1"}
"""


def stored_job(number: int) -> dict[str, Any]:
    """An InferenceJob with a prediction, as the API server lists it."""
    job: dict[str, Any] = copy.deepcopy(_JOB)
    job["metadata"] |= {"name": f"job-{number}", "uid": f"00000000-0000-4000-8000-{number:012d}"}
    return job


def pod_review(number: int) -> bytes:
    """The review of a Deployment's pod with a sidecar and twenty variables, as the API server sends it (3 kB)."""
    review: dict[str, Any] = copy.deepcopy(_REVIEW)
    review["request"]["uid"] = f"10000000-0000-4000-8000-{number:012d}"
    pod = review["request"]["object"]
    pod["metadata"]["labels"]["dippm.dev/inference-job"] = f"job-{number}"
    for container in pod["spec"]["containers"]:
        container["env"] = [{"name": f"SETTING_{i}", "value": "x" * 16} for i in range(20)]
    return json.dumps(review).encode()


_JOB, _REVIEW = yaml.safe_load(STORED_JOB), yaml.safe_load(REVIEW)


@asynccontextmanager
async def stand_in(jobs: int) -> AsyncIterator[str]:
    """An API server that lists the jobs and lets a watch hang; yields its URL."""

    async def listing(request: web.Request) -> web.StreamResponse:
        if "watch" in request.query:
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.sleep(600)
            return response
        start, limit = int(request.query.get("continue", "0")), int(request.query["limit"])
        metadata = {"resourceVersion": "100000"}
        if start + limit < jobs:
            metadata["continue"] = str(start + limit)
        items = [stored_job(number) for number in range(start, min(start + limit, jobs))]
        return web.json_response({"metadata": metadata, "items": items})

    application = web.Application()
    application.router.add_get("/apis/dippm.dev/v1alpha1/inferencejobs", listing)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def start_webhook(folder: Path, serving: Serving, api: str) -> tuple[subprocess.Popen[bytes], int, int]:
    """The process, its port and its port for probes."""
    (folder / "tls.crt").write_bytes(serving.certificate)
    (folder / "tls.key").write_bytes(serving.key)
    kubeconfig = {
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "clusters": [{"name": "bench", "cluster": {"server": api}}],
        "users": [{"name": "bench", "user": {}}],
    }
    (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    port, health_port = free_port(), free_port()
    arguments = [f"--certificates={folder}", f"--kubeconfig={folder / 'kubeconfig'}", "--host=127.0.0.1"]
    arguments += [f"--port={port}", f"--health-port={health_port}", "--drain-seconds=0", "--log-level=warning"]
    path = os.pathsep.join(str(REPOSITORY / half) for half in ("predictor", "operator"))
    process = subprocess.Popen(
        [sys.executable, "-m", "dippm_operator.webhook.main", *arguments],
        env=os.environ | {"PYTHONPATH": path},
    )
    return process, port, health_port


async def measure(rate: int, seconds: float, jobs: int) -> Figures:
    """Run the load and return the figures."""
    with tempfile.TemporaryDirectory() as scratch:
        serving = issue(("127.0.0.1",), datetime.now(UTC), timedelta(days=1))
        async with stand_in(jobs) as api:
            process, port, health_port = start_webhook(Path(scratch), serving, api)
            try:
                return await _load(process, port, health_port, serving, rate, seconds, jobs)
            finally:
                process.terminate()
                process.wait(15)


async def _load(
    process: subprocess.Popen[bytes],
    port: int,
    health_port: int,
    serving: Serving,
    rate: int,
    seconds: float,
    jobs: int,
) -> Figures:
    trust = ssl.create_default_context(cadata=serving.authority.decode())
    connector = aiohttp.TCPConnector(ssl=trust, limit=CONNECTIONS)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=10)) as session:
        await _ready(session, process, health_port)
        bodies = [pod_review(number) for number in range(min(jobs, 200))]
        url = f"https://127.0.0.1:{port}/mutate?timeout=5s"
        latencies: list[float] = []
        failed = 0

        async def send(due: float, body: bytes, counted: bool) -> None:
            nonlocal failed
            async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
                answer = await response.read()
            if counted:
                latencies.append(time.perf_counter() - due)
                failed += b'"patch"' not in answer or response.status != 200

        async def at_rate(count: int, counted: bool) -> float:
            start = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for number in range(count):
                    due = start + number / rate
                    if (wait := due - time.perf_counter()) > 0:
                        await asyncio.sleep(wait)
                    group.create_task(send(due, bodies[number % len(bodies)], counted))
            return time.perf_counter() - start

        await at_rate(int(rate * WARM_UP_SECONDS), counted=False)
        busy = cpu_seconds(process.pid)
        elapsed = await at_rate(int(rate * seconds), counted=True)
        busy = cpu_seconds(process.pid) - busy
    latencies.sort()

    def quantile(share: float) -> float:
        return round(1e3 * latencies[min(len(latencies) - 1, int(share * len(latencies)))], 2)

    return Figures(
        rate=rate,
        requests=len(latencies),
        achieved_rate=round(len(latencies) / elapsed, 1),
        median_ms=quantile(0.5),
        p90_ms=quantile(0.9),
        p99_ms=quantile(0.99),
        p999_ms=quantile(0.999),
        worst_ms=quantile(1.0),
        failed=failed,
        webhook_rss_mb=resident_mb(process.pid, "VmRSS"),
        webhook_peak_mb=resident_mb(process.pid, "VmHWM"),
        webhook_cpu_share=round(busy / elapsed, 3),
        cached_jobs=jobs,
        cpus=len(os.sched_getaffinity(0)),
        machine=machine(),
    )


async def _ready(session: aiohttp.ClientSession, process: subprocess.Popen[bytes], health_port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        if process.poll() is not None:
            sys.exit(f"dippm-webhook ended with {process.returncode} before it was ready")
        try:
            async with session.get(f"http://127.0.0.1:{health_port}/readyz") as response:
                text = await response.text()
                if response.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            text = "not listening yet"
        if time.monotonic() > deadline:
            sys.exit(f"dippm-webhook was not ready within 30 s: {text.strip()}")
        await asyncio.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def resident_mb(pid: int, field: str) -> float:
    """A memory figure of /proc, in MB (1e6 bytes)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise LookupError(f"/proc/{pid}/status has no {field}")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def machine() -> str:
    """The processor's name, the interpreter's version, and how busy the machine was."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    load = f"load average {os.getloadavg()[0]:.1f}"  # more than 1 of our own means that others used the machine too
    return f"{models[0] if models else platform.machine()}, Python {platform.python_version()}, {load}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=int, default=200, help="reviews a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long, after a warm-up (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1000, help="InferenceJobs in the cache (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if not (options.rate > 0 and options.jobs > 0 and 1 <= options.rate * options.seconds <= MOST_REQUESTS):
        parser.error(f"rate times seconds must be between 1 and {MOST_REQUESTS}, and there must be a job")
    figures = asyncio.run(measure(options.rate, options.seconds, options.jobs))
    if options.json:
        print(json.dumps(asdict(figures) | {"met": figures.met}))
    else:
        print(f"{figures.requests} reviews at {figures.achieved_rate}/s of {figures.rate}/s, {figures.failed} failed")
        print(
            f"admission: median {figures.median_ms} ms, p90 {figures.p90_ms} ms, p99 {figures.p99_ms} ms "
            f"(target < {P99_TARGET_MS:.0f}), p99.9 {figures.p999_ms} ms, worst {figures.worst_ms} ms"
        )
        print(
            f"webhook:   {figures.webhook_rss_mb} MB resident, {figures.webhook_peak_mb} MB at its peak "
            f"(target < {MEMORY_TARGET_MB:.0f}), {figures.cached_jobs} jobs cached, "
            f"{100 * figures.webhook_cpu_share:.0f} % of one core"
        )
        print(f"on {figures.cpus} x {figures.machine}")
    return 0 if figures.met else 1


if __name__ == "__main__":
    sys.exit(main())
