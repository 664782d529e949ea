"""`dippm measure`: measures a list of cases on this machine's GPU, row by row, and resumes where it stopped.

Stages run one after the other, each with its own time: `anchors`, `timed` (one process on the GPU at a time),
`memory` (side by side), `caps` (the smallest cap), `rest` (memory of what `timed` did not reach), and of ONNX files as
ONNX Runtime runs them `onnxruntime` (memory and the smallest limit, side by side) and `onnxruntime-times` (latency,
one at a time). What a stage does not reach is left for the next run.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dippm.artifact import open_artifact
from dippm.case import Allocator, Runtime
from dippm.data.rowfile import RowFile
from dippm.errors import DippmError
from dippm.measure.nvml import require_gpu
from dippm.measure.schedule import Plan, Schedule, pin, remaining
from dippm.zoo.case import ZooCase, read_cases

STAGES = ("anchors", "timed", "memory", "caps", "rest", "onnxruntime", "onnxruntime-times")
ORT_STAGES = STAGES[-2:]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dippm measure`."""
    parser.add_argument("cases", type=Path, nargs="?", help="list of cases, as `dippm graph list` writes it")
    parser.add_argument("--out", type=Path, help="rows are appended here (gzip members of JSON lines)")
    parser.add_argument(
        "--stages", type=stages, default="anchors:60,timed:1800,anchors:60,memory:1800,caps:300",
        help=f"stage:seconds, in order, of {', '.join(STAGES)} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=12, help="processes side by side where no time is taken")
    parser.add_argument("--builders", type=int, default=3, help="processes of which one at a time takes times")
    parser.add_argument("--per-process", type=int, default=40, help="cases after which a process is replaced")
    parser.add_argument("--budget-gib", type=float, default=110.0, help="planned memory on the GPU at once")
    parser.add_argument("--limit", type=int, default=None, help="no more than so many cases a stage")
    one = parser.add_argument_group("one model instead of a list")
    one.add_argument("--model", type=Path, help="measure this file (.pt2, TorchScript, ONNX) beside its prediction")
    one.add_argument("--batch", type=int, help="batch size of --model")
    one.add_argument("--input", action="append", metavar="SHAPE", help="as for dippm predict; once for each input")
    one.add_argument("--json", action="store_true", help="one JSON object instead of the table")


def stages(text: str) -> list[tuple[str, float]]:
    """`timed:300,memory` as names and seconds (without a number: no end). Raises argparse.ArgumentTypeError."""
    found = []
    for part in text.split(","):
        name, _, seconds = part.partition(":")
        if name not in STAGES or (seconds and not seconds.isdigit()):
            raise argparse.ArgumentTypeError(
                f"{part!r} is no stage: write NAME:SECONDS with one of {', '.join(STAGES)}"
            )
        found.append((name, float(seconds or 1e9)))
    return found


def run(args: argparse.Namespace) -> int:
    """Runs the stages, or measures one model; 0 when every row could be written."""
    if args.model is None and (args.cases is None or args.out is None):
        raise DippmError("dippm measure wants a list of cases and --out ROWS, or one file: --model FILE --batch N")
    if args.model is not None:  # what is wrong with the file is said before a GPU is asked for
        open_artifact(args.model)
        from dippm.measure import one_model

        return one_model.run(args)
    cases, rows = read_cases(args.cases), RowFile(args.out)
    require_gpu()
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    preload()
    report = describe_machine()
    rows.append({"provenance": report})
    print(json.dumps(report), file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        for index, (name, seconds) in enumerate(args.stages):
            print(f"== {name} ({seconds:g} s)", file=sys.stderr, flush=True)
            chosen = remaining(of_stage(cases, name), rows.rows())[: args.limit]
            plan = stage_plan(args, name, seconds)
            lock = Path(folder) / "gpu.lock" if name in ("anchors", "timed", *ORT_STAGES) else None
            extra = {"run": report["run"], "stage": index}
            Schedule(plan, server(lock, name), lambda row, extra=extra: rows.append({**row, **extra})).run(chosen)  # type: ignore[misc]
    return 0


def of_stage(cases: list[ZooCase], stage: str) -> list[ZooCase]:
    """The cases that a stage measures, in the list's order."""
    if stage in ORT_STAGES:
        timed = stage == "onnxruntime-times"
        return [replace(c, timed=timed) for c in cases if c.runtime is Runtime.ONNXRUNTIME]
    cases = [c for c in cases if c.runtime is not Runtime.ONNXRUNTIME]
    if stage == "anchors":
        return [c for c in cases if c.anchor]
    if stage == "caps":
        return [c for c in cases if c.purpose == "min_cap"]
    labels = [c for c in cases if c.purpose == "labels" and not c.anchor]
    if stage == "timed":
        return [c for c in labels if c.timed]
    if stage == "memory":
        return [c for c in labels if not c.timed]
    return [replace(c, timed=False) for c in labels]


def stage_plan(args: argparse.Namespace, stage: str, seconds: float) -> Plan:
    """Processes, GPU budget and time of a stage."""
    if stage in ("anchors", "timed"):
        return Plan(args.builders, 40, args.budget_gib * 1024, seconds, grouped=False)
    if stage == "caps":
        return Plan(args.workers, args.per_process, args.budget_gib * 1024, seconds, case_seconds=120.0)
    if stage in ORT_STAGES:
        return Plan(args.workers, args.per_process, args.budget_gib * 1024, seconds, case_seconds=240.0)
    return Plan(args.workers, args.per_process, args.budget_gib * 1024, seconds)


def preload() -> None:
    """Imports what every worker needs, once, before the first fork; then takes it out of the collector's sight.

    A collection in a forked process would otherwise walk, and so copy, every object of the libraries.
    """
    import timm  # noqa: F401
    import torch
    import torch.export
    import torch.utils.flop_counter
    import transformers

    from dippm.zoo import handwritten, random_networks  # noqa: F401

    torch.set_num_threads(1)
    for kind in ("bert", "gpt2", "llama", "t5", "wav2vec2"):
        transformers.AutoModel._model_mapping[type(transformers.AutoConfig.for_model(kind))]
    transformers.logging.set_verbosity_error()
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)).module()
    gc.collect()
    gc.freeze()


