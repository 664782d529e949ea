"""Measures one case from beginning to end: the row that goes into the data set."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import time
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dippm.case import Runtime
from dippm.measure import caps, onnxruntime_case
from dippm.measure.gpu_lock import GpuLock
from dippm.measure.memory import AllocatorRetried, NotFinite, load, measure_memory, release
from dippm.measure.nvml import Gpu
from dippm.measure.operators import Record, record_kernels, record_memory
from dippm.measure.timing import ENERGY_SECONDS, measure_times
from dippm.zoo.build import construct, duplicate
from dippm.zoo.case import Network, ZooCase

ANCHOR_SECONDS = 0.6


@dataclass(slots=True)
class Bench:
    """What a worker process has open: the GPU, and the lock that keeps others off it while times are taken."""

    gpu: Gpu
    lock: Path | None
    measured: int = 0
    """Cases measured in this process before: its context holds their kernels too."""
    prober: caps.Prober = field(default_factory=caps.Prober)
    """Runs trials of the smallest cap; a process that does must not touch CUDA itself."""
    constructed: tuple[str, torch.nn.Module] | None = None
    """The last network (its key, and the module as constructed): the next case is often of the same one."""

    def module(self, network: Network) -> torch.nn.Module:
        """The network as `construct` gives it, to be used once."""
        if self.constructed is None or self.constructed[0] != network.key:
            self.constructed = (network.key, construct(network))
        return duplicate(self.constructed[1])


@contextlib.contextmanager
def alone(lock: Path | None) -> Iterator[None]:
    """Holds the file lock; the system drops it if the process dies."""
    if lock is None:
        yield
        return
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def takes_energy(case: ZooCase) -> bool:
    """Every other case: a second on the energy counter costs as much as all other labels together."""
    return zlib.crc32(case.id.encode()) % 2 == 0


def operator_table(record: Record) -> dict[str, Any]:
    """The rows with equal calls written once: `calls`, and `sequence` of indices into it."""
    index: dict[Any, int] = {}
    sequence = [index.setdefault(call, len(index)) for call in record.calls]
    return {
        "calls": [list(asdict(call).values()) for call in index],
        "sequence": sequence,
        "freed_bytes": record.freed_bytes,
        "kernel_us": [round(t, 3) for t in record.kernel_us],
        "kernels": record.kernels,
    }


def measure_case(case: ZooCase, bench: Bench) -> dict[str, Any]:
    """The case's row: `status` is `ok`, `oom` (a label: it does not fit the whole GPU) or `failed` with its reason."""
    begun = time.perf_counter()
    row: dict[str, Any] = {
        "case": case.id,
        "status": "ok",
        "reason": "",
        "cases_before": bench.measured,
        "pid": os.getpid(),
    }
    try:
        if case.runtime is Runtime.ONNXRUNTIME:
            row |= onnxruntime_case.measure(case, GpuLock(bench.lock) if bench.lock else None)
        elif case.purpose == "min_cap":
            row |= caps.smallest_cap(case, bench.prober)
        else:
            module = bench.module(case.network)
            with alone(bench.lock if case.timed else None):
                row["build_seconds"] = round(time.perf_counter() - begun, 3)
                row |= _labels(case, module, bench)
    except torch.OutOfMemoryError as error:
        row |= {"status": "oom", "reason": str(error).splitlines()[0][:300]}
    except (NotFinite, AllocatorRetried) as error:
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    except Exception as error:  # a model that breaks costs its row and says why, never the run
        row |= {"status": "failed", "reason": f"{type(error).__name__}: {error}"[:400]}
    row["seconds"] = round(time.perf_counter() - begun, 3)
    bench.measured += 1
    return row


def _labels(case: ZooCase, module: torch.nn.Module, bench: Bench) -> dict[str, Any]:
    row: dict[str, Any] = {}
    loaded, marks = None, [time.perf_counter()]
    try:
        loaded = load(case, module)
        marks.append(time.perf_counter())
        if case.anchor:
            for _ in range(3):
                loaded.forward()
            times = measure_times(loaded.forward, bench.gpu, 0.0, 0, seconds=ANCHOR_SECONDS)
            return asdict(times)
        row |= asdict(measure_memory(loaded, bench.gpu))
        marks.append(time.perf_counter())
        record = record_memory(loaded.forward)
        marks.append(time.perf_counter())
        row["recorded_peak_mib"] = record.peak_bytes / 2**20
        if case.timed:
            record.kernel_us, record.kernels = record_kernels(loaded.forward, len(record.calls))
            marks.append(time.perf_counter())
            total, number = sum(record.kernel_us), sum(record.kernels)
            row |= {"kernel_ms": total / 1e3, "kernels": number}
            seconds = ENERGY_SECONDS if takes_energy(case) else 0.0
            row |= asdict(measure_times(loaded.forward, bench.gpu, total, number, seconds=seconds))
            marks.append(time.perf_counter())
        row["operators"] = operator_table(record)
        row["stage_seconds"] = [round(b - a, 3) for a, b in itertools.pairwise(marks)]
    finally:
        if loaded is not None:
            loaded.close()
        del module, loaded
        release()
    return row
