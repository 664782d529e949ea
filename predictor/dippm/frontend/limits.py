"""What a child process that reads a file of somebody else may use, and how it ended when it used more.

Only the standard library is imported: the same limits hold in interpreters that have neither PyTorch nor TVM.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Limits:
    """What the child may use."""

    wall_seconds: float = 120.0
    """From start to result; importing PyTorch and TVM takes about 4 s of it."""
    cpu_seconds: int = 90
    address_space_bytes: int = 6 << 30
    """Virtual memory, libraries included: PyTorch and TVM alone map about 3 GiB."""
    file_size_bytes: int = 1 << 20
    """Largest file that it may write."""
    open_files: int = 256
    processes: int = 64
    """Tasks (threads count) beyond those that the user already runs; the kernel does not hold root to it."""
    result_bytes: int = 256 << 20
    """Longest answer that is read."""


def limit_self(limits: Limits) -> None:
    """Hold this process to its limits from now on; they cannot be raised again."""
    for which, value in (
        (resource.RLIMIT_AS, limits.address_space_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_size_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, _tasks_of_user() + limits.processes),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(which)[1]
        bounded = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (bounded, bounded))


def _tasks_of_user() -> int:
    """Threads that this user runs now (RLIMIT_NPROC counts them all).

    By `status`, for whose folder is root's where a process has closed its memory (`dippm.processes`).
    """
    user, count = str(os.getuid()), 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            told = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if told["Uid"].split()[0] == user:
                count += int(told["Threads"])
        except (OSError, KeyError):
            continue  # it ended meanwhile
    return count


def which_limit(error: BaseException, shown: str, limits: Limits) -> str:
    """One sentence for an error that a limit caused, which says which; empty where none did."""
    code = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError) or code == errno.ENOMEM:
        return f"reading {shown} needs more than {limits.address_space_bytes >> 20} MiB of memory"
    if code == errno.EFBIG:
        return f"reading {shown} writes a file of more than {limits.file_size_bytes >> 20} MiB"
    if code == errno.EMFILE:
        return f"reading {shown} needs more than {limits.open_files} open files"
    if code == errno.EAGAIN or "can't start new thread" in str(error):
        return f"reading {shown} needs more than {limits.processes} processes or threads"
    if isinstance(error, PermissionError) and "may not do" in str(error):
        return f"reading {shown} tries to reach out ({error}), which it may not"
    return ""


def how_it_ended(status: int | None, shown: str, limits: Limits) -> str:
    """One sentence for a child that gave no answer; `status` is its exit status as `Popen.returncode`."""
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return (
            f"reading {shown} was stopped: it used more than {limits.cpu_seconds} s of CPU time, or the machine ran "
            "out of memory"
        )
    if status == -signal.SIGABRT:
        return (
            f"reading {shown} was aborted: it ran into {limits.address_space_bytes >> 20} MiB of memory, or a library "
            "gave up on it"
        )
    if status == -signal.SIGXFSZ:
        return f"reading {shown} was stopped: it wrote a file of more than {limits.file_size_bytes >> 20} MiB"
    name = signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"
    return f"reading {shown} crashed the parser ({name}): the file is damaged or hostile"
