"""The typed values that the data set hands on: a case with its labels, and its operators joined with its graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from dippm.case import Allocator, Case, Mode, Precision, Runtime

LEAST_MATCHED = 0.8
"""Cases of which fewer operator rows were matched with the graph are another network than the graph says."""

TensorRow = tuple[tuple[int, ...], str, str]
"""Shape, dtype, layout of a tensor (`` contiguous, `cl` channels last, `nc` otherwise strided)."""


@dataclass(frozen=True, slots=True)
class CaseRow:
    """One measured case. Memory in MiB, times in ms, energy in J for one pass; None where it was not measured.

    `status` is `ok`, `oom` (it does not fit the whole GPU: a label too) or `failed`, with `reason`.
    """

    id: str
    architecture: str
    family: str
    super_family: str
    source: str
    network: str
    """Key of the network: the graph store is looked up under it."""
    batch: int
    precision: Precision
    mode: Mode
    runtime: Runtime
    allocator: Allocator
    status: str
    reason: str
    timed: bool
    weights_mib: float | None
    """Weights, buffers and inputs, as allocated before the first pass."""
    inputs_mib: float | None
    allocated_mib: float | None
    activations_mib: float | None
    reserved_mib: float | None
    context_mib: float | None
    context_fresh: bool
    """Whether the process had measured nothing before: its context then holds this case's kernels alone."""
    footprint_mib: float | None
    min_cap_steady_mib: float | None
    device_ms: float | None
    device_ms_method: str
    host_ms: float | None
    latency_ms: float | None
    latency_median_ms: float | None
    latency_p90_ms: float | None
    energy_j: float | None
    kernel_ms: float | None
    kernels: int | None
    run: str
    gpu: str
    gpu_uuid: str
    matched_share: float | None
    """Share of the measured operator rows that were matched with a node of the graph."""

    @property
    def case(self) -> Case:
        """The predictor's value for the same question, on the card that it was measured on."""
        return Case(self.batch, self.precision, self.mode, self.runtime, self.allocator, device=self.product)

    @property
    def product(self) -> str:
        """The card as GPU Feature Discovery names it, without `NVIDIA-`."""
        return self.gpu.removeprefix("NVIDIA ").replace(" ", "-")


@dataclass(frozen=True, slots=True)
class MeasuredCall:
    """One distinct call of the framework and its allocations (a row of `operators.parquet`)."""

    target: str
    inputs: tuple[TensorRow, ...]
    arguments: str
    outputs: tuple[TensorRow, ...]
    views: tuple[int, ...]
    """For each output the index of the input whose storage it shares, or -1."""
    net_bytes: int
    peak_bytes: int
    events: tuple[int, ...]
    """Allocations (positive) and frees (negative) inside the call, in order, bytes."""

    @property
    def workspace_bytes(self) -> int:
        """What the call needs beside what it leaves behind: peak inside less net."""
        return self.peak_bytes - max(self.net_bytes, 0)


@dataclass(frozen=True, slots=True)
class OperatorRows:
    """Measured rows of a case in the framework's order, and for each the node of the graph that it belongs to."""

    calls: tuple[MeasuredCall, ...]
    node: npt.NDArray[np.int32]
    """Index of the graph's operator, or -1 where none was matched."""
    freed_bytes: npt.NDArray[np.int64]
    """Freed between the end of the row before and this row's start."""
    kernel_us: npt.NDArray[np.float32]
    """Kernel time of each row; empty where the case was not timed."""
    kernels: npt.NDArray[np.int16]

    def with_nodes(self, node: Sequence[int]) -> OperatorRows:
        """The same rows, matched with other nodes."""
        return replace(self, node=np.asarray(node, dtype=np.int32))


@dataclass(frozen=True, slots=True)
class NodeLabels:
    """The same, seen from the graph: one entry per operator of it."""

    measured: npt.NDArray[np.bool_]
    workspace_bytes: npt.NDArray[np.int64]
    """-1 where the operator was not measured."""
    net_bytes: npt.NDArray[np.int64]
    kernel_us: npt.NDArray[np.float32]
    """NaN where it was not measured."""
    kernels: npt.NDArray[np.int32]
    """-1 where it was not measured."""
    events: tuple[tuple[int, ...] | None, ...]
