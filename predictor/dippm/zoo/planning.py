"""What a network will roughly need, found by running its Python on the meta device: schedules cases, labels nothing."""

from __future__ import annotations

import json
import multiprocessing
import warnings
import weakref
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from dippm.zoo.build import construct, example_inputs, place
from dippm.zoo.case import Network

MIB = 2.0**20


@dataclass(frozen=True, slots=True)
class Plan:
    """Costs in fp32: weights of the network, and per sample the live activations, operations and bytes put out."""

    weights_mib: float
    activations_mib: float
    """Peak of live tensors per sample of the batch, MiB."""
    gflop: float
    """Floating-point operations per sample, 1e9."""
    written_mib: float
    """Bytes put out by all operators per sample, MiB."""
    operators: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the storages alive after each operator, through weak references."""

    def __init__(self, placed: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = self.written = self.operators = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in placed}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operators += 1
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.alive)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.written += size

        def release() -> None:
            self._known.discard(key)
            self.alive -= size

        weakref.finalize(storage, release)


class _TruthOnMeta(TorchFunctionMode):
    """Answers `if tensor` on the meta device with True (mask code asks whether all tokens are attended to)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("__bool__", "item") and args and args[0].device.type == "meta":
            return True
        return func(*args, **(kwargs or {}))


def plan(network: Network, batch: int = 4) -> Plan:
    """Runs the network once on the meta device at a small batch and divides by it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = place(construct(network), torch.device("meta"), torch.float32).requires_grad_(False)
        inputs = example_inputs(network.inputs, batch, torch.device("meta"), torch.float32)
        tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
        weights = sum(t.numel() * t.element_size() for t in tensors.values())
        live, flops = LiveBytes([*tensors.values(), *inputs]), FlopCounterMode(display=False)
        with torch.inference_mode(), _TruthOnMeta(), flops, live:
            module(*inputs)
    return Plan(
        weights_mib=round(weights / MIB, 3),
        activations_mib=round(live.peak / MIB / batch, 4),
        gflop=round(flops.get_total_flops() / 1e9 / batch, 4),
        written_mib=round(live.written / MIB / batch, 4),
        operators=live.operators,
    )


def plan_line(network: Network) -> str:
    """The network's plan as a line of JSON, or why it has none."""
    torch.set_num_threads(1)
    try:
        body: dict[str, Any] = asdict(plan(network))
    except Exception as error:  # any constructor may fail; the line says how
        body = {"error": f"{network.architecture}: {type(error).__name__}: {error}"[:200]}
    return json.dumps({"key": network.key, **body}, sort_keys=True, separators=(",", ":"))


def plan_all(networks: Iterable[Network], path: Path, processes: int = 1) -> int:
    """Plans the networks that `path` does not name yet, and adds their lines to it; gives their number."""
    known = {json.loads(line)["key"] for line in path.read_text().splitlines()} if path.exists() else set()
    wanted = {network.key: network for network in networks if network.key not in known}
    with path.open("a") as out, multiprocessing.get_context("fork").Pool(processes, maxtasksperchild=200) as pool:
        for line in pool.imap_unordered(plan_line, wanted.values()):
            out.write(line + "\n")
            out.flush()
    return len(wanted)


def read_plans(path: Path) -> dict[str, Plan]:
    """Plans by network key; networks that could not be planned are left out."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {row.pop("key"): Plan(**row) for row in rows if "error" not in row}
