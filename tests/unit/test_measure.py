"""The harness where no GPU is needed: scheduling, resuming, the cutting of traces, the marking of calls."""

from __future__ import annotations

import argparse
import os
import sys
import time
import types
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from dippm.case import Allocator, Runtime
from dippm.data.rowfile import RowFile
from dippm.errors import UnknownDevice
from dippm.measure import schedule
from dippm.measure.command import of_stage, stages
from dippm.measure.counters import Reading
from dippm.measure.memory import finite
from dippm.measure.nvml import open_gpu, require_gpu
from dippm.measure.operators import Call, Record, argument_text, cut_trace, describe, tensor_row
from dippm.measure.schedule import Plan, Queue, Schedule, needs_repeat, remaining
from dippm.measure.worker import operator_table, takes_energy
from dippm.zoo.case import InputShape, Network, ZooCase

NETWORK = Network("net", "handwritten", "perceptron", {}, (InputShape((8,)),))
CASES = [ZooCase(NETWORK, batch, timed=False) for batch in range(1, 13)]


def serve(pipe: Connection, allocator: Allocator) -> None:
    """A worker: batch 3 kills it, batch 5 hangs, batch 7 says once that memory ran out."""
    while line := pipe.recv():
        case = ZooCase.from_json(line)
        if case.batch == 3:
            os._exit(3)
        if case.batch == 5:
            time.sleep(60)
        status = "oom" if case.batch == 7 else "ok"
        pipe.send_bytes(f'{{"case": "{case.id}", "status": "{status}", "reason": "", "of": {os.getpid()}}}'.encode())


def run(tmp_path: Path, cases: list[ZooCase], workers: int = 3, budget: float = 1e9) -> list[dict[str, object]]:
    rows = RowFile(tmp_path / "rows.gz")
    with (tmp_path / "progress").open("w") as progress:
        Schedule(Plan(workers, 4, budget, 30, case_seconds=1.5), serve, rows.append, progress).run(cases)
    return rows.rows()


def test_a_dead_or_hanging_process_costs_its_row_alone(tmp_path: Path) -> None:
    rows = {row["case"]: row for row in run(tmp_path, CASES)}
    assert set(rows) == {c.id for c in CASES}
    assert "exit code 3" in str(rows[CASES[2].id]["reason"])
    assert "exit code -9" in str(rows[CASES[4].id]["reason"])
    assert [c.batch for c in CASES if rows[c.id]["status"] == "ok"] == [1, 2, 4, 6, 8, 9, 10, 11, 12]
    assert rows[CASES[6].id]["status"] == "oom", "alone on the GPU, running out is a label"


def held_by_a_child(pipe: Connection, allocator: Allocator) -> None:
    """A worker that hangs over batch 5, with a child that holds its pipe: its end never comes."""
    while line := pipe.recv():
        case = ZooCase.from_json(line)
        if case.batch == 5 and os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        if case.batch == 5:
            time.sleep(60)
        pipe.send_bytes(f'{{"case": "{case.id}", "status": "ok", "reason": ""}}'.encode())


def test_a_process_that_cannot_be_ended_costs_its_row_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_LAST_SECONDS", 1.0)
    rows, begun = RowFile(tmp_path / "rows.gz"), time.monotonic()
    with (tmp_path / "progress").open("w") as progress:
        plan = Plan(2, 40, 1e9, 30, case_seconds=1.5, grouped=False)
        Schedule(plan, held_by_a_child, rows.append, progress).run(CASES)
    assert time.monotonic() - begun < 15
    reasons = {row["case"]: row["reason"] for row in rows.rows()}
    assert set(reasons) == {c.id for c in CASES}
    assert reasons.pop(CASES[4].id).endswith("took longer than 1.5 s and did not end when it was killed")
    assert set(reasons.values()) == {""}


def test_a_process_keeps_to_one_network(tmp_path: Path) -> None:
    other = Network("other", "handwritten", "perceptron", {}, (InputShape((9,)),))
    cases = [ZooCase(network, batch, timed=False) for batch in (1, 2, 4, 6) for network in (NETWORK, other)]
    rows = run(tmp_path, cases, workers=2)
    processes = {
        key: {row["of"] for row in rows if str(row["case"]).startswith(key)} for key in (NETWORK.key, other.key)
    }
    assert len(rows) == 8
    assert all(len(found) == 1 for found in processes.values())


