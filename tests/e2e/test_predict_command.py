"""`dippm predict` as a user runs it: a process, a real network's file, the weights that ship."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RESNET = REPOSITORY / "examples/models/resnet50.onnx"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(str(REPOSITORY / p) for p in ("predictor", "operator"))}

MEASURED = """
import resource, sys
from dippm.cli import main
code = main(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=REPOSITORY, timeout=120)


def dippm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run("-m", "dippm", *arguments)


def test_resnet_50_comes_out_on_the_smallest_slice_of_the_papers_card() -> None:
    done = dippm("predict", str(RESNET), "--batch", "32", "--json")
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert body["static_features"]["macs"] == pytest.approx(32 * 4.09e9, rel=0.01)
    assert body["weights_mib"] == pytest.approx(97.5, rel=0.02)
    assert body["weights_mib"] < body["allocated_mib"] < body["required_mib"] < body["required_upper_mib"] < 4864
    assert (body["mig_profile"], body["resource"]) == ("1g.5gb", "nvidia.com/mig-1g.5gb")
    assert 1 < body["device_ms"] < 100
    assert 0.1 < body["energy_j"] < 50
    by_profile = {c["profile"]: c["latency_ms"] for c in body["candidates"]}
    assert by_profile["1g.5gb"] > 3 * by_profile["7g.40gb"]


def test_a_process_stays_under_1_2_gb() -> None:
    done = run("-c", MEASURED, "predict", str(RESNET), "--batch", "32", "--json")
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) * 1024 < 1.2e9


def test_the_measured_card_is_measured_and_a_larger_batch_needs_more() -> None:
    needs = []
    for batch in ("1", "64"):
        done = dippm("predict", str(RESNET), "--batch", batch, "--device", "H200", "--runtime", "graph", "--json")
        assert done.returncode == 0, done.stderr
        body = json.loads(done.stdout)
        assert body["basis"] == "measured"
        needs.append((body["required_upper_mib"], body["device_ms"], body["energy_j"]))
    assert all(more > less for less, more in zip(*needs, strict=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("predict", "gone.onnx", "--batch", "1"), "gone.onnx"),
        (("predict", str(RESNET)), "--batch"),
        (("predict", str(RESNET), "--batch", "1", "--device", "A1000"), "A100-SXM4-40GB"),
        (("predict", str(REPOSITORY / "README.md"), "--batch", "1"), "README.md"),
        (("nothing",), "predict"),
    ],
)
def test_a_mistake_is_one_sentence_on_stderr_without_a_traceback(arguments: tuple[str, ...], said: str) -> None:
    done = dippm(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr
