"""Parse a model file in a separate, limited process: what a hostile file can do ends there.

The child, forked from a process that has PyTorch and TVM loaded (`dippm.frontend.pool`), sets its own resource limits,
cuts itself off from the network and from starting programs, reads the file and writes the graph as JSON
(`ModelGraph.to_dict`) on a socket; errors cross as their class and sentence. The asker holds the wall clock. A crash
there is one `ParseLimitExceeded` here.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dippm import errors
from dippm.artifact import Artifact
from dippm.errors import DippmError, ModelFormatError, ParseLimitExceeded
from dippm.frontend.inputs import InputSpec
from dippm.frontend.pool import PARENT
from dippm.graph import ModelGraph


@dataclass(frozen=True, slots=True)
class Limits:
    """What the parsing child may use."""

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


_DENIED_EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn", "pty.")
"""Audit events (https://docs.python.org/3/library/audit_events.html) that reading a model has no use for."""
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000


def load_graph_in_child(
    artifact: Artifact, *, batch: int, inputs: tuple[InputSpec, ...] | None = None, limits: Limits | None = None
) -> ModelGraph:
    """`dippm.frontend.load_graph` in a separate process with limits; blocks until it is done.

    Raises the errors of `load_graph`, or ParseLimitExceeded, which says which limit was reached.
    """
    limits = limits or Limits()
    request = {
        "artifact": {**asdict(artifact), "path": str(artifact.path)},
        "batch": batch,
        "inputs": None if inputs is None else [asdict(i) for i in inputs],
        "limits": asdict(limits),
    }
    answer, status = PARENT.ask(
        json.dumps(request).encode(), wall_seconds=limits.wall_seconds, result_bytes=limits.result_bytes
    )
    return _understood(answer, status, artifact, limits)


def _understood(answer: bytes, status: int | None, artifact: Artifact, limits: Limits) -> ModelGraph:
    shown = artifact.uri or str(artifact.path)
    try:
        body = json.loads(answer) if answer else None
    except ValueError:
        body = None  # it died while it wrote
    if status == 0 and isinstance(body, dict) and "graph" in body:
        return ModelGraph.from_dict(body["graph"])
    if isinstance(body, dict) and "error" in body:
        kind = getattr(errors, body["error"], ModelFormatError)
        raise kind(body["message"])
    if status == -signal.SIGXCPU or status == -signal.SIGKILL:
        raise ParseLimitExceeded(
            f"reading {shown} was stopped: it used more than {limits.cpu_seconds} s of CPU time, or the machine ran "
            "out of memory"
        )
    if status == -signal.SIGABRT:
        raise ParseLimitExceeded(
            f"reading {shown} was aborted: it ran into {limits.address_space_bytes >> 20} MiB of memory, or a library "
            "gave up on it"
        )
    name = signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"
    raise ParseLimitExceeded(f"reading {shown} crashed the parser ({name}): the file is damaged or hostile")


def _limit_self(limits: Limits) -> None:
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
    """Threads that this user runs now (RLIMIT_NPROC counts them all)."""
    user, count = os.getuid(), 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if entry.stat().st_uid == user:
                count += len(list((entry / "task").iterdir()))
        except OSError:
            continue  # it ended meanwhile
    return count


def _cut_off() -> None:
    """No network (a network namespace of its own, where the kernel lets a user have one) and no other programs.

    The audit hook stops what Python code would do; the namespace and the limits also hold for native code.
    """
    ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWUSER | _CLONE_NEWNET)

    def deny(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_DENIED_EVENTS):
            raise PermissionError(f"reading a model may not do {event}")

    sys.addaudithook(deny)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    import torch

    from dippm.frontend import load_graph

    torch.set_num_threads(1)
    described = request["artifact"]
    artifact = Artifact(**{**described, "path": Path(described["path"])})
    inputs = request["inputs"]
    specs = None if inputs is None else tuple(InputSpec(i["name"], tuple(i["shape"]), i["dtype"]) for i in inputs)
    shown = artifact.uri or str(artifact.path)
    limit = request["limits"]["address_space_bytes"] >> 20
    full = {"error": "ParseLimitExceeded", "message": f"reading {shown} needs more than {limit} MiB of memory"}
    try:
        return {"graph": load_graph(artifact, batch=request["batch"], inputs=specs).to_dict()}
    except DippmError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOMEM:
            return full
        return {"error": type(error).__name__, "message": str(error)}
    except MemoryError:
        return full


def main() -> None:
    """The child: one request on standard input, one answer on standard output."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no part of the answer
    request = json.loads(sys.stdin.buffer.read())
    _limit_self(Limits(**request["limits"]))
    _cut_off()
    answer = json.dumps(_answer(request), separators=(",", ":")).encode()
    with os.fdopen(answer_to, "wb") as pipe:
        pipe.write(answer)
        pipe.flush()
    os._exit(0)  # interpreter shutdown with PyTorch and TVM loaded takes 0.3 s and may crash; all is said
