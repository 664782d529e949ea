"""The parsing child: the same graph, the same errors, and limits that say which they were."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dippm.artifact import Artifact, open_artifact
from dippm.errors import InputShapeError, ModelFormatError, ParseLimitExceeded
from dippm.frontend import load_graph
from dippm.frontend.child import Limits, _converse, _kill, _understood, load_graph_in_child

MODELS = Path(__file__).parents[2] / "examples" / "models"


@pytest.fixture(scope="module")
def resnet50() -> Artifact:
    return open_artifact(MODELS / "resnet50.onnx")


def test_the_child_gives_the_same_graph(resnet50: Artifact) -> None:
    assert load_graph_in_child(resnet50, batch=3) == load_graph(resnet50, batch=3)


def test_errors_cross_as_they_are(tmp_path: Path, resnet50: Artifact) -> None:
    with pytest.raises(InputShapeError, match="batch must be at least 1"):
        load_graph_in_child(resnet50, batch=0)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((MODELS / "resnet50.onnx").read_bytes()[:9000])
    with pytest.raises(ModelFormatError, match="truncated"):
        load_graph_in_child(dataclasses.replace(resnet50, path=broken, uri="http://models/broken.onnx"), batch=1)


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [("address_space_bytes", 1 << 30, "memory"), ("cpu_seconds", 1, "CPU time"), ("wall_seconds", 0.3, "wall clock")],
)
def test_each_limit_says_which_it_was(resnet50: Artifact, limit: str, value: float, says: str) -> None:
    with pytest.raises(ParseLimitExceeded, match=says):
        load_graph_in_child(resnet50, batch=1, limits=dataclasses.replace(Limits(), **{limit: value}))


def test_a_crash_is_one_sentence(resnet50: Artifact) -> None:
    for status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGKILL, 3):
        with pytest.raises(ParseLimitExceeded) as refused:
            _understood(b'{"graph": {"unfinished', status, resnet50, Limits())
        assert "\n" not in str(refused.value)


def test_a_child_that_closes_its_end_and_stays_is_not_waited_for() -> None:
    code = "import os, time; os.close(1); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            with pytest.raises(ParseLimitExceeded, match="wall clock"):
                _converse(process, b"{}", Limits(wall_seconds=0.5))
        finally:
            _kill(process)


def test_the_child_may_not_reach_out() -> None:
    """The audit hook and the namespace, in a process of its own: a hook cannot be taken back."""
    code = (
        "import os, socket, subprocess\n"
        "from dippm.frontend.child import _cut_off\n"
        "_cut_off()\n"
        "tries = [lambda: os.system('true'), lambda: subprocess.run(['true']), lambda: os.fork(),\n"
        "         lambda: socket.socket().connect(('127.0.0.1', 9))]\n"
        "for n, attempt in enumerate(tries):\n"
        "    try:\n"
        "        attempt()\n"
        "    except PermissionError as error:\n"
        "        print(n, 'denied')\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split("\n")[:4] == ["0 denied", "1 denied", "2 denied", "3 denied"]


def test_only_the_doors_import_torch_and_tvm() -> None:
    code = (
        "import sys\n"
        "import dippm.artifact, dippm.case, dippm.errors, dippm.frontend, dippm.frontend.child, dippm.graph\n"
        "import dippm.signature, dippm.vocabulary\n"
        "print(sorted({'torch', 'tvm', 'onnx'} & set(sys.modules)))\n"
        "import dippm.features, dippm.frontend.exported_program as e\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"
