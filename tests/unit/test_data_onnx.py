"""Fifty cases of the published data set, exported as ONNX: the same model as the graph that was stored of them?

python -m pytest tests/unit/test_data_onnx.py -rs       # with timm, transformers and onnxscript; half an hour
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from dippm.artifact import open_artifact
from dippm.case import Mode, Runtime
from dippm.data import CaseRow, DataSet
from dippm.features import StaticFeatures, static_features
from dippm.frontend import load_graph
from dippm.zoo.case import InputShape, Network, ZooCase

ROOT = Path(__file__).parents[2] / "datasets" / "h200-v1"
SAMPLE = 50
LARGEST_MIB = 200.0
"""Weights of a sampled network: exported on a CPU in seconds."""
MACS_TOLERANCE = 0.005
LEAST_EQUAL = 0.9
"""Share of the sample that must be equal: what is left are operators that an exporter writes as others."""


@dataclass(frozen=True)
class Compared:
    """One case as the exported program and as the ONNX file give it."""

    name: str
    stored: StaticFeatures
    exported: StaticFeatures

    @property
    def differences(self) -> list[str]:
        """What differs by more than the tolerance."""
        ours, theirs = self.stored, self.exported
        found = [
            f"{what} {getattr(ours, what)} -> {getattr(theirs, what)}"
            for what in ("convs", "denses")
            if getattr(ours, what) != getattr(theirs, what)
        ]
        if abs(theirs.macs - ours.macs) > MACS_TOLERANCE * max(1, ours.macs):
            found.append(f"macs {ours.macs} -> {theirs.macs}")
        return found


def sampled(data: DataSet) -> list[CaseRow]:
    """One case each of fifty networks, drawn by a hash of the case's id."""
    chosen: dict[str, CaseRow] = {}
    for case in sorted(data.cases(joined=True), key=lambda c: hashlib.sha256(c.id.encode()).digest()):
        small = case.weights_mib is not None and case.weights_mib <= LARGEST_MIB
        if case.mode is Mode.INFERENCE and case.runtime in (Runtime.EAGER, Runtime.GRAPH) and small:
            chosen.setdefault(case.network, case)
    return list(chosen.values())[:SAMPLE]


def compare(data: DataSet, case: CaseRow, networks: dict[str, Network]) -> Compared:
    """Exports a case's network and holds it against the stored graph."""
    from dippm.measure.onnxruntime_export import export

    with tempfile.TemporaryDirectory() as folder:
        file = export(ZooCase(networks[case.network], case.batch), Path(folder))
        exported = static_features(load_graph(open_artifact(str(file.path)), batch=case.batch))
    return Compared(f"{case.architecture} b{case.batch}", static_features(data.graph(case)), exported)


def networks_of(data: DataSet) -> dict[str, Network]:
    """The networks of the data set, as their rows spell them."""
    return {
        row["network"]: Network(
            row["architecture"], row["source"], row["model"], json.loads(row["kwargs"]),
            tuple(InputShape(tuple(i["shape"]), i["dtype"], i["high"]) for i in json.loads(row["inputs"])),
        )
        for row in data.rows("cases")
    }  # fmt: skip


@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
def test_a_sample_of_fifty_is_the_same_model_as_onnx() -> None:
    for package in ("timm", "transformers", "onnxscript"):
        pytest.importorskip(package, reason=f"exporting the zoo needs {package}: pip install 'dippm[train]' onnxscript")
    data = DataSet(ROOT)
    networks, differing = networks_of(data), []
    cases = sampled(data)
    for case in cases:
        try:
            found = compare(data, case, networks).differences
        except Exception as error:  # one that cannot be exported or read is listed like one that differs
            found = [f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"]
        if found:
            differing.append(f"{case.architecture} b{case.batch}: {', '.join(found)}")
        print(case.architecture, found or "equal", flush=True)
    assert len(cases) == SAMPLE
    assert len(differing) <= (1 - LEAST_EQUAL) * SAMPLE, "\n".join(differing)
