"""docs/guide/first-job.md: its lines for kind and minikube, run as they stand, with the product's own operator."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.integration.test_operator_controlplane import start_operator

from dippm_operator.resource.crd import custom_resource_definition

if TYPE_CHECKING:
    from conftest import ControlPlane

pytestmark = [
    pytest.mark.controlplane,
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="the tutorial is kubectl's: install it"),
]

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide" / "first-job.md"
NOT_HERE = (
    "docker ", "kind ", "helm ", "kubectl -n dippm-system rollout status ",
    "kubectl -n vision wait --for=condition=Ready pod/",
)  # fmt: skip
"""What wants a container runtime, a kubelet or the chart (which test_chart_controlplane.py installs)."""


def lines() -> list[str]:
    (block,) = re.findall(r"## Without a GPU.*?```\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return [line for line in block.splitlines() if line]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """The web server of examples/tutorial/store.yaml; its URL."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1"]
    command += ["--directory", str(ROOT / "examples" / "models")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        port = re.search(r"port (\d+)", process.stdout.readline())
        assert port is not None
        yield f"http://127.0.0.1:{port[1]}/"
        process.kill()


def test_the_tutorial_runs_as_written(control_plane: ControlPlane, store: str, tmp_path: Path) -> None:
    control_plane.install_crd(custom_resource_definition())
    control_plane.create("/api/v1/nodes", {"metadata": {"name": "kind-control-plane"}})
    operator = start_operator(
        control_plane, tmp_path, "dippm_operator.controller.main", "--lease", "tutorial", "--watch-namespace", "vision"
    )
    uri = {"spec": {"model": {"uri": f"{store}resnet50.onnx"}}}
    allocatable = {"status": {"allocatable": {"nvidia.com/mig-1g.5gb": "7"}}}
    # No kubelet makes what a node has allocatable, and nothing resolves a Service's name here.
    after = {
        "--subresource": f"kubectl patch $node --subresource=status --type=merge -p '{json.dumps(allocatable)}'",
        "tutorial/resnet50.yaml": f"kubectl -n vision patch infjob resnet50 --type=merge -p '{json.dumps(uri)}'",
    }
    script = ["set -eu"]
    for line in lines():
        script += [line] if not line.startswith(NOT_HERE) else []
        script += [more for part, more in after.items() if part in line]
    assert len(script) == 1 + 10 + len(after)
    try:
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=ROOT,
            env=os.environ | {"KUBECONFIG": str(control_plane.kubeconfig)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr + (tmp_path / "operator.log").read_text()
        (said,) = re.findall(r"last line prints `(.*?)`", GUIDE.read_text())
        assert done.stdout.splitlines()[-1] == said
    finally:
        operator.send_signal(signal.SIGTERM)
        operator.wait(60)
        control_plane.delete("/api/v1/nodes/kind-control-plane")
