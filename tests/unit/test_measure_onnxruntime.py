"""ONNX Runtime's harness where no GPU is needed: the search, the arena's log, the locks, a session on the CPU."""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from dippm.case import Precision, Runtime
from dippm.measure.command import of_stage
from dippm.measure.gpu_lock import GpuLock
from dippm.measure.onnxruntime_arena import MARK, Region, copies, regions, reserved, total
from dippm.measure.onnxruntime_case import measure
from dippm.measure.onnxruntime_export import export
from dippm.measure.onnxruntime_options import OrtOptions
from dippm.measure.onnxruntime_session import is_out_of_memory, latency
from dippm.replay.search import RESOLUTION, search
from dippm.zoo.case import InputShape, Network, ZooCase
from dippm.zoo.catalogue import declared
from dippm.zoo.onnx_cases import declare_onnx
from dippm.zoo.planning import Plan

NETWORK = Network("net", "handwritten", "perceptron", {"features": 64, "hidden": 128}, (InputShape((64,)),))
LOG = f"""
2026-11-24 [I:onnxruntime:Default, bfc_arena.cc:1 BFCArena] Creating BFCArena for Cuda with following configs: x
2026-11-24 [I:onnxruntime:Default, bfc_arena.cc:2 Reserve] Reserving memory in BFCArena for Cuda size: 102400
2026-11-24 [I:onnxruntime:Default, bfc_arena.cc:3 AllocateRawInternal] Extending BFCArena for CUDA_CPU. bin_num:2 \
(requested) num_bytes: 1000 (actual) rounded_bytes:1024
2026-11-24 [I:onnxruntime:Default, bfc_arena.cc:4 Extend] Extended allocation by 1048576 bytes.
{MARK}pass 1
2026-11-24 [I:onnxruntime:Default, bfc_arena.cc:3 AllocateRawInternal] Extending BFCArena for Cuda. bin_num:12 \
(requested) num_bytes: 3000000 (actual) rounded_bytes:3000064
2026-11-24 [I:onnxruntime:Default, bfc_arena.cc:4 Extend] Extended allocation by 4194304 bytes.
2026-11-24 [I:onnxruntime:Default, bfc_arena.cc:5 Extend] Total allocated bytes: 4296704
"""


def test_the_arenas_log_is_read_by_arena_and_phase() -> None:
    found = regions(LOG.splitlines(), "Cuda")
    assert found == [
        Region("session", 102400, 102400, reserved=True),
        Region("pass 1", 3000064, 4194304, reserved=False),
    ]
    assert (total(found), reserved(found)) == (4296704, 102400)
    assert [region.bytes for region in regions(LOG.splitlines(), "CUDA_CPU")] == [1048576]


@pytest.mark.parametrize("needed", [101.0, 180.0, 333.3, 640.0, 990.0])
@pytest.mark.parametrize("guess", [50.0, 100.0, 335.0, 1000.0, 2000.0])
def test_the_search_ends_within_its_resolution(needed: float, guess: float) -> None:
    tried: list[float] = []

    def passes(value: float) -> float | None:
        tried.append(value)
        return value if value >= needed else None

    found = search(passes, guess=guess, low=100.0, high=1000.0)
    assert needed <= found.passed <= needed * (1 + RESOLUTION) * 1.001
    assert found.failed < needed
    assert found.trials == len(tried) <= 12, "halving alone would take 10"


def test_a_good_guess_saves_trials() -> None:
    tried: list[float] = []

    def passes(value: float) -> float | None:
        tried.append(value)
        return value if value >= 500 else None

    search(passes, guess=503.0, low=100.0, high=1000.0)
    assert len(tried) <= 3


def test_what_was_used_under_a_limit_bounds_the_search() -> None:
    """A limit of 900 passes and the arena took 520 of it: nothing above 520 is tried again."""
    tried: list[float] = []

    def passes(value: float) -> float | None:
        tried.append(value)
        return 520.0 if value >= 510 else None

    found = search(passes, guess=900.0, low=100.0, high=1000.0)
    assert 510 <= found.passed <= 520
    assert found.trials <= 4
    assert max(tried[1:]) <= 520


def test_options_are_the_defaults_and_what_the_case_says() -> None:
    options = OrtOptions.of({"arena_extend_strategy": "kSameAsRequested"})
    assert options.provider(7)["gpu_mem_limit"] == "7"
    assert "gpu_mem_limit" not in options.provider()
    assert options.provider()["arena_extend_strategy"] == "kSameAsRequested"
    with pytest.raises(ValueError, match="options cudnn_algo: known are arena_extend_strategy"):
        OrtOptions.of({"cudnn_algo": "x"})


def test_a_case_is_named_by_its_options_and_reads_back() -> None:
    plain = ZooCase(NETWORK, 4, runtime=Runtime.ONNXRUNTIME)
    tight = ZooCase(NETWORK, 4, runtime=Runtime.ONNXRUNTIME, options={"arena_extend_strategy": "kSameAsRequested"})
    assert tight.id == plain.id + ";arena_extend_strategy=kSameAsRequested"
    assert ZooCase.from_json(tight.to_json()) == tight
    assert "options" not in plain.to_json(), "lists drawn before there were options stay what they were"
    stages = [of_stage([plain, tight], name) for name in ("onnxruntime", "onnxruntime-times", "timed", "rest")]
    assert [[c.id for c in stage] for stage in stages] == [[plain.id, tight.id]] * 2 + [[], []]
    assert [{c.timed for c in stage} for stage in stages[:2]] == [{False}, {True}]


