"""The parsing child: the same graph, the same errors, and limits that say which they were."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import onnx
import pytest

from dippm.artifact import Artifact, open_artifact
from dippm.errors import InputShapeError, ModelFormatError, ParseLimitExceeded
from dippm.frontend import load_graph, pool
from dippm.frontend.child import _understood, load_graph_in_child
from dippm.frontend.isolation import FILTER, walls_here
from dippm.frontend.kept_graphs import KeptGraphs
from dippm.frontend.limits import Limits
from dippm.frontend.pool import PARENT, WarmParent
from dippm.kept import Kept

MODELS = Path(__file__).parents[2] / "examples" / "models"


@pytest.fixture(scope="module")
def resnet50() -> Artifact:
    return open_artifact(MODELS / "resnet50.onnx")


@pytest.fixture(scope="module")
def long_chain(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Thirty thousand operators: seconds of parsing."""
    path, count = tmp_path_factory.mktemp("chain") / "chain.onnx", 30_000
    nodes = [onnx.helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(count)]
    ends = [onnx.helper.make_tensor_value_info(f"t{i}", onnx.TensorProto.FLOAT, ["n", 8]) for i in (0, count)]
    graph = onnx.helper.make_graph(nodes, "chain", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), path)
    return open_artifact(path)


def children() -> list[int]:
    """Process ids of the children that parse right now."""
    assert PARENT._process is not None
    pid = PARENT._process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_the_preloaded_process_has_one_thread_and_no_leftovers(resnet50: Artifact) -> None:
    """With threads it would not be safe to fork."""
    load_graph_in_child(resnet50, batch=1)
    assert PARENT._process is not None
    pid = PARENT._process.pid
    before = set(os.listdir(f"/proc/{pid}/fd"))
    for batch in (2, 3, 4):
        load_graph_in_child(resnet50, batch=batch)
    assert len(os.listdir(f"/proc/{pid}/task")) == 1
    deadline = time.monotonic() + 20  # it closes what an answer came through a moment after the answer
    while not set(os.listdir(f"/proc/{pid}/fd")) <= before or children():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_who_waits_no_longer_has_the_child_killed(resnet50: Artifact, long_chain: Artifact) -> None:
    load_graph_in_child(resnet50, batch=1)
    with pytest.raises(ParseLimitExceeded, match="wall clock"):
        load_graph_in_child(long_chain, batch=1, limits=dataclasses.replace(Limits(), wall_seconds=0.2))
    deadline = time.monotonic() + 20  # it may be importing just then
    while children():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_files_are_parsed_side_by_side(resnet50: Artifact) -> None:
    with ThreadPoolExecutor(4) as threads:
        graphs = list(threads.map(lambda batch: load_graph_in_child(resnet50, batch=batch), range(1, 9)))
    assert [graph.batch for graph in graphs] == list(range(1, 9))


def test_a_preloaded_process_that_died_is_started_again(resnet50: Artifact) -> None:
    load_graph_in_child(resnet50, batch=1)
    assert PARENT._process is not None
    died = PARENT._process.pid
    PARENT._process.kill()
    PARENT._process.wait()
    assert load_graph_in_child(resnet50, batch=3) == load_graph(resnet50, batch=3)
    assert PARENT._process.pid != died


def test_the_child_gives_the_same_graph(resnet50: Artifact) -> None:
    assert load_graph_in_child(resnet50, batch=3) == load_graph(resnet50, batch=3)


def test_no_child_is_asked_for_another_batch_of_the_same_content(
    resnet50: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = KeptGraphs(Kept(tmp_path, 10_000_000))
    graphs.load(resnet50, content="c", batch=16)
    graphs.settle()
    monkeypatch.setattr(PARENT, "ask", None)
    assert graphs.load(resnet50, content="c", batch=32) == load_graph(resnet50, batch=32)


def test_errors_cross_as_they_are(tmp_path: Path, resnet50: Artifact) -> None:
    with pytest.raises(InputShapeError, match="batch must be at least 1"):
        load_graph_in_child(resnet50, batch=0)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((MODELS / "resnet50.onnx").read_bytes()[:9000])
    with pytest.raises(ModelFormatError, match="truncated"):
        load_graph_in_child(dataclasses.replace(resnet50, path=broken, uri="http://models/broken.onnx"), batch=1)


@pytest.mark.parametrize(
    ("limit", "value", "says"),
    [
        ("address_space_bytes", 1 << 30, "1024 MiB of memory"),
        ("cpu_seconds", 1, "more than 1 s of CPU time"),
        ("wall_seconds", 0.3, r"longer than 0.3 s \(wall clock\)"),
        ("result_bytes", 1 << 20, "graph of more than 1 MiB"),
    ],
)
def test_each_limit_says_which_it_was(long_chain: Artifact, limit: str, value: float, says: str) -> None:
    with pytest.raises(ParseLimitExceeded, match=says):
        load_graph_in_child(long_chain, batch=1, limits=dataclasses.replace(Limits(), **{limit: value}))


@pytest.mark.parametrize(
    ("limit", "value", "attempt", "says"),
    [
        ("file_size_bytes", 1 << 20, "open(folder + '/f', 'wb').write(b'x' * (2 << 20))", "a file of more than 1 MiB"),
        ("open_files", 16, "[open('/dev/null') for _ in range(32)]", "more than 16 open files"),
        ("processes", 0, "threading.Thread(target=print).start()", "more than 0 processes or threads"),
        ("address_space_bytes", 1 << 30, "bytearray(2 << 30)", "more than 1024 MiB of memory"),
        ("processes", 64, "os.system('true')", r"tries to reach out \(reading a model may not do os.system\)"),
        ("processes", 64, "socket.socket()", r"tries to reach out \(reading a model may not do socket.__new__\)"),
    ],
)
def test_what_runs_into_a_limit_is_told_which(limit: str, value: int, attempt: str, says: str, tmp_path: Path) -> None:
    """The limits as the child sets them, in a process of its own: they cannot be raised again."""
    code = (
        "import os, socket, subprocess, sys, threading\n"
        "from dippm.frontend.isolation import cut_off\n"
        "from dippm.frontend.limits import Limits, limit_self, which_limit\n"
        "folder, limits = sys.argv[1], Limits(**{sys.argv[2]: int(sys.argv[3])})\n"
        "if os.getuid() == 0: os.setresuid(65534, 65534, 65534)\n"  # the kernel holds root to no number of processes
        "limit_self(limits)\n"
        "cut_off()\n"
        "try:\n"
        f"    {attempt}\n"
        "except Exception as error:\n"
        "    print(which_limit(error, 'm', limits))\n"
    )
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), limit, str(value)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert re.search(says, done.stdout), done.stdout + done.stderr