def test_a_queue_gives_whole_networks_in_the_lists_order() -> None:
    other = Network("other", "handwritten", "perceptron", {}, (InputShape((9,)),))
    cases = [ZooCase(n, batch, timed=False) for batch in (1, 2) for n in (NETWORK, other)]
    queue = Queue(cases)
    assert [c.id for c in queue.claim((), lambda case: True) or ()] == [cases[0].id, cases[2].id]
    assert queue.claim((), lambda case: case.batch > 1) is None
    assert [c.id for c in queue.claim((), lambda case: True) or ()] == [cases[1].id, cases[3].id]
    assert len(queue) == 0
    assert len(Queue(cases, grouped=False).claim((), lambda case: True) or ()) == 1


def test_a_run_resumes_where_it_stopped(tmp_path: Path) -> None:
    rows = run(tmp_path, CASES[:2])
    assert remaining(CASES, rows) == CASES[2:]
    anchor = ZooCase(NETWORK, 1, anchor=True)
    assert remaining([anchor], rows) == [anchor], "anchors are measured in every run"
    search = ZooCase(NETWORK, 1, purpose="min_cap")
    assert remaining([search], rows) == [search], "labels do not stand for a search"
    limits = ZooCase(NETWORK, 1, runtime=Runtime.ONNXRUNTIME, purpose="onnxruntime", timed=False)
    times, row = replace(limits, timed=True), {"case": limits.id, "purpose": "onnxruntime", "timed": False}
    assert remaining([limits, times], [row]) == [times], "with ONNX Runtime one is not the other"
    assert not remaining([replace(CASES[0], timed=False)], [{"case": CASES[0].id, "timed": True}])
    timed = ZooCase(NETWORK, 1, timed=True)
    assert remaining([timed], rows) == [timed], "memory alone, of `rest`, is no time"
    assert not remaining([timed], [{"case": timed.id, "timed": True}])


def test_a_large_case_waits_until_it_has_the_gpu_to_itself(tmp_path: Path) -> None:
    large = [ZooCase(NETWORK, batch, planned_mib=9e9) for batch in (20, 21, 22)]
    rows = run(tmp_path, large)
    assert [row["status"] for row in rows] == ["ok"] * 3


def test_rows_outlive_a_torn_write(tmp_path: Path) -> None:
    rows = RowFile(tmp_path / "rows.gz")
    rows.append({"case": "a"})
    whole = rows.path.read_bytes()
    rows.append({"case": "b"})
    rows.path.write_bytes(rows.path.read_bytes()[: len(whole) + 12])
    assert rows.rows() == [{"case": "a"}]


@pytest.mark.parametrize(
    ("status", "reason", "repeat"),
    [
        ("ok", "", False), ("oom", "CUDA out of memory", True), ("failed", "AllocatorRetried: 0 -> 1", True),
        ("failed", "NotFinite: x", False),
    ],
)  # fmt: skip
def test_what_a_crowded_gpu_may_have_caused_is_measured_again(status: str, reason: str, repeat: bool) -> None:
    assert needs_repeat({"status": status, "reason": reason}) is repeat


def test_stages_take_their_cases() -> None:
    mixed = [
        ZooCase(NETWORK, 1, anchor=True), ZooCase(NETWORK, 2), ZooCase(NETWORK, 3, timed=False),
        ZooCase(NETWORK, 4, timed=False, purpose="min_cap"),
    ]  # fmt: skip
    taken = {name: [c.batch for c in of_stage(mixed, name)] for name in ("anchors", "timed", "memory", "caps", "rest")}
    assert taken == {"anchors": [1], "timed": [2], "memory": [3], "caps": [4], "rest": [2, 3]}
    assert not any(c.timed for c in of_stage(mixed, "rest"))


def test_stages_are_read_from_text() -> None:
    assert stages("anchors:40,memory") == [("anchors", 40.0), ("memory", 1e9)]
    with pytest.raises(argparse.ArgumentTypeError, match="'warmup:3' is no stage"):
        stages("warmup:3")


def test_half_of_the_cases_take_energy() -> None:
    chosen = [takes_energy(ZooCase(NETWORK, batch)) for batch in range(1, 201)]
    assert 70 < sum(chosen) < 130


