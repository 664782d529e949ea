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
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TextIO

from dippm.case import Allocator
from dippm.zoo.case import ZooCase

LOOK_AHEAD = 40
"""A group this far ahead may go first if a process with its allocator is idle; starting one costs two seconds."""

_LAST_SECONDS = 10.0
"""What a worker has to be gone once it is killed; then its row is written without it."""


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
    grouped: bool = True
    """Whether a process keeps to one network until its cases are done, or the list's order counts."""


class Queue:
    """Cases in groups of one network and allocator, so that a process constructs each network once.

    Groups keep the order of their first cases: what has been measured at any moment is a prefix of the networks.
    """

    def __init__(self, cases: Iterable[ZooCase], *, grouped: bool = True) -> None:
        self._groups: dict[tuple[str, Allocator], deque[ZooCase]] = {}
        self._waiting = 0
        for index, case in enumerate(cases):
            name = case.network.key if grouped else str(index)
            self._groups.setdefault((name, case.allocator), deque()).append(case)
            self._waiting += 1

    def __len__(self) -> int:
        return self._waiting

    def claim(self, idle: Collection[Allocator], fits: Callable[[ZooCase], bool]) -> deque[ZooCase] | None:
        """Takes the next group whose first case fits, one for an idle process's allocator before others."""
        found = []
        for key, group in self._groups.items():
            if fits(group[0]):
                found.append(key)
                if key[1] in idle or len(found) == LOOK_AHEAD:
                    break
        if not found:
            return None
        group = self._groups.pop(next((key for key in found if key[1] in idle), found[0]))
        self._waiting -= len(group)
        return group


@dataclass(slots=True)
class _Slot:
    process: ForkProcess
    pipe: Connection
    allocator: Allocator
    case: ZooCase | None = None
    group: deque[ZooCase] = field(default_factory=deque)
    """Further cases of the same network, kept for this process."""
    since: float = 0.0
    done: int = 0


def remaining(cases: Iterable[ZooCase], rows: Iterable[dict[str, Any]]) -> list[ZooCase]:
    """The cases whose row is still missing (anchors are always measured again): how a run resumes."""
    done = {
        (row["case"], row.get("purpose", "labels"), row.get("timed", False))
        for row in rows
        if "case" in row and not row.get("anchor")
    }
    return [case for case in cases if case.anchor or not done & _served_by(case)]


def _served_by(case: ZooCase) -> set[tuple[str, str, bool]]:
    """Rows that make a measurement of the case needless: with ONNX Runtime times and limits are taken apart, else a row
    with times holds all that one without them would, and never the other way round."""
    alone = case.timed or case.purpose == "onnxruntime"
    return {(case.id, case.purpose, timed) for timed in ((case.timed,) if alone else (False, True))}


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
        queue, again = Queue(cases, grouped=self.plan.grouped), deque[ZooCase]()
        total, shown = len(queue), 0.0
        while True:
            elapsed = time.monotonic() - started
            closing = elapsed > self.plan.seconds
            if not closing:
                self._fill(queue)
                if not any(s.case or s.group for s in self.slots) and not queue and again:
                    self._start(self._free_slot(again[0].allocator), again.popleft())
            if not any(s.case for s in self.slots) and (closing or not (queue or again or self._kept())):
                break
            for slot in self._ready():
                self._collect(slot, None if closing else again)
            self._stop_hanging(None if closing else again)
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

    def _kept(self) -> bool:
        return any(slot.group for slot in self.slots)

    def _fits(self, case: ZooCase) -> bool:
        in_use = sum(s.case.planned_mib * 1.3 + 900 for s in self.slots if s.case)
        return not in_use or in_use + case.planned_mib * 1.3 + 900 <= self.plan.budget_mib

    def _fill(self, queue: Queue) -> None:
        for slot in self.slots:
            if slot.case is None and slot.group and self._fits(slot.group[0]):
                self._start(slot, slot.group.popleft())
        while queue and sum(bool(s.case or s.group) for s in self.slots) < self.plan.workers:
            idle = {s.allocator for s in self.slots if s.case is None and not s.group}
            group = queue.claim(idle, self._fits)
            if group is None:
                return
            slot = self._free_slot(group[0].allocator)
            slot.group = group
            self._start(slot, group.popleft())

    def _start(self, slot: _Slot, case: ZooCase) -> None:
        slot.case, slot.since = case, time.monotonic()
        slot.pipe.send(case.to_json())

    def _free_slot(self, allocator: Allocator) -> _Slot:
        for slot in self.slots:
            if slot.case is None and not slot.group and slot.allocator is allocator:
                return slot
        idle = next((s for s in self.slots if s.case is None and not s.group), None)
        if idle is not None and len(self.slots) >= self.plan.workers:
            self._close(idle)
            self.slots.remove(idle)
        self.slots.append(_Slot(*self._process(allocator), allocator))
        return self.slots[-1]

    def _process(self, allocator: Allocator) -> tuple[ForkProcess, Connection]:
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(target=self.serve, args=(theirs, allocator), daemon=False)
        process.start()
        theirs.close()
        return process, ours

    def _collect(self, slot: _Slot, again: deque[ZooCase] | None) -> None:
        assert slot.case is not None
        try:
            row: dict[str, Any] = json.loads(slot.pipe.recv_bytes())
        except EOFError:
            slot.process.join(5)
            reason = f"the process died (exit code {slot.process.exitcode})"
            row = {"case": slot.case.id, "status": "failed", "reason": reason}
        self._settle(slot, row, again)

    def _settle(self, slot: _Slot, row: dict[str, Any], again: deque[ZooCase] | None) -> None:
        """The slot's case is done: its row is written, or it is to be measured again."""
        case = slot.case
        assert case is not None
        slot.case, slot.done = None, slot.done + 1
        crowded = any(s.case for s in self.slots)
        if crowded and again is not None and needs_repeat(row):
            again.append(case)
        else:
            self.write(tag(case, row))
            self.written += 1
            self.failed += row["status"] != "ok"
        if slot.done >= self.plan.cases_per_process or row["status"] != "ok":
            self._close(slot)
            if slot.group and again is not None:
                slot.process, slot.pipe = self._process(slot.allocator)
                slot.done = 0
            else:
                self.slots.remove(slot)

    def _stop_hanging(self, again: deque[ZooCase] | None) -> None:
        """Kills who takes too long; the end of its pipe then tells. Where that does not come (it waits in the driver,
        or what it started holds the pipe), the row is written without it."""
        for slot in list(self.slots):
            if slot.case is None or (over := time.monotonic() - slot.since - self.plan.case_seconds) <= 0:
                continue
            slot.process.kill()
            if over > _LAST_SECONDS:
                reason = f"the process took longer than {self.plan.case_seconds:g} s and did not end when it was killed"
                self._settle(slot, {"case": slot.case.id, "status": "failed", "reason": reason}, again)

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