def server(lock: Path | None, stage: str) -> Any:
    """What a worker process does: measures each case that comes down its pipe, until an empty one."""

    def serve(pipe: Connection, allocator: Allocator) -> None:
        import warnings

        import torch

        from dippm.measure.memory import set_allocator
        from dippm.measure.nvml import open_gpu
        from dippm.measure.worker import Bench, measure_case

        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        if lock is not None and stage not in ORT_STAGES:
            pin(os.getpid() % 4)
        if stage not in ("caps", *ORT_STAGES):
            set_allocator(allocator)
        bench = Bench(open_gpu(), lock)
        while line := pipe.recv():
            row = measure_case(ZooCase.from_json(line), bench)
            pipe.send_bytes(json.dumps(row).encode())

    return serve


def describe_machine() -> dict[str, Any]:
    """Provenance of this run, with the card's idle power over two seconds; asked in a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_describe, args=(theirs,))
    process.start()
    theirs.close()
    report: dict[str, Any] = ours.recv()
    process.join()
    return report


def _describe(pipe: Connection) -> None:
    import torch

    from dippm.measure.nvml import open_gpu
    from dippm.measure.provenance import provenance

    gpu = open_gpu()
    torch.cuda.init()  # type: ignore[no-untyped-call]
    energy, begun = gpu.energy_j(), time.perf_counter()
    time.sleep(2.0)
    idle = (gpu.energy_j() - energy) / (time.perf_counter() - begun)
    pipe.send({**provenance(gpu), "idle_w": round(idle, 2), "idle_used_mib": round(gpu.used_mib(), 1)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="dippm measure", description=__doc__)
    add_arguments(parser)
    raise SystemExit(run(parser.parse_args()))
