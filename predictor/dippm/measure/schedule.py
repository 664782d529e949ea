"""Spreads cases over worker processes, and writes one compressed line per row as it arrives.

The parent loads the libraries once and never touches CUDA, so that a forked worker starts in a moment. A worker that
dies or hangs costs the row it was on. On a crowded GPU labels change silently: a case is only started while the
planned footprints of all running ones stay inside the budget, and a row that saw the allocator retry or run out is
measured again alone at the end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TextIO

from dippm.case import Allocator
from dippm.zoo.case import ZooCase

LOOK_AHEAD = 40
"""A case this far ahead may go first if a process with its allocator is idle; starting one costs two seconds."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a list of cases is spread."""

    workers: int
    """Processes side by side."""
    cases_per_process: int
    """Cases after which a process is replaced: 1 gives each its own CUDA context."""
    budget_mib: float
    """Sum of planned footprints that may be on the GPU at once."""
    seconds: float
    """No case is started after this time."""
    case_seconds: float = 45.0
    """A case that takes longer is stopped and its row says so."""


@dataclass(slots=True)
class _Slot:
    process: ForkProcess
    pipe: Connection
    allocator: Allocator
    case: ZooCase | None = None
    since: float = 0.0
    done: int = 0


def remaining(cases: Iterable[ZooCase], rows: Iterable[dict[str, Any]]) -> list[ZooCase]:
    """The cases whose row is still missing (anchors are always measured again): how a run resumes."""
    done = {(row["case"], row.get("purpose", "labels")) for row in rows if "case" in row and not row.get("anchor")}
    return [case for case in cases if case.anchor or (case.id, case.purpose) not in done]


def tag(case: ZooCase, row: dict[str, Any]) -> dict[str, Any]:
    """The row with what says which list entry it belongs to."""
    return {**row, "purpose": case.purpose, "anchor": case.anchor, "timed": case.timed}


def needs_repeat(row: dict[str, Any]) -> bool:
    """Whether the row may owe its content to other processes on the GPU."""
    return row["status"] == "oom" or "AllocatorRetried" in row["reason"] or "out of memory" in row["reason"].lower()


@dataclass(slots=True)
class Schedule:
    """Runs a list of cases under a plan; `serve` is what a worker process does with each case."""

    plan: Plan
    serve: Callable[[Connection, Allocator], None]
    write: Callable[[dict[str, Any]], None]
    progress: TextIO = sys.stderr
    slots: list[_Slot] = field(default_factory=list)
    written: int = 0
    failed: int = 0

    def run(self, cases: Iterable[ZooCase]) -> int:
        """Measures until the list or the time is used up; gives the number of rows written."""
        started = time.monotonic()
        queue, again = deque(cases), deque[ZooCase]()
        total, shown = len(queue), 0.0
        while True:
            elapsed = time.monotonic() - started
            closing = elapsed > self.plan.seconds
            if not closing:
                if queue or not again:
                    self._fill(queue, limit=self.plan.workers)
                else:
                    self._fill(again, limit=1)
            if not any(s.case for s in self.slots) and (closing or not (queue or again)):
                break
            for slot in self._ready():
                self._collect(slot, None if closing else again)
            self._stop_hanging()
            if elapsed - shown > 5:
                shown = elapsed
                self._show(elapsed, total)
        self._show(time.monotonic() - started, total)
        for slot in self.slots:
            self._close(slot)
        self.slots.clear()
        return self.written

    def _show(self, elapsed: float, total: int) -> None:
        rate = self.written / max(elapsed, 1e-9)
        left = (total - self.written) / rate if rate else float("nan")
        print(
            f"{self.written}/{total} rows, {self.failed} without labels, {rate:.2f}/s, "
            f"{min(left, self.plan.seconds - elapsed):.0f} s left",
            file=self.progress,
            flush=True,
        )

    def _ready(self) -> list[_Slot]:
        busy = {s.pipe: s for s in self.slots if s.case}
        return [busy[pipe] for pipe in wait(list(busy), timeout=1.0)] if busy else []  # type: ignore[index]

    def _fill(self, queue: deque[ZooCase], limit: int) -> None:
        while queue and sum(s.case is not None for s in self.slots) < limit:
            in_use = sum(s.case.planned_mib * 1.3 + 900 for s in self.slots if s.case)
            room = self.plan.budget_mib - in_use
            fitting = [i for i, c in enumerate(queue) if c.planned_mib * 1.3 + 900 <= room or not in_use][:LOOK_AHEAD]
            if not fitting:
                return
            idle = {s.allocator for s in self.slots if s.case is None}
            position = next((i for i in fitting if queue[i].allocator in idle), fitting[0])
            case = queue[position]
            del queue[position]
            slot = self._free_slot(case.allocator)
            slot.case, slot.since = case, time.monotonic()
            slot.pipe.send(case.to_json())

    def _free_slot(self, allocator: Allocator) -> _Slot:
        for slot in self.slots:
            if slot.case is None and slot.allocator is allocator:
                return slot
        idle = next((s for s in self.slots if s.case is None), None)
        if idle is not None and len(self.slots) >= self.plan.workers:
            self._close(idle)
            self.slots.remove(idle)
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=self.serve, args=(theirs, allocator), daemon=False)
        process.start()
        theirs.close()
        self.slots.append(_Slot(process, ours, allocator))
        return self.slots[-1]

    def _collect(self, slot: _Slot, again: deque[ZooCase] | None) -> None:
        case = slot.case
        assert case is not None
        try:
            row: dict[str, Any] = json.loads(slot.pipe.recv_bytes())
        except EOFError:
            slot.process.join(5)
            row = {
                "case": case.id,
                "status": "failed",
                "reason": f"the process died (exit code {slot.process.exitcode})",
            }
            self.slots.remove(slot)
        slot.case, slot.done = None, slot.done + 1
        crowded = any(s.case for s in self.slots)
        if crowded and again is not None and needs_repeat(row):
            again.append(case)
        else:
            self.write(tag(case, row))
            self.written += 1
            self.failed += row["status"] != "ok"
        if slot in self.slots and (slot.done >= self.plan.cases_per_process or row["status"] != "ok"):
            self._close(slot)
            self.slots.remove(slot)

    def _stop_hanging(self) -> None:
        for slot in self.slots:
            if slot.case and time.monotonic() - slot.since > self.plan.case_seconds:
                slot.process.kill()

    def _close(self, slot: _Slot) -> None:
        with contextlib.suppress(BrokenPipeError):
            slot.pipe.send("")
        slot.pipe.close()
        slot.process.join(0.01)


def pin(index: int, cores_each: int = 3) -> None:
    """Binds this process to cores of its own, so that a build beside it does not disturb a timing."""
    cores = sorted(os.sched_getaffinity(0))
    wanted = {cores[(1 + index * cores_each + i) % len(cores)] for i in range(cores_each)}
    os.sched_setaffinity(0, wanted)
