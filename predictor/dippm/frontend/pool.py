"""A process that has the parsers loaded and forks: one child for each file, without seconds of imports for each.

The preloaded parent gets two sockets for each file and hands them on: the child reads the request and writes its answer
on the first, the parent writes the child's exit status on the second. It reads neither the request nor the file, so a
hostile file meets a child that no other file has touched. Who hangs up on the second socket has the child killed.

It starts with PyTorch and TVM, and takes transformers in too when it first has nothing to do.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from dippm.errors import ParseLimitExceeded
from dippm.processes import close_memory, die_with_parent

_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR", "LANG", "LC_ALL")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TVM_NUM_THREADS")
"""A process with threads is not safe to fork; and one file is one thread's work."""
_STATUS = struct.Struct("i")
_IDLE_MILLISECONDS = 300
_NOT_FOR_PARSING = ("sklearn", "scipy", "pandas", "PIL", "torchvision", "torchaudio", "librosa", "numba", "datasets")
"""What transformers imports beside the architectures wherever it is installed: seconds, threads and 150 MB."""
_LAST_SECONDS = 5.0
"""What the preloaded process has to be gone once it is killed."""


class WarmParent:
    """The preloaded process, seen from the process that asks. Started at the first question, and again when it died."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._owner = 0

    def ask(self, request: bytes, *, wall_seconds: float, result_bytes: int) -> tuple[bytes, int]:
        """What a fresh child answers to the request, and its exit status (as `Popen.returncode`).

        The first answer takes the imports too, about 3 s of CPU time. Raises ParseLimitExceeded when the wall clock
        runs out, or when the answer is longer than `result_bytes` (the child is killed then), or when the process died.
        """
        deadline = time.monotonic() + wall_seconds
        talk, child_talk = socket.socketpair()
        status, parent_status = socket.socketpair()
        with talk, status:
            with child_talk, parent_status:
                self._hand_over(child_talk, parent_status)
            try:
                answer = _converse(talk, request, deadline, result_bytes)
                status.settimeout(max(deadline - time.monotonic(), 0.001))
                said = status.recv(_STATUS.size)
            except TimeoutError:
                raise ParseLimitExceeded(
                    f"reading the model took longer than {wall_seconds:g} s (wall clock) and was stopped"
                ) from None
        if len(said) < _STATUS.size:
            raise ParseLimitExceeded(
                "the process that reads models ended meanwhile, most likely for want of memory; "
                "it starts again with the next one"
            )
        return answer, _STATUS.unpack(said)[0]

    def close(self) -> None:
        """End the process at once, whatever it does (importing takes seconds); its children go with it (PDEATHSIG)."""
        process, control = self._process, self._control
        self._process = self._control = None
        if control is not None:
            control.close()
        if process is not None and self._owner == os.getpid():
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # the kernel is still busy with its memory: init reaps it
                process.wait(_LAST_SECONDS)

    def _hand_over(self, *sockets: socket.socket) -> None:
        with self._lock:
            for last in (False, True):
                if self._control is None or self._owner != os.getpid():
                    self._start()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [b"."], [one.fileno() for one in sockets])
                    return
                except OSError:  # it is gone: the machine was short of memory, most likely
                    self.close()
                    if last:
                        raise

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        environment.update(dict.fromkeys(ONE_THREAD, "1"), HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dippm.frontend.pool", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._control, self._owner = ours, os.getpid()


PARENT = WarmParent()
"""One for this process."""
atexit.register(PARENT.close)


def _converse(talk: socket.socket, request: bytes, deadline: float, result_bytes: int) -> bytes:
    """Send the request, read the answer until the child closes its end. Raises TimeoutError at the deadline."""
    answer = bytearray()
    try:
        talk.settimeout(max(deadline - time.monotonic(), 0.001))
        talk.sendall(request)
        talk.shutdown(socket.SHUT_WR)
        while True:
            talk.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = talk.recv(1 << 20)
            if not piece:
                return bytes(answer)
            answer += piece
            if len(answer) > result_bytes:
                raise ParseLimitExceeded(f"reading the model gave a graph of more than {result_bytes >> 20} MiB")
    except ConnectionError:
        return b""  # it died before it read the request; its exit status says of what


class _Children:
    """The children of the preloaded parent, by process id, with the socket that waits for each one's status."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._waiting: dict[int, socket.socket] = {}

    def serve(self, when_idle: Callable[[], None]) -> None:
        """Fork for each pair of sockets, report what ended, kill whom nobody waits for; until the asker hangs up.

        `when_idle` is called once, at the first moment without work.
        """
        woken, wake = os.pipe()
        for end in (woken, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(woken, select.POLLIN)
        idle: int | None = _IDLE_MILLISECONDS
        while True:
            ready = {descriptor for descriptor, _ in poll.poll(idle)}
            if not ready and not self._waiting and idle is not None:
                when_idle()
                idle = None
            if woken in ready:
                os.read(woken, 4096)
                for ended in self._reap():
                    with suppress(KeyError):  # it was killed, see below
                        poll.unregister(ended)
                    ended.close()
            for pid, status in self._waiting.items():
                if status.fileno() in ready:
                    poll.unregister(status)  # once is enough: it is reaped when it is dead
                    _kill(pid)
            if self._control.fileno() in ready:
                handed = self._fork()
                if handed is None:
                    return
                poll.register(handed, 0)  # no event but the hang-up, which is always told

    def kill_all(self) -> None:
        for pid in self._waiting:
            _kill(pid)

    def _reap(self) -> list[socket.socket]:
        """The sockets of those that ended, their status told."""
        ended = []
        while self._waiting:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            listener = self._waiting.pop(pid)
            with suppress(OSError):  # nobody waits for it any more
                listener.send(_STATUS.pack(os.waitstatus_to_exitcode(status)))
            ended.append(listener)
        return ended

    def _fork(self) -> socket.socket | None:
        """A child for the sockets that come; the one for its status. None when the asker hung up."""
        message, descriptors, _, _ = socket.recv_fds(self._control, 1, 2)
        if not message:
            return None
        talk, status = descriptors
        pid = os.fork()
        if pid == 0:
            _become_child(talk)
        os.close(talk)
        self._waiting[pid] = socket.socket(fileno=status)
        return self._waiting[pid]


def _become_child(talk: int) -> None:
    """In the forked child: keep the one socket as standard input and output, parse, and end."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent()
        os.dup2(talk, 0)
        os.dup2(talk, 1)
        os.closerange(3, max(map(int, os.listdir("/proc/self/fd"))) + 1)

        from dippm.frontend.answer import main

        main()  # sets the limits first, and ends the process
    finally:
        os._exit(1)  # never back into the parent's loop


def _kill(pid: int) -> None:
    """End a child and whatever it started: it leads a session of its own."""
    with suppress(ProcessLookupError):  # it has not come to lead one yet, or is gone
        os.killpg(pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def serve(control: socket.socket) -> None:
    """The preloaded parent: import what parsing needs, then fork until the asker hangs up."""
    import gc
    from importlib import import_module

    import torch

    torch.set_num_threads(1)
    for module in ("onnx.model", "pt2_file", "torchscript", "relax"):
        import_module(f"dippm.frontend.{module}")
    close_memory()  # a child that was taken over must not reach the parent of the next, nor the next: they inherit it
    gc.freeze()  # what is shared stays shared: collections in the children would touch every page
    children = _Children(control)
    try:
        children.serve(_preload_more)
    finally:
        children.kill_all()


def not_for_parsing(*, hidden: bool) -> None:
    """Hide what transformers would import in vain, or let it be imported again: timm does need torchvision and PIL."""
    for name in _NOT_FOR_PARSING:
        if hidden:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # the import system's own mark for "not there"
        elif sys.modules.get(name, sys) is None:
            del sys.modules[name]


def _preload_more() -> None:
    """What a Hugging Face folder needs beyond the other formats: transformers, and what torch.export imports at its
    first call. The first file does not wait for it.
    """
    import gc
    from importlib import import_module

    import torch

    from dippm.frontend.exported_program import graph_of_module

    not_for_parsing(hidden=True)
    with suppress(ImportError, RuntimeError):  # it is an extra; what is wrong with it is said where it is asked for
        for part in ("initialization", "modeling_utils", "models.auto.modeling_auto"):
            import_module(f"transformers.{part}")
    module = torch.nn.Sequential(torch.nn.Embedding(4, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)).to("meta")
    graph_of_module(module.eval(), (torch.empty(2, 4, dtype=torch.int64, device="meta"),), batch=2)
    gc.freeze()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