def test_a_crash_is_one_sentence(resnet50: Artifact) -> None:
    for status in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGKILL, 3):
        with pytest.raises(ParseLimitExceeded) as refused:
            _understood(b'{"graph": {"unfinished', status, resnet50, Limits())
        assert "\n" not in str(refused.value)
    with pytest.raises(ParseLimitExceeded, match="wrote a file of more than 1 MiB"):
        _understood(b"", -signal.SIGXFSZ, resnet50, Limits())


_TRIES_TO_CONNECT = """
import ctypes, os, platform, struct, sys
from dippm.frontend import isolation

class NoNamespace(ctypes.CDLL):
    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        self.unshare = lambda flags: -1

if "namespace" not in sys.argv[2:]:
    isolation.ctypes.CDLL = NoNamespace
if "filter" not in sys.argv[2:]:
    isolation._MACHINES.clear()
print(*isolation.leave_network())
libc = ctypes.CDLL(None, use_errno=True)
def connects(family, address):
    one = libc.socket(family, 1, 0)
    return one >= 0 and libc.connect(one, address, len(address)) == 0
port = struct.pack("!H", int(sys.argv[1]))
print(connects(2, struct.pack("=H", 2) + port + bytes([127, 0, 0, 1]) + bytes(8)))
print(libc.socket(10, 1, 0) >= 0, libc.socket(1, 1, 0) >= 0)
"""
"""Native code's way, which meets no audit hook. The first line says which walls stand."""


def _runs(code: str, *arguments: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.splitlines()


def _listens() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_without_a_wall_native_code_would_connect() -> None:
    """What the next test holds against: the server is there."""
    with _listens() as server:
        assert _runs(_TRIES_TO_CONNECT, str(server.getsockname()[1]))[:2] == ["", "True"]


@pytest.mark.parametrize("walls", [("namespace",), ("filter",), ("namespace", "filter")])
def test_native_code_reaches_no_server_by_either_wall(walls: tuple[str, ...]) -> None:
    if missing := set(walls) - set(walls_here()):
        pytest.skip(f"this kernel, or the container's profile, has no {' or '.join(sorted(missing))} for its users")
    with _listens() as server:
        stands, connected, made = _runs(_TRIES_TO_CONNECT, str(server.getsockname()[1]), *walls)
    assert (stands, connected) == (" ".join(walls), "False")
    if "filter" in walls:
        assert made == "False False"  # no socket of any family, a daemon's on this machine included


def test_a_filter_refuses_other_programs_to_native_code_in_every_thread() -> None:
    if FILTER not in walls_here():
        pytest.skip("this kernel takes no seccomp filter from its users")
    code = (
        "import ctypes, threading\n"
        "from dippm.frontend.isolation import deny_programs\n"
        "libc, go = ctypes.CDLL(None, use_errno=True), threading.Event()\n"
        "def attempt():\n"
        "    go.wait()\n"
        "    print(libc.execl(b'/bin/true', b'true', None), ctypes.get_errno())\n"
        "older = threading.Thread(target=attempt)\n"
        "older.start()\n"
        "deny_programs()\n"
        "go.set()\n"
        "older.join()\n"
    )
    assert _runs(code) == ["-1 13"]


def test_python_code_may_not_reach_out() -> None:
    """The audit hook, in a process of its own: a hook cannot be taken back."""
    code = (
        "import os, socket, subprocess\n"
        "from dippm.frontend.isolation import cut_off\n"
        "cut_off()\n"
        "tries = [lambda: os.system('true'), lambda: subprocess.run(['true']), lambda: os.fork(),\n"
        "         lambda: socket.socket().connect(('127.0.0.1', 9))]\n"
        "for n, attempt in enumerate(tries):\n"
        "    try:\n"
        "        attempt()\n"
        "    except PermissionError as error:\n"
        "        print(n, 'denied')\n"
    )
    assert _runs(code) == ["0 denied", "1 denied", "2 denied", "3 denied"]


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


def test_a_preloaded_process_that_hangs_is_killed_at_the_end() -> None:
    hanging = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    parent = WarmParent()
    parent._process, parent._owner = hanging, os.getpid()
    started = time.monotonic()
    parent.close()
    assert hanging.returncode == -signal.SIGKILL
    assert time.monotonic() - started < pool._LAST_SECONDS / 2  # it is not asked first
