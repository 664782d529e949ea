"""What native code in a reader's process can do to other processes of its user, wall by wall."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dippm.frontend import isolation
from dippm.frontend.isolation import DOMAIN, PROGRAMS, lacking, spoken, walls_here
from dippm_operator.controller.worker import PredictionWorker
from dippm_operator.predict import Question

_PR_GET_DUMPABLE = 3
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")

_TAKEN_OVER = """
import ctypes, os, sys
from dippm.frontend import isolation
from dippm.processes import close_memory

libc = ctypes.CDLL(None, use_errno=True)
if "nobody" in sys.argv and os.getuid() == 0:
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
libc.prctl(4, 1)  # as after the start of a program
if "closed" in sys.argv:
    close_memory()
if os.fork() == 0:
    if "filter" in sys.argv:
        machine = isolation._MACHINES[isolation.platform.machine()]
        print(isolation._filter(machine, machine.reaching_out))
    if "domain" in sys.argv:
        print(*isolation.leave_processes())
    path = f"/proc/{os.getppid()}/mem".encode()
    print(libc.open(path, os.O_RDONLY) >= 0, libc.open(path, os.O_RDWR) >= 0, libc.kill(os.getppid(), 0) == 0)
    sys.stdout.flush()
    os._exit(0)
os.wait()
"""
"""A reader tries to read its parent, to write into it, to signal it. First which wall stands, then what went."""


def _runs(code: str, *arguments: str) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.splitlines()


@pytest.mark.skipif(
    _YAMA.exists() and _YAMA.read_text().strip() != "0", reason="Yama closes every process to its children here"
)
def test_the_filter_alone_leaves_the_memory_of_the_parent_open() -> None:
    """What the next tests hold against."""
    assert _runs(_TAKEN_OVER, "nobody", "filter") == ["True", "True True True"]


def test_a_parent_that_closed_its_memory_is_closed_to_its_readers() -> None:
    assert _runs(_TAKEN_OVER, "nobody", "filter", "closed") == ["True", "False False True"]


@pytest.mark.parametrize("user", ["nobody", "same"])
def test_from_a_domain_no_process_outside_is_reached(user: str) -> None:
    """Root's own, and of programs that have just started: a domain asks nothing of the others."""
    if DOMAIN not in walls_here():
        pytest.skip("this kernel has no Landlock (Linux 5.13, lsm=landlock)")
    stands, reached = _runs(_TAKEN_OVER, user, "domain")
    assert stands == DOMAIN
    version = ctypes.CDLL(None).syscall(isolation._LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    assert reached == f"False False {version < 6}"  # signals since version 6


def _dumpable(_: Question) -> int:
    return int(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE))


def test_the_predicting_process_closes_its_memory() -> None:
    """It starts the readers."""

    async def answer() -> object:
        worker = PredictionWorker(_dumpable)  # type: ignore[arg-type]  # any answer passes
        try:
            return await worker(None)  # type: ignore[arg-type]
        finally:
            worker.close()

    assert asyncio.run(answer()) == 0


def test_the_operator_closes_its_memory_before_all_else() -> None:
    code = (
        "import ctypes, sys\n"
        "from dippm_operator.controller.main import main\n"
        "before = ctypes.CDLL(None).prctl(3)\n"
        "print(before, main(['--kubeconfig', sys.argv[1], '--health-port', '0', '--metrics-port', '0']))\n"
        "print(ctypes.CDLL(None).prctl(3))\n"
    )
    assert _runs(code, "/nowhere/kubeconfig") == ["1 2", "0"]


def test_readers_close_their_memory_to_each_other() -> None:
    """In the fork of the preloaded parent, which has closed its own."""
    code = (
        "import ctypes, os, socket\n"
        "from dippm.frontend import answer, pool\n"
        "from dippm.processes import close_memory\n"
        "close_memory()\n"
        "answer.main = lambda: os.write(1, str(ctypes.CDLL(None).prctl(3)).encode())\n"
        "talk, theirs = socket.socketpair()\n"
        "if os.fork() == 0:\n"
        "    pool._become_child(theirs.fileno())\n"
        "print(talk.recv(10).decode())\n"
    )
    assert _runs(code) == ["0"]


def test_tasks_of_processes_that_closed_their_memory_count() -> None:
    """Their folders in /proc are root's; the kernel counts them all the same (RLIMIT_NPROC)."""
    code = (
        "import os, signal\n"
        "from dippm.frontend.limits import _tasks_of_user\n"
        "from dippm.processes import close_memory, die_with_parent\n"
        "if os.getuid() == 0: os.setresuid(65533, 65533, 65533)\n"
        "before, (told, tell) = _tasks_of_user(), os.pipe()\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        die_with_parent()\n"
        "        close_memory()\n"
        "        os.write(tell, b'.')\n"
        "        signal.pause()\n"
        "[os.read(told, 1) for _ in range(3)]\n"
        "print(_tasks_of_user() - before >= 3)\n"
    )
    assert _runs(code) == ["True"]


def test_what_stands_is_said_of_programs_and_processes_too() -> None:
    every = walls_here()
    assert spoken(every).count(".") == 3
    network = tuple(wall for wall in every if wall not in (PROGRAMS, DOMAIN))
    assert "native code could start one" in spoken(network)
    assert lacking(network)
    assert not lacking((*network, PROGRAMS)) or not network
    assert "open to them" in spoken((PROGRAMS,))
