"""The results as CSV, and the page that is rendered from them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """What became of one cell."""

    family: str
    model: str
    door: str
    detail: str
    batch: int
    outcome: str = ""
    """`ok`, `miss` (there is a file, and it was not predicted) or `no file` (its framework does not write one)."""
    seconds: float | None = None
    """Path to prediction, warm."""
    memory_mib: int | None = None
    weights_mib: float | None = None
    gmacs: float | None = None
    convs: int | None = None
    denses: int | None = None
    operators: int | None = None
    mig_profile: str = ""
    reason: str = ""
    processor: str = ""
    load: float | None = None
    """Load average (1 min) when it was predicted."""
    cpu_seconds: float | None = None
    """User and system time of all processes that took part, which other work on the machine disturbs less."""

    @property
    def key(self) -> str:
        return "/".join(filter(None, (self.family, self.model, self.door, self.detail)))


def read_results(path: Path) -> dict[str, Result]:
    """The results so far, by the cell's key."""
    if not path.exists():
        return {}
    kinds = {"batch": int, "seconds": float, "memory_mib": int, "weights_mib": float, "gmacs": float, "convs": int,
             "denses": int, "operators": int, "load": float, "cpu_seconds": float}  # fmt: skip
    found = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            typed = {k: (kinds[k](v) if v else None) if k in kinds else v for k, v in row.items()}
            result = Result(**typed)
            found[result.key] = result
    return found


def write_results(path: Path, results: Mapping[str, Result]) -> None:
    """All of them, in the order in which they came."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Result)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(r) for r in results.values())


def render(results: Iterable[Result]) -> str:
    """The page."""
    found = list(results)
    files = [r for r in found if r.outcome != "no file"]
    missed = [r for r in files if r.outcome != "ok"]
    unwritten = [r for r in found if r.outcome == "no file"]
    named = [r for r in found if r.door in PYTORCH and not r.detail.startswith("opset")]
    parts = [
        HEAD.format(
            files=len(files),
            ok=len(files) - len(missed),
            missed=len(missed),
            percent=100 * len(missed) / max(len(files), 1),
            architectures=len({r.model for r in files}),
            machine=_machine(found),
        )
    ]
    parts.append("## By family\n")
    parts.append(_by_door(named, sorted({r.door for r in named}, key=PYTORCH.index)))
    opsets = [r for r in found if r.detail.startswith("opset")]
    if opsets:
        parts.append("## ONNX by opset\n\nThe batch in these files is a fixed 1; they are asked at 8.\n")
        parts.append(_by_opset(opsets))
    for family, text in OTHERS.items():
        if rows := [r for r in found if r.family == family]:
            parts.append(f"## {family}\n\n{text}\n")
            parts.append(_plain(rows))
    parts.append(f"## Missed\n\n{_reasons(missed) or 'None.'}\n")
    if unwritten:
        parts.append(f"## Not written by the framework\n\nNo file, so no cell is counted.\n\n{_reasons(unwritten)}\n")
    return "\n".join(parts)


PYTORCH = ("pt2", "torchscript", "onnx-torchscript", "onnx-dynamo")
TITLES = {
    "pt2": "`.pt2`", "torchscript": "TorchScript", "onnx-torchscript": "ONNX, TorchScript exporter",
    "onnx-dynamo": "ONNX, dynamo exporter",
}  # fmt: skip
OTHERS = {
    "Hugging Face": "Folders of `config.json` and safetensors headers; text models with 128 or 512 tokens.",
    "TensorFlow": "Keras (`.keras`, `.h5`), SavedModel and TFLite.",
    "Paddle": "Inference models (`.json` or `.pdmodel`).",
}
HEAD = """# Models that load and predict

Written by `bench/models` from `models.csv`: each file is made by its own framework in a temporary folder, without
trained weights, parsed in the limited child process and predicted at a batch of 8 where nothing else is said
(A100-SXM4-40GB, fp32).

{files} files of {architectures} architectures: {ok} predicted, {missed} missed ({percent:.1f} %).

A cell is CPU seconds from path to prediction in a warm process (user and system time of this process, the parsing
child and the converter) and the footprint in MiB. CPU seconds, because the machine had other work: wall seconds are in
`models.csv` beside them, with the load they were taken under. † is a file whose batch is a fixed 1. Taken on {machine}.
Footprints are of the weights and rules of the day on which a row was taken; both have changed since.
"""


def _machine(results: list[Result]) -> str:
    names = sorted({r.processor for r in results if r.processor})
    loads = sorted(r.load for r in results if r.load is not None)
    if not loads:
        return "no machine yet"
    return (
        f"{' and '.join(names)}, with a load of {loads[0]:.0f} to {loads[-1]:.0f} (median {loads[len(loads) // 2]:.1f})"
    )


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    mark = "†" if result.detail == "batch fixed at 1" else ""
    if result.outcome != "ok":
        return f"{'missed' if result.outcome == 'miss' else 'no file'}{mark}"
    return f"{_seconds(result)} s, {result.memory_mib:,}{mark}"


def _seconds(result: Result) -> str:
    """CPU seconds; wall seconds, which are marked, where only those were taken."""
    return f"{result.seconds:.2f} (wall)" if result.cpu_seconds is None else f"{result.cpu_seconds:.2f}"


def _by_door(results: list[Result], doors: list[str]) -> str:
    rows: dict[tuple[str, str], dict[str, Result]] = {}
    for r in results:
        rows.setdefault((r.family, r.model), {})[r.door] = r
    families = list(dict.fromkeys(family for family, _ in rows))
    lines = [["family", "model", *(TITLES[d] for d in doors)]]
    for family in families:
        for key in (k for k in rows if k[0] == family):
            lines.append([family, key[1], *(_cell(rows[key].get(d)) for d in doors)])
    return _markdown(lines)


def _by_opset(results: list[Result]) -> str:
    opset = {r.key: int(r.detail.split()[1].rstrip(",")) for r in results}
    columns = sorted(set(opset.values()))
    rows: dict[tuple[str, str], dict[int, Result]] = {}
    for r in results:
        rows.setdefault((r.model, TITLES[r.door].removeprefix("ONNX, ")), {})[opset[r.key]] = r
    lines = [["model", "exporter", *map(str, columns)]]
    for (model, exporter), cells in rows.items():
        lines.append([model, exporter, *(_short(cells.get(c)) for c in columns)])
    return _markdown(lines)


def _short(result: Result | None) -> str:
    if result is None or result.outcome != "ok":
        return "" if result is None else ("missed" if result.outcome == "miss" else "no file")
    return _seconds(result)


def _plain(results: list[Result]) -> str:
    lines = [["model", "door", "batch", "CPU seconds", "footprint MiB", "weights MiB", "GMACs", "profile"]]
    for r in results:
        door = " ".join(filter(None, (r.door, r.detail)))
        if r.outcome != "ok":
            lines.append([r.model, door, str(r.batch), _cell(r), "", "", "", ""])
        else:
            numbers = (_seconds(r), f"{r.memory_mib:,}", f"{r.weights_mib:,.0f}", f"{r.gmacs:,.1f}")
            lines.append([r.model, door, str(r.batch), *numbers, r.mig_profile])
    return _markdown(lines)


def _reasons(results: list[Result]) -> str:
    lines = [["cell", "reason"]]
    lines += [[r.key.replace("/", ", "), r.reason.replace("|", "\\|")] for r in results]
    return _markdown(lines) if results else ""


def _markdown(lines: list[list[str]]) -> str:
    head, *body = lines
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)) + "\n"
