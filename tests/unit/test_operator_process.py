"""The operator's edges: settings, health over HTTP, the predicting process, and what is imported."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiohttp
import pytest
from tests.operator_predictions import prediction_of

from dippm.case import Case
from dippm.errors import UnsupportedOperator
from dippm.policy import Policy
from dippm.prediction import Prediction
from dippm_operator.controller.handlers import kopf_settings
from dippm_operator.controller.health import HealthServer, Heartbeat
from dippm_operator.controller.metrics import Metrics
from dippm_operator.controller.settings import parse_settings
from dippm_operator.controller.worker import PredictionWorker, PredictorFault, PredictorStopped
from dippm_operator.predict import Question
from dippm_operator.resource import ModelFormat

ROOT = Path(__file__).parents[2]


def question(batch: int) -> Question:
    return Question(Path("m"), "file:m", ModelFormat.AUTO, (), Case(batch), Policy())


def answer(asked: Question) -> Prediction:
    """A predictor for the child process: the batch says what to do."""
    if asked.case.batch == 2:
        raise UnsupportedOperator("m: the operator acme.Magic is not known.")
    if asked.case.batch == 3:
        os._exit(9)
    if asked.case.batch == 4:
        time.sleep(60)
    if asked.case.batch == 5:
        raise KeyError("no such kind")
    return prediction_of(float(os.getpid()), case=asked.case)


async def test_predicting_process_answers_refuses_dies_and_comes_back() -> None:
    worker = PredictionWorker(answer, limit_seconds=20)
    try:
        first = await worker(question(1))
        assert first.required_mib != os.getpid(), "in a process of its own"
        assert (await worker(question(1))).required_mib == first.required_mib, "the same one again"
        with pytest.raises(UnsupportedOperator, match=r"acme\.Magic"):
            await worker(question(2))
        with pytest.raises(PredictorFault, match="KeyError: 'no such kind'"):
            await worker(question(5))
        with pytest.raises(PredictorStopped, match="died on file:m"):
            await worker(question(3))
        assert (await worker(question(1))).required_mib != first.required_mib
    finally:
        worker.close()


async def test_prediction_that_takes_too_long_is_stopped() -> None:
    worker = PredictionWorker(answer, limit_seconds=1.0)
    try:
        with pytest.raises(PredictorStopped, match="not predicted within 1 s"):
            await worker(question(4))
    finally:
        worker.close()


@pytest.mark.parametrize("busy", [False, True])
async def test_a_closed_worker_leaves_no_thread_to_the_interpreters_end(busy: bool) -> None:
    """At exit `concurrent.futures` writes to what that thread may be closing: a traceback in the log."""
    before = set(threading.enumerate())
    worker = PredictionWorker(answer, limit_seconds=60.0)
    await worker(question(1))
    asked = asyncio.ensure_future(worker(question(4))) if busy else None
    await asyncio.sleep(0.3)
    worker.close()
    left = [thread.name for thread in set(threading.enumerate()) - before if "ExecutorManager" in type(thread).__name__]
    assert left == []
    if asked is not None:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def test_health_and_metrics_answer_over_http(unused_tcp_port_factory: pytest.FixtureRequest) -> None:
    health_port, metrics_port = unused_tcp_port_factory(), unused_tcp_port_factory()  # type: ignore[operator]
    heartbeat, metrics = Heartbeat(limit_seconds=0.05), Metrics()
    server = HealthServer(heartbeat, metrics.registry, health_port=health_port, metrics_port=metrics_port)
    async with server, aiohttp.ClientSession() as session:

        async def status(port: int, path: str) -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                return response.status, await response.text()

        assert await status(health_port, "/healthz") == (200, "ok\n")
        assert (await status(health_port, "/readyz"))[0] == 503
        server.ready = lambda: True
        assert (await status(health_port, "/readyz"))[0] == 200
        heartbeat.begins(1)
        time.sleep(0.06)
        assert (await status(health_port, "/healthz"))[0] == 503
        heartbeat.ends(1)
        assert (await status(health_port, "/healthz"))[0] == 200
        metrics.predictions.labels("Predicted").inc()
        assert 'dippm_predictions_total{result="Predicted"} 1.0' in (await status(metrics_port, "/metrics"))[1]


def test_arguments_of_the_chart_are_understood() -> None:
    template = (ROOT / "charts/dippm/templates/operator-deployment.yaml").read_text()
    arguments = re.findall(r"^ +- (--[a-z-]+)=(.*)$", template, re.MULTILINE)
    assert len(arguments) > 10
    values = {"--certificates": "self", "--log-level": "info", "--declare": "A30=1g.6gb"}
    values |= {"--max-artifact-bytes": "1", "--cache-bytes": "1", "--claim-seconds": "1"}
    filled = [f"{flag}={values.get(flag) or value}" for flag, value in arguments]
    settings = parse_settings(filled)
    assert settings.health_port == 8080
    assert settings.declared == (("A30", "nvidia.com/mig-1g.6gb"),)


def test_loopback_is_off_limits_unless_asked_for() -> None:
    assert any("127.0.0.0" in str(n) for n in parse_settings([]).fetch.blocked_networks)
    assert not any("127.0.0.0" in str(n) for n in parse_settings(["--allow-loopback"]).fetch.blocked_networks)
    assert parse_settings([]).fetch.file_roots == ()


def test_kopf_leaves_no_traces_of_its_own_and_its_watches_end() -> None:
    settings = kopf_settings()
    assert settings.persistence.finalizer.startswith("dippm.dev/")
    assert not settings.posting.enabled
    assert settings.watching.server_timeout
    assert settings.watching.client_timeout
    assert settings.watching.server_timeout < settings.watching.client_timeout


@pytest.mark.parametrize(
    "module", ["dippm_operator.controller.main", "dippm_operator.size_command", "dippm_operator.sizing"]
)
def test_operator_process_itself_never_loads_torch_or_tvm(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'tvm'}} & set(sys.modules)))"
    path = os.pathsep.join(str(ROOT / part) for part in ("predictor", "operator"))
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_wrong_settings_are_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from dippm_operator.controller.main import main

    arguments = ["--kubeconfig", str(tmp_path / "none"), "--health-port", "0", "--metrics-port", "0"]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(tmp_path / "none") in error
    assert "Traceback" not in error
