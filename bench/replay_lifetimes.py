"""How well the eager lifetime rules do, without a GPU: the replayed level against the module's own Python.

The reference runs the module on the meta device under a `TorchDispatchMode` and counts storages through weak
references: what CPython itself holds alive at each operator. The replay sees the exported graph alone. Workspaces are
left out of both. Needs the `train` extra.

    python bench/replay_lifetimes.py                  # every network of the zoo, at its first input shape
    python bench/replay_lifetimes.py --only swin      # those whose name holds "swin"
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dippm.case import Mode, Runtime
from dippm.frontend import graph_from_module
from dippm.graph import ModelGraph
from dippm.replay import levels, lifetimes
from dippm.replay.allocator import round_size
from dippm.zoo.build import build
from dippm.zoo.case import ZooCase
from dippm.zoo.catalogue import declared, random_members

MIB = 2.0**20


class LiveStorages(TorchDispatchMode):
    """Bytes of the storages that operators made and that something still refers to; `peak` is their highest sum."""

    def __init__(self, placed: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in placed}
        self.sizes: dict[int, tuple[Any, int]] = {}
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self.known or key in self.sizes:
            return
        size = round_size(storage.nbytes()) if storage.nbytes() else 0
        self.sizes[key] = (weakref.ref(storage, lambda _: self._dead(key)), size)
        self.now += size

    def _dead(self, key: int) -> None:
        self.now -= self.sizes.pop(key)[1]


@dataclass(frozen=True, slots=True)
class Row:
    """One network: bytes of activations at the peak."""

    name: str
    placed: int
    reference: int
    eager: int
    graph: int

    def activations_error(self, found: int) -> float:
        """Percent of the activations."""
        return 100 * (found - self.reference) / max(1, self.reference)

    def peak_error(self, found: int) -> float:
        """Percent of weights, inputs and activations together."""
        return 100 * (found - self.reference) / (self.placed + self.reference)


def replayed(graph: ModelGraph, runtime: Runtime, mode: Mode) -> int:
    """Peak of the replayed activations, workspaces left out."""
    return max(level.inside for level in levels(graph, lifetimes(graph, runtime, mode), (0,) * len(graph.operators)))


def compare(case: ZooCase) -> Row:
    """Reference and replay of one network on the meta device."""
    module, inputs = build(case)
    placed = [*module.parameters(), *module.buffers(), *inputs]
    autograd = case.mode is Mode.AUTOGRAD
    module.requires_grad_(autograd)
    with torch.inference_mode(not autograd), torch.set_grad_enabled(autograd), LiveStorages(placed) as live:
        out = module(*inputs)
    del out
    graph = graph_from_module(module, inputs, batch=case.batch)
    return Row(
        name=f"{case.network.architecture} {'x'.join(str(d) for i in case.network.inputs for d in i.shape)}",
        placed=sum(round_size(t.numel() * t.element_size()) for t in {id(t): t for t in placed}.values()),
        reference=live.peak,
        eager=replayed(graph, Runtime.EAGER, case.mode),
        graph=replayed(graph, Runtime.GRAPH, case.mode),
    )


def networks(only: str, random_networks: int, batch: int, mode: Mode = Mode.INFERENCE) -> Iterator[ZooCase]:
    """Each declared network once, then random ones."""
    seen: set[str] = set()
    for member in [*declared(), *random_members(random_networks, seed=7)]:
        name = member.network.architecture
        if name not in seen and only in name:
            seen.add(name)
            yield ZooCase(member.network, batch, mode=mode, family=member.family, super_family=member.super_family)


def summary(name: str, errors: Sequence[float]) -> str:
    """Mean, median, 95th percentile and worst of the absolute errors, and the share within 1 %."""
    sizes = sorted(abs(e) for e in errors)
    within = 100 * sum(e <= 1 for e in sizes) / len(sizes)
    return (
        f"{name:34s} mean {statistics.fmean(sizes):6.3f} %  median {statistics.median(sizes):6.3f} %  "
        f"95th {sizes[round(0.95 * (len(sizes) - 1))]:6.2f} %  worst {sizes[-1]:6.2f} %  within 1 %: {within:5.1f} %"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name holds this")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--mode", choices=["inference", "autograd"], default="inference")
    parser.add_argument("--random", type=int, default=20, help="random networks beside the declared ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[Row] = []
    failed = 0
    for case in networks(options.only, options.random, options.batch, Mode(options.mode)):
        try:
            row = compare(case)
        except Exception as error:  # a network that cannot run on meta is listed; the others still count
            failed += 1
            print(
                f"{case.network.architecture:36s} not compared: {type(error).__name__}: {str(error)[:110]}", flush=True
            )
            continue
        rows.append(row)
        print(
            f"{row.name:36s} activations {row.reference / MIB:9.1f} MiB   "
            f"eager {row.activations_error(row.eager):7.2f} %   last use {row.activations_error(row.graph):7.2f} %",
            flush=True,
        )
    if not rows:
        return 1
    print(f"\n{len(rows)} networks compared, {failed} not; {options.mode}, batch {options.batch}, {torch.__version__}")
    print(summary("eager rules, of the whole peak", [r.peak_error(r.eager) for r in rows]))
    print(summary("last use, of the whole peak", [r.peak_error(r.graph) for r in rows]))
    print(summary("eager rules, of the activations", [r.activations_error(r.eager) for r in rows]))
    print(summary("last use, of the activations", [r.activations_error(r.graph) for r in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
