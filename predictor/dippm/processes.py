"""What a process asks of the kernel about itself and its relatives. Only the standard library is imported."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def die_with_parent() -> None:
    """The kernel kills this process once its parent is gone, however that ended (Linux; prctl(2))."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def close_memory() -> None:
    """Other processes of this user may no longer reach into this one (`/proc/PID/mem`, ptrace; Linux, prctl(2)).

    Forks inherit it; a program that is started (execve) begins open again. The price: no core dumps, only who has
    CAP_SYS_PTRACE can attach a debugger, and this process's own `/proc/self/mem`, `environ` and `uid_map` are root's.
    """
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)
