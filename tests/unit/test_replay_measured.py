"""The eager replay against measured cases whose lifetimes a rule has once got wrong, each in its smallest form."""

from __future__ import annotations

from pathlib import Path

import pytest

from dippm.replay import replay
from dippm.replay.workspace import cublas_bytes
from dippm.train.labels import MeasuredCase

pytest.importorskip("pyarrow", reason="reads the data set: pip install pyarrow")

ROOT = Path(__file__).parents[2] / "datasets" / "h200-v1"


@pytest.fixture(scope="module")
def cases() -> dict[str, MeasuredCase]:
    from dippm.train.examples import read_cases

    return {case.id: case for case in read_cases(ROOT)}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("7968f989554d-b1-fp32-inference-eager-default", id="dpn68: pairs are handed from block to block"),
        pytest.param("be859d7588e0-b3-fp16-inference-eager-default", id="dpn92"),
        pytest.param("fba3dd451534-b6-bf16-inference-eager-default", id="token encoder: layers in a loop"),
        pytest.param("b6e59cabde46-b1-fp16-inference-eager-default", id="gpt2: outputs are tuples"),
        pytest.param(
            "42c523dbb358-b310-tf32-autograd-eager-default", id="swin: the copies of split-off heads are saved"
        ),
        pytest.param(
            "939e47e250a3-b12-bf16-inference-eager-default", id="fpn: a list that a comprehension goes through"
        ),
        pytest.param("0f7062585eab-b64-bf16-autograd-eager-default", id="xcit: copies of turned heads"),
    ],
)
def test_activations_are_within_one_percent(name: str, cases: dict[str, MeasuredCase]) -> None:
    measured = cases[name]
    graph, case = measured.source.graph(), measured.case
    known = measured.source.operators(graph).workspace_bytes.clip(min=0).tolist()
    memory = replay(
        graph, runtime=case.runtime, allocator=case.allocator, mode=case.mode, workspaces=known,
        cublas_bytes=cublas_bytes("H200"),
    )  # fmt: skip
    kept = memory.weights_bytes + memory.inputs_bytes
    assert memory.allocated_bytes - kept == pytest.approx(measured.labels.allocated_bytes - kept, rel=0.01)