def reading(allocations: int, frees: int) -> Reading:
    return Reading(0, 0, 0, 0, allocations, frees, 0, 0)


def test_a_trace_is_cut_by_the_allocators_own_counts() -> None:
    trace = [
        ("segment_alloc", 2 << 20), ("alloc", 512), ("alloc", 4096), ("free_requested", 4096), ("free_completed", 4096),
        ("free_requested", 512), ("free_completed", 512), ("alloc", 1024),
    ]  # fmt: skip
    before, after = [reading(10, 5), reading(12, 7)], [reading(12, 6), reading(13, 7)]
    assert cut_trace(trace, reading(10, 5), before, after) == [(512, 4096, -4096), (1024,)]


def test_a_trace_that_lost_events_gives_none() -> None:
    assert cut_trace([("alloc", 512)], reading(0, 0), [reading(0, 0)], [reading(4, 0)]) == [()]


def test_the_peak_is_put_together_from_the_rows() -> None:
    first = Call("a", (), "", (), (), net_bytes=100, peak_bytes=400)
    second = Call("b", (), "", (), (), net_bytes=-50, peak_bytes=250)
    record = Record([first, second, first], freed_bytes=[0, 0, 0], level_bytes=[1000, 1100, 1050])
    assert record.peak_bytes == 1450
    table = operator_table(record)
    assert table["sequence"] == [0, 1, 0]
    assert len(table["calls"]) == 2


def test_a_call_is_described_by_shapes_layouts_and_arguments() -> None:
    x, weight = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 3, 3)
    out = torch.ops.aten.conv2d.default(x, weight, None, [2, 2])
    target, inputs, arguments, outputs, views = describe(
        torch.ops.aten.conv2d.default, (x, weight, None, [2, 2]), {}, out
    )
    assert target == "aten.conv2d.default"
    assert inputs == (((2, 3, 8, 8), "float32", ""), ((4, 3, 3, 3), "float32", ""))
    assert arguments == "T,T,None,[2,2]"
    assert outputs == (((2, 4, 3, 3), "float32", ""),)
    assert views == (-1,)
    flat = x.flatten(1)
    assert describe(torch.ops.aten.flatten.using_ints, (x, 1), {}, flat)[4] == (0,)
    assert tensor_row(x.to(memory_format=torch.channels_last))[2] == "cl"
    assert tensor_row(x.transpose(1, 2))[2] == "nc"
    assert argument_text(0.1 + 0.2) == "0.3"


def test_outputs_must_be_finite_and_alive() -> None:
    assert finite((torch.tensor([1.0, 2.0]), None))
    assert not finite(torch.tensor([1.0, float("inf")]))
    assert not finite(torch.zeros(4))


class Nvml(types.ModuleType):
    """A driver that does not answer."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:  # noqa: N802  (NVML's own name)
        raise self.NVMLError("NVML Shared Library Not Found")


def test_without_a_gpu_measuring_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvml("pynvml"))
    with pytest.raises(UnknownDevice, match=r"no NVIDIA GPU answers here .* run dippm measure where nvidia-smi works"):
        require_gpu()
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(UnknownDevice, match="nvidia-ml-py"):
        require_gpu()


class TwoGpus(types.ModuleType):
    """A driver with two GPUs; a handle is what it was asked for by."""

    def nvmlInit(self) -> None:  # noqa: N802  (NVML's own name)
        pass

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return ("GPU-c6b42b8e-efca-49d5-4e37-61d47ea07ff4", "GPU-a9f6fcb6-c495-b1fb-2267-53255ec03692")[handle]


@pytest.mark.parametrize(
    ("visible", "handle"), [(None, 0), ("", 0), ("1", 1), ("1,0", 1), ("GPU-a9f6fcb6,GPU-c6b42b8e", 1)]
)
def test_the_driver_is_asked_about_the_gpu_that_cuda_uses(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, handle: int
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", TwoGpus("pynvml"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert open_gpu().handle == handle


@pytest.mark.parametrize("visible", ["2", "-1", "NoDevFiles", "GPU-0"])
def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", TwoGpus("pynvml"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UnknownDevice, match=f"CUDA_VISIBLE_DEVICES begins with {visible}, which is none .* 2 GPUs"):
        open_gpu()
