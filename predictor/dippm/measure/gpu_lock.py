"""Who may use the GPU when: memory is measured side by side, time alone.

Two lock files. Whoever measures memory passes the gate and then shares the GPU; whoever takes times holds the gate in
common with others who do, so that nobody new comes in, waits until the GPU is free, and has it alone. Several who wait
to take times are served one after the other before memory goes on. The system drops a lock when its process dies.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class GpuLock:
    """The GPU's lock, by the path of its file (`.gate` is put behind it for the other)."""

    path: Path

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Beside others who measure memory; waits while somebody takes times or waits to."""
        with self.path.open("w") as gpu:
            with self._gate(fcntl.LOCK_EX):
                fcntl.flock(gpu, fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """With nobody else on the GPU."""
        with self._gate(fcntl.LOCK_SH), self.path.open("w") as gpu:
            fcntl.flock(gpu, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _gate(self, kind: int) -> Iterator[None]:
        with self.path.with_name(self.path.name + ".gate").open("w") as gate:
            fcntl.flock(gate, kind)
            yield
