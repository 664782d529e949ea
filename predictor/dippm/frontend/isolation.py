"""What keeps a process that reads a file of somebody else from reaching out: walls that stand each on its own.

1. `namespace`: a network namespace of its own, which has no way out. Container runtimes refuse it as a rule (their
   seccomp profile has no `unshare`), and so do kernels without user namespaces.
2. `filter`: a seccomp filter of its own, with which the kernel refuses new sockets (of every family, and by io_uring),
   and the calls that take sockets or memory from another process. No privilege is needed; x86-64 and arm64.
3. `programs`: another such filter, once the libraries are loaded, with which it refuses other programs.
4. `domain`: a Landlock domain of its own, from which no process outside can be reached: its memory (the file
   `/proc/PID/mem`, which no filter of calls can tell from another file) or a signal. Linux 5.13, the signal 6.12.
5. An audit hook, always: it stops what Python code would do, and native code never meets it.

Where there is no domain, `/proc/PID/mem` of a process of the same user is open unless that process has closed it
(`dippm.processes.close_memory`).

Only the standard library is imported. https://docs.kernel.org/userspace-api/seccomp_filter.html,
https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NAMESPACE, FILTER, PROGRAMS, DOMAIN = "namespace", "filter", "programs", "domain"
_DENIED_EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "pty.")
"""Audit events (https://docs.python.org/3/library/audit_events.html) that reading a model has no use for."""
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF, _LANDLOCK_VERSION = 444, 446, 1
_DOMAIN_REFUSES = (1 << 6 | 1 << 11, 1 << 0 | 1 << 1, 1 << 0 | 1 << 1)
"""`struct landlock_ruleset_attr`: device nodes (a domain must refuse something, and nobody here makes one); TCP, bound
or connected; abstract Unix sockets and signals to outside."""
_DOMAIN_FIELDS_BY_VERSION = ((6, 3), (4, 2), (1, 1))


@dataclass(frozen=True, slots=True)
class _Machine:
    """Numbers of system calls (the kernel's `asm/unistd.h`) and of the machine itself (`linux/audit.h`)."""

    audit: int
    seccomp: int
    socket: int
    execve: int
    execveat: int
    ptrace: int
    process_vm_readv: int
    process_vm_writev: int
    io_uring_setup: int = 425
    pidfd_getfd: int = 438

    @property
    def reaching_out(self) -> tuple[int, ...]:
        """New sockets, and what belongs to another process of the same user: its sockets, its memory."""
        others = (self.ptrace, self.process_vm_readv, self.process_vm_writev, self.pidfd_getfd)
        return (self.socket, self.io_uring_setup, *others)


_MACHINES = {
    "x86_64": _Machine(
        audit=0xC000003E,
        seccomp=317,
        socket=41,
        execve=59,
        execveat=322,
        ptrace=101,
        process_vm_readv=310,
        process_vm_writev=311,
    ),
    "aarch64": _Machine(
        audit=0xC00000B7,
        seccomp=277,
        socket=198,
        execve=221,
        execveat=281,
        ptrace=117,
        process_vm_readv=270,
        process_vm_writev=271,
    ),
}
_X32_BIT = 0x40000000
"""Of the numbers by which x86-64 has the same calls once more."""


class _Step(ctypes.Structure):
    """`struct sock_filter`."""

    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_uint16), ("steps", ctypes.POINTER(_Step)))


_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _MACHINE_AT = 0, 4
"""Offsets in `struct seccomp_data`."""
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EACCES


def leave_network() -> tuple[str, ...]:
    """Put up the walls that the kernel allows; their names. Only while there is a single thread."""
    made: bool = ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0
    machine = _MACHINES.get(platform.machine())
    filtered = machine is not None and _filter(machine, machine.reaching_out)
    return (NAMESPACE,) * made + (FILTER,) * filtered


def leave_processes() -> tuple[str, ...]:
    """Put up what the kernel has against reaching other processes. Only while there is a single thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    fields = next((count for since, count in _DOMAIN_FIELDS_BY_VERSION if version >= since), 0)
    if fields == 0 or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return ()
    refused = (ctypes.c_uint64 * fields)(*_DOMAIN_REFUSES[:fields])
    rules = libc.syscall(_LANDLOCK_CREATE_RULESET, refused, ctypes.c_size_t(ctypes.sizeof(refused)), 0)
    if rules < 0:
        return ()
    made: bool = libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return (DOMAIN,) * made


def deny_programs() -> tuple[str, ...]:
    """No sockets and no other programs, from now on; the wall that stands for it beside the audit hook."""
    machine = _MACHINES.get(platform.machine())
    filtered = machine is not None and _filter(machine, (machine.execve, machine.execveat))

    def deny(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_DENIED_EVENTS):
            raise PermissionError(f"reading a model may not do {event}")

    sys.addaudithook(deny)
    return (PROGRAMS,) * filtered


def cut_off() -> tuple[str, ...]:
    """`leave_network`, `leave_processes`, `deny_programs`: the walls that stand beside the audit hook."""
    return (*leave_network(), *leave_processes(), *deny_programs())


def walls_here() -> tuple[str, ...]:
    """The walls that a process which reads files has on this machine, beside the audit hook; tried in one."""
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import isolation; "
    code += "print(*isolation.cut_off())"
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False, timeout=20
        )
    except subprocess.TimeoutExpired:
        return ()
    return tuple(tried.stdout.split())


def spoken(walls: Sequence[str]) -> str:
    """What `walls_here` found, for a user: three sentences, of the network, of programs, of processes."""
    held = {NAMESPACE: "a network namespace of its own", FILTER: "a seccomp filter of its own"}
    network = " and ".join(said for wall, said in held.items() if wall in walls)
    return " ".join(
        (
            f"Processes that read model files have no network: {network}."
            if network
            else "Processes that read model files are kept off the network by an audit hook of Python alone: this "
            "kernel, or the container's seccomp profile, takes neither a network namespace nor a filter. Native code "
            "could connect.",
            "They start no other program: a second filter."
            if PROGRAMS in walls
            else "Other programs are refused to them by the audit hook alone: native code could start one.",
            "They reach no other process: a Landlock domain of its own."
            if DOMAIN in walls
            else "This kernel takes no Landlock domain: processes of the same user that have not closed their memory "
            "are open to them.",
        )
    )


def lacking(walls: Sequence[str]) -> bool:
    """Whether native code could connect, or start a program."""
    return not {NAMESPACE, FILTER} & set(walls) or PROGRAMS not in walls


def _filter(machine: _Machine, refused: Sequence[int]) -> bool:
    """Whether the kernel took a filter that refuses these calls (EACCES) to every thread of this process for good.

    1. Another machine's calls (32-bit ones, x32) are refused one and all.
    2. Each refused number is; 3. everything else passes.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    first = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _REFUSE),
    ]
    each = [step for number in refused for step in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE))]
    steps = [*first, *each, (_RETURN, 0, 0, _ALLOW)]
    program = _Program(len(steps), (_Step * len(steps))(*(_Step(*step) for step in steps)))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    taken: int = libc.syscall(
        machine.seccomp, _SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC, ctypes.byref(program)
    )
    return taken == 0