def test_copies_between_processors_are_counted() -> None:
    line = "[W:onnxruntime:, transformer_memcpy.cc:74 ApplyImpl] 4 Memcpy nodes are added to the graph main for CUDA."
    assert copies([line, "nothing"]) == 4


def test_want_of_memory_is_told_from_other_failures() -> None:
    assert is_out_of_memory(
        "RuntimeException: status code returned while running Conv node. bfc_arena.cc:376 Available memory of 7"
    )
    assert is_out_of_memory("CUDA failure 2: out of memory")
    assert not is_out_of_memory("Fail: Non-zero status code returned while running Expand node")


def test_the_list_is_drawn_from_a_seed_and_spread() -> None:
    plans = {m.network.key: Plan(100.0, 10.0, 4.0, 20.0, 100) for m in declared()}
    cases = declare_onnx(declared(), plans, seed=3, count=120)
    assert cases == declare_onnx(declared(), plans, seed=3, count=120)
    assert len({c.id for c in cases}) == len(cases) == 120
    assert {c.precision for c in cases} == {Precision.FP32, Precision.FP16}
    assert all(c.runtime is Runtime.ONNXRUNTIME and 1 <= c.batch <= 128 for c in cases)
    assert len({c.super_family for c in cases[:60]}) > 20
    for case in cases:
        OrtOptions.of(case.options)
    more = declare_onnx(declared(), plans, seed=3, count=120, known={c.id for c in cases})
    assert len(more) == 120
    assert not {c.id for c in cases} & {c.id for c in more}


def _say(log: Path, what: str) -> None:
    with log.open("a") as out:
        out.write(f"{what} ")


def _hold(path: Path, log: Path, name: str, go: Event) -> None:
    lock = GpuLock(path)
    _say(log, f"?{name}")
    with lock.alone() if name.startswith("time") else lock.shared():
        _say(log, f"+{name}")
        go.wait(60)
        _say(log, f"-{name}")


def test_times_are_taken_alone_and_memory_side_by_side(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    path, log, go, started = tmp_path / "gpu.lock", tmp_path / "log", context.Event(), []

    def start(name: str, until: str) -> None:
        started.append(context.Process(target=_hold, args=(path, log, name, go)))
        started[-1].start()
        deadline = time.monotonic() + 60
        while not log.exists() or until not in log.read_text().split():
            assert time.monotonic() < deadline, until
            time.sleep(0.02)

    start("memory1", "+memory1")
    start("memory2", "+memory2")  # memory is shared
    start("time1", "?time1")
    time.sleep(0.5)  # between its word and its wait
    start("memory3", "?memory3")
    time.sleep(0.5)
    assert not {"+time1", "+memory3"} & set(log.read_text().split())
    go.set()
    for process in started:
        process.join(60)
    events = log.read_text().split()
    alone = events.index("+time1")
    assert events[alone + 1] == "-time1", "nobody else meanwhile"
    assert events.index("+memory3") > alone, "who comes later waits for whoever waits to take times"


def test_latency_is_that_of_thirty_passes_after_five() -> None:
    calls: list[None] = []

    def forward() -> None:
        calls.append(None)
        time.sleep(0.0005)

    found = latency(forward, lambda: None)
    assert found["latency_passes"] == 30
    assert len(calls) >= 35
    assert 0.4 < found["latency_ms"] < 50
    assert found["latency_p90_ms"] >= found["latency_median_ms"]


@pytest.mark.parametrize("axis", ["fixed", "dynamic"])
def test_the_file_says_the_batch_or_leaves_it_open(axis: str, tmp_path: Path) -> None:
    import onnx

    options = {} if axis == "fixed" else {"batch_axis": axis}
    case = ZooCase(NETWORK, 8, Precision.FP16, runtime=Runtime.ONNXRUNTIME, options=options)
    file = export(case, tmp_path)
    model = onnx.load(str(file.path))
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    assert (batch.dim_value, batch.dim_param) == ((8, "") if axis == "fixed" else (0, "batch"))
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert (file.exporter, file.batch_axis, file.inputs) == ("torchscript", axis, ("input",))


@pytest.mark.parametrize("axis", ["fixed", "dynamic"])
def test_a_case_is_measured_from_the_constructor_on(axis: str, tmp_path: Path) -> None:
    """On the CPU provider: the same export, session, binding and log as on a GPU, without what only a GPU can say."""
    pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    case = ZooCase(NETWORK, 8, runtime=Runtime.ONNXRUNTIME, options={} if axis == "fixed" else {"batch_axis": axis})
    row = measure(case, GpuLock(tmp_path / "gpu.lock"), provider="CPUExecutionProvider")
    more = row["more"]
    assert (row["exporter"], row["session_options"]["batch_axis"]) == ("torch.onnx torchscript", axis)
    assert more["fell_back"] == ""
    assert more["inputs_mib"] == 8 * 64 * 4 / 2**20
    assert more["reserved_mib"] * 2**20 >= 4 * (64 * 128 + 128 * 128)
    assert more["arena_mib"] > more["reserved_mib"]
    assert math.isclose(sum(size for *_, size in more["regions"]) / 2**20, more["arena_mib"] - more["reserved_mib"])
    assert row["process_mib"] is None
    assert row["cap_trials"] >= 2, "the CPU provider knows no limit; that a fresh process ran under one counts too"
    assert more["capped_process_mib"] is None
    assert more["cap_unclear"] == ""
    assert row["latency_passes"] == 30
    assert len(json.dumps(row)) < 5000
