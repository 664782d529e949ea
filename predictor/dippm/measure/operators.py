"""Operator rows: what each call of the framework allocates, and which kernels it starts.

A `TorchDispatchMode` sees every call in order. Around each one the allocator's counters are read, so that

    level before + peak inside, maximised over the rows  =  the pass's allocated peak

and what was freed between two calls (Python letting go of tensors) is the difference of levels.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dippm.measure import counters

RANGE = "dippm.operator"
TensorRow = tuple[tuple[int, ...], str, str]
"""Shape, dtype as Relax spells it, layout (`` contiguous, `cl` channels last, `nc` otherwise strided)."""


@dataclass(frozen=True, slots=True)
class Call:
    """The signature of one call and what its allocations were."""

    target: str
    inputs: tuple[TensorRow, ...]
    arguments: str
    """Arguments that are no tensors, in order; tensors stand as `T`."""
    outputs: tuple[TensorRow, ...]
    views: tuple[int, ...]
    """For each output the index of the input whose storage it shares, or -1."""
    net_bytes: int
    """Allocated bytes after the call less before it."""
    peak_bytes: int
    """Highest level inside the call above the level before it."""
    events: tuple[int, ...] = ()
    """Allocations (positive) and frees (negative) inside the call, bytes, in the allocator's order."""


@dataclass(slots=True)
class Record:
    """All calls of one forward pass, in order."""

    calls: list[Call] = field(default_factory=list)
    freed_bytes: list[int] = field(default_factory=list)
    """Bytes freed between the previous call's end and this call's start (negative: allocated there)."""
    level_bytes: list[int] = field(default_factory=list)
    """Allocated bytes just before the call."""
    kernel_us: list[float] = field(default_factory=list)
    kernels: list[int] = field(default_factory=list)

    @property
    def peak_bytes(self) -> int:
        """The pass's allocated peak, put together from the rows."""
        return max((level + c.peak_bytes for level, c in zip(self.level_bytes, self.calls, strict=True)), default=0)


def tensor_row(tensor: torch.Tensor) -> TensorRow:
    """Shape, dtype and layout of a tensor."""
    layout = ""
    if not tensor.is_contiguous():
        channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        layout = "cl" if channels_last else "nc"
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), layout


def argument_text(value: Any) -> str:
    """One argument in a short, repeatable spelling; floats to six digits."""
    if isinstance(value, torch.Tensor):
        return "T"
    if isinstance(value, torch.UntypedStorage):
        return "storage"
    if isinstance(value, list | tuple):
        return "[" + ",".join(argument_text(item) for item in value) + "]"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value).removeprefix("torch.")


def describe(
    func: Any, args: Any, kwargs: Any, out: Any
) -> tuple[str, tuple[TensorRow, ...], str, tuple[TensorRow, ...], tuple[int, ...]]:
    """(target, inputs, arguments, outputs, views) of a call."""
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
    storages = [leaf.untyped_storage()._cdata for leaf in given]
    views = tuple(
        storages.index(cdata) if (cdata := leaf.untyped_storage()._cdata) in storages else -1 for leaf in made
    )
    text = ",".join([argument_text(a) for a in args] + [f"{k}={argument_text(v)}" for k, v in sorted(kwargs.items())])
    return str(func), tuple(map(tensor_row, given)), text, tuple(map(tensor_row, made)), views


class _MemoryRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reads the allocator around every call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.described: list[tuple[Any, ...]] = []
        self.before: list[counters.Reading] = []
        self.after: list[counters.Reading] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        counters.reset_peak()
        before = counters.read()
        out = func(*args, **kwargs)
        self.after.append(counters.read())
        self.before.append(before)
        self.described.append(describe(func, args, kwargs, out))
        return out


class _RangeMarker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Puts a profiler range around every call, in the order in which `_MemoryRecorder` counts them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C._profiler._RecordFunctionFast(RANGE):
            return func(*args, **(kwargs or {}))


def record_memory(forward: Callable[[], Any]) -> Record:
    """Runs one pass and reads what each call allocates, with the order of allocations inside it.

    The allocator's own trace (`_record_memory_history`) is cut into calls by its counts of allocations and frees.
    """
    torch.cuda.memory._record_memory_history(enabled="all", context=None, max_entries=1_000_000)
    start = counters.read()
    recorder = _MemoryRecorder()
    try:
        with recorder:
            out = forward()
        trace = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    del out
    events = cut_trace([(e["action"], e["size"]) for e in trace], start, recorder.before, recorder.after)
    record = Record()
    level = start.allocated
    for described, before, after, inside in zip(
        recorder.described, recorder.before, recorder.after, events, strict=True
    ):
        target, inputs, arguments, outputs, views = described
        net, peak = after.allocated - before.allocated, after.allocated_peak - before.allocated
        record.calls.append(Call(target, inputs, arguments, outputs, views, net, peak, inside))
        record.level_bytes.append(before.allocated)
        record.freed_bytes.append(level - before.allocated)
        level = after.allocated
    return record


def cut_trace(
    trace: Sequence[tuple[str, int]],
    start: counters.Reading,
    before: Sequence[counters.Reading],
    after: Sequence[counters.Reading],
) -> list[tuple[int, ...]]:
    """The trace's allocations and frees that lie inside each call, by the counts read around it.

    Empty for every call where the trace does not hold all events (it was cut at its maximum length).
    """
    signed = [size if action == "alloc" else -size for action, size in trace if action in ("alloc", "free_completed")]
    base = start.allocations + start.frees
    cuts = [
        (b.allocations + b.frees - base, a.allocations + a.frees - base) for b, a in zip(before, after, strict=True)
    ]
    if cuts and cuts[-1][1] > len(signed):
        return [()] * len(cuts)
    return [tuple(signed[first:last]) for first, last in cuts]


def record_kernels(forward: Callable[[], Any], calls: int) -> tuple[list[float], list[int]]:
    """Runs one pass under the profiler: device time (us) and number of kernels (copies included) of each call.

    Raises RuntimeError if the pass made another number of calls than the memory pass did.
    """
    from torch._C._autograd import DeviceType
    from torch.autograd.profiler import profile

    with profile(use_device="cuda", use_kineto=True) as profiler:
        with _RangeMarker():  # type: ignore[no-untyped-call]
            out = forward()
        torch.cuda.synchronize()
    del out
    results = profiler.kineto_results
    assert results is not None
    starts: list[int] = []
    ends: list[int] = []
    launched: dict[int, int] = {}
    kernels: list[tuple[int, int]] = []
    for event in results.events():
        name = event.name()
        if event.device_type() == DeviceType.CPU:
            if name == RANGE:
                starts.append(event.start_ns())
                ends.append(event.start_ns() + event.duration_ns())
            elif name.startswith("cu"):
                launched[event.correlation_id()] = event.start_ns()
        elif name != RANGE:
            kernels.append((event.correlation_id(), event.duration_ns()))
    if len(starts) != calls:
        raise RuntimeError(f"the profiled pass made {len(starts)} calls, the recorded one {calls}")
    order = sorted(range(len(starts)), key=starts.__getitem__)
    starts, ends = [starts[i] for i in order], [ends[i] for i in order]
    times, counts = [0.0] * calls, [0] * calls
    for correlation, duration in kernels:
        moment = launched.get(correlation)
        index = bisect.bisect_right(starts, moment) - 1 if moment is not None else -1
        if index >= 0 and moment is not None and moment <= ends[index]:
            times[index] += duration / 1e3
            counts[index] += 1
    return times, counts
