"""Measured operator rows as columns: a case is a program (its calls in order) and what that run of it allocated.

`calls`: distinct calls, written for every batch and precision (`dippm.data.symbols`).
`programs`: distinct sequences of calls of a network; `call` is a row of `calls` as difference to the one before,
`node` the graph's operator (-1: none matched), likewise.
`allocations`: distinct orders of allocations inside a call, in tokens:

    oK  allocates the bytes of output K        iK  those of input K        fK  those of input K in float32
    ?   allocates the case's next `size`       -K  frees allocation K of this call        !  frees the next `size`

`sequences`: one row a case.

    allocation    for each call 0: as the last time in this case (at first: each output that is no view, in order);
                  else 1 + row of `allocations`
    size          bytes, for each ? and ! in order
    surplus_row   calls (as difference to the one before) for which the allocator's counters say more than the sizes
                  asked for, each rounded up to 512 bytes: a block that was not split
    surplus_net   the net bytes' difference at these, surplus_peak the peak's less that
    freed         bytes freed between the end of the call before and each call
    kernel_ns     kernel time of each call (timed cases), kernels their number
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dippm.data.graph_store import Rows
from dippm.data.rows import MeasuredCall, OperatorRows, TensorRow
from dippm.data.symbols import Shapes, SymbolicCall, concrete, nbytes, symbolic
from dippm.data.tables import read_columns, read_rows, write_table
from dippm.graph import DTYPE_BYTES

BLOCK = 512
PLAIN = ""
TABLES = ("calls", "programs", "allocations", "sequences")
CALL_COLUMNS = ("target", "inputs", "arguments", "outputs", "views")
SEQUENCE_COLUMNS = ("allocation", "size", "surplus_row", "surplus_net", "surplus_peak", "freed", "kernel_ns", "kernels")


def _differences(numbers: Iterable[int]) -> list[int]:
    found, last = [], 0
    for number in numbers:
        found.append(number - last)
        last = number
    return found


def _sums(steps: Iterable[int]) -> list[int]:
    found, last = [], 0
    for step in steps:
        last += step
        found.append(last)
    return found


def rounded(size: int) -> int:
    """As the caching allocator rounds: up to whole blocks of 512 bytes."""
    return -(-size // BLOCK) * BLOCK


def levels(events: Iterable[int]) -> tuple[int, int]:
    """(net, peak) of allocations and frees, each rounded."""
    level = peak = 0
    for event in events:
        level += rounded(event) if event > 0 else -rounded(-event)
        peak = max(peak, level)
    return level, peak


def describe(events: Sequence[int], inputs: Sequence[TensorRow], outputs: Sequence[TensorRow]) -> tuple[str, list[int]]:
    """The order of allocations in tokens, and the sizes that are not those of a tensor of the call."""
    named: dict[int, str] = {}
    for index, tensor in enumerate(inputs):
        size = nbytes(tensor)
        named.setdefault(size // DTYPE_BYTES[tensor[1]] * 4, f"f{index}")
    for side, tensors in (("i", inputs), ("o", outputs)):
        for index, tensor in reversed(list(enumerate(tensors))):
            named[nbytes(tensor)] = f"{side}{index}"
    tokens: list[str] = []
    sizes: list[int] = []
    alive: dict[int, int] = {}
    taken: set[str] = set()
    made = 0
    for event in events:
        if event > 0:
            token = named.get(event, "?")
            if token in taken and token[0] == "o":
                token = next(
                    (f"o{i}" for i, t in enumerate(outputs) if nbytes(t) == event and f"o{i}" not in taken), token
                )
            taken.add(token)
            alive[made] = event
            made += 1
        else:
            place = next((i for i in reversed(alive) if alive[i] == -event), None)
            token = "!" if place is None else f"-{place}"
            if place is not None:
                del alive[place]
        if token in "?!":
            sizes.append(abs(event))
        tokens.append(token)
    return " ".join(tokens), sizes


def plain(outputs: Sequence[TensorRow], views: Sequence[int]) -> str:
    """What a call allocates if nothing else is said: each output that is no view and not empty."""
    made = zip(outputs, views, strict=True)
    return " ".join(f"o{i}" for i, (tensor, view) in enumerate(made) if view < 0 and nbytes(tensor))


def replayed(
    order: str, inputs: Sequence[TensorRow], outputs: Sequence[TensorRow], size: Callable[[], int]
) -> tuple[int, ...]:
    """Inverse of `describe`; `size` gives the next size."""
    events: list[int] = []
    made: list[int] = []
    for token in order.split(" ") if order else ():
        if token[0] == "-":
            events.append(-made[int(token[1:])])
            continue
        if token == "!":
            events.append(-size())
            continue
        if token == "?":
            bytes_ = size()
        else:
            tensor = (outputs if token[0] == "o" else inputs)[int(token[1:])]
            bytes_ = nbytes(tensor)
            if token[0] == "f":
                bytes_ = bytes_ // DTYPE_BYTES[tensor[1]] * 4
        made.append(bytes_)
        events.append(bytes_)
    return tuple(events)


class CallWriter:
    """Collects the measured rows of cases; relatives added one after the other compress best."""

    def __init__(self) -> None:
        self.calls, self.programs, self.allocations = Rows(), Rows(), Rows()
        self.rows: list[dict[str, Any]] = []

    def program(self, calls: Sequence[MeasuredCall], shapes: Shapes, dtype: str) -> tuple[int, ...]:
        """Rows of `calls` of a sequence."""
        known: dict[int, int] = {}
        found = []
        for call in calls:
            if id(call) not in known:
                known[id(call)] = self.calls(symbolic(call, shapes, dtype))
            found.append(known[id(call)])
        return tuple(found)

    def add(self, case: str, network: str, program: tuple[int, ...], measured: OperatorRows) -> None:
        """Adds a case whose sequence `program` gave."""
        row: dict[str, Any] = {"case": case, **{key: [] for key in SEQUENCE_COLUMNS}}
        row["program"] = self.programs((network, program, tuple(measured.node.tolist())))
        last: dict[int, tuple[str, list[int]]] = {}
        surplus: list[int] = []
        described: dict[int, tuple[str, list[int], str]] = {}
        for index, (number, call) in enumerate(zip(program, measured.calls, strict=True)):
            if id(call) not in described:
                said = describe(call.events, call.inputs, call.outputs)
                described[id(call)] = (*said, plain(call.outputs, call.views))
            order, sizes, expected = described[id(call)]
            if last.get(number, (expected, [])) == (order, sizes):
                row["allocation"].append(0)
            else:
                row["allocation"].append(1 + self.allocations(order))
                row["size"] += sizes
            last[number] = order, sizes
            net, peak = levels(call.events)
            more, above = call.net_bytes - net, call.peak_bytes - peak
            if more or above:
                surplus.append(index)
                row["surplus_net"].append(more)
                row["surplus_peak"].append(above - more)
        row["surplus_row"] = _differences(surplus)
        row["freed"] = measured.freed_bytes.tolist()
        row["kernels"] = measured.kernels.tolist()
        row["kernel_ns"] = np.rint(measured.kernel_us.astype(np.float64) * 1e3).astype(np.int64).tolist()
        self.rows.append(row)

    def write(self, root: Path) -> dict[str, int]:
        """Writes the four files; gives the bytes of each."""
        import pyarrow as arrow

        ints, longs, texts = arrow.list_(arrow.int32()), arrow.list_(arrow.int64()), arrow.string()
        programs, calls = list(self.programs.index), list(self.calls.index)
        kinds = {"size": longs, "freed": longs, "surplus_net": longs, "surplus_peak": longs}
        tables: dict[str, dict[str, tuple[Any, Sequence[Any]]]] = {
            "calls": {key: (texts, [call[i] for call in calls]) for i, key in enumerate(CALL_COLUMNS)},
            "programs": {
                "network": (texts, [network for network, _, _ in programs]),
                "call": (ints, [_differences(numbers) for _, numbers, _ in programs]),
                "node": (ints, [_differences(nodes) for _, _, nodes in programs]),
            },
            "allocations": {"order": (texts, list(self.allocations.index))},
            "sequences": {
                "case": (texts, [row["case"] for row in self.rows]),
                "program": (arrow.int32(), [row["program"] for row in self.rows]),
                **{key: (kinds.get(key, ints), [row[key] for row in self.rows]) for key in SEQUENCE_COLUMNS},
            },
        }
        return {f"{name}.parquet": write_table(root / f"{name}.parquet", columns) for name, columns in tables.items()}


class CallReader:
    """The measured rows of a folder, each case put together when it is asked for."""

    def __init__(self, root: Path) -> None:
        self._columns = read_columns(root / "sequences.parquet")
        self._place = {str(case): index for index, case in enumerate(self._columns["case"].to_pylist())}
        self._programs = read_columns(root / "programs.parquet")
        self._allocations: list[str] = [row["order"] for row in read_rows(root / "allocations.parquet")]
        columns = read_columns(root / "calls.parquet")
        self._calls: list[SymbolicCall] = list(zip(*(columns[key].to_pylist() for key in CALL_COLUMNS), strict=True))
        self._program = lru_cache(maxsize=256)(self._read_program)

    def __contains__(self, case: str) -> bool:
        return case in self._place

    def _read_program(self, number: int) -> tuple[list[int], list[int]]:
        return _sums(self._programs["call"][number].as_py()), _sums(self._programs["node"][number].as_py())

    def operators(self, case: str, batch: int, dtype: str) -> OperatorRows:
        """Measured rows of a case. KeyError if there are none."""
        place = self._place[case]
        row = {key: self._columns[key][place].as_py() for key in ("program", *SEQUENCE_COLUMNS)}
        numbers, nodes = self._program(row["program"])
        sizes = iter(row["size"])
        surplus = dict(zip(
            _sums(row["surplus_row"]), zip(row["surplus_net"], row["surplus_peak"], strict=True), strict=True
        ))  # fmt: skip
        last: dict[int, MeasuredCall] = {}
        calls = []
        for index, (number, code) in enumerate(zip(numbers, row["allocation"], strict=True)):
            call = last.get(number)
            if call is None or code:
                call = self._call(number, code, batch, dtype, lambda: next(sizes))
                last[number] = call
            if index in surplus:
                more, above = surplus[index]
                call = MeasuredCall(
                    call.target, call.inputs, call.arguments, call.outputs, call.views,
                    call.net_bytes + more, call.peak_bytes + more + above, call.events,
                )  # fmt: skip
            calls.append(call)
        return OperatorRows(
            calls=tuple(calls),
            node=np.asarray(nodes, dtype=np.int32),
            freed_bytes=np.asarray(row["freed"], dtype=np.int64),
            kernel_us=(np.asarray(row["kernel_ns"], dtype=np.float64) / 1e3).astype(np.float32),
            kernels=np.asarray(row["kernels"], dtype=np.int16),
        )

    def _call(self, number: int, code: int, batch: int, dtype: str, size: Callable[[], int]) -> MeasuredCall:
        written = self._calls[number]
        inputs, arguments, outputs = concrete(written, batch, dtype)
        views = tuple(map(int, written[4].split(" "))) if written[4] else ()
        order = self._allocations[code - 1] if code else plain(outputs, views)
        events = replayed(order, inputs, outputs, size)
        return MeasuredCall(written[0], inputs, arguments, outputs, views, *levels(events), events)
