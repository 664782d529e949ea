"""Values on disk between runs: bounded, healed, shared by processes; and graphs that are not converted twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest
import torch
from tests.unit.test_fetch_skim import write_onnx

from dippm.artifact import Artifact, open_artifact
from dippm.errors import InputShapeError
from dippm.frontend import InputSpec, kept_graphs, load_graph
from dippm.frontend.batch_template import NotLinear, at_batch, template_of
from dippm.frontend.kept_graphs import KeptGraphs
from dippm.graph import ModelGraph
from dippm.kept import Kept


def test_what_one_puts_another_finds(tmp_path: Path) -> None:
    Kept(tmp_path, 1000).put("a", b"1")
    other = Kept(tmp_path, 1000)
    assert other.get("a") == b"1"
    assert other.get("b") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_damaged_value_is_thrown_away(tmp_path: Path, damage: str) -> None:
    kept = Kept(tmp_path, 1000)
    kept.put("a", b"value")
    path = next(tmp_path.iterdir())
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    elif damage == "swap":  # whole, but of another key
        kept.put("b", b"other")
        content = bytearray(next(p for p in tmp_path.iterdir() if p != path).read_bytes())
    path.write_bytes({"cut": content[:10], "empty": b""}.get(damage, content))
    assert kept.get("a") is None
    assert not path.exists()
    kept.put("a", b"again")
    assert kept.get("a") == b"again"


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 400)
    for number, key in enumerate("abc"):
        kept.put(key, b"x" * 80)
        os.utime(max(tmp_path.iterdir(), key=os.path.getctime), (number + 1, number + 1))
    assert kept.get("a") is not None, "which makes it the newest"
    kept.put("d", b"x" * 80)
    assert kept.held_bytes <= 400
    assert kept.get("b") is None
    assert kept.get("a")
    assert kept.get("d")
    kept.put("large", b"x" * 500)
    assert kept.get("large") is None
    assert kept.get("d"), "nothing went for what does not fit anyway"


def test_half_written_value_of_a_dead_process_goes_after_an_hour(tmp_path: Path) -> None:
    kept = Kept(tmp_path, 1000)
    fresh, old = tmp_path / "new-fresh", tmp_path / "new-old"
    for path in (fresh, old):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    kept.put("a", b"1")
    assert fresh.exists()
    assert not old.exists()


def _hammer(folder: Path, seed: int) -> None:
    kept, chance = Kept(folder, 3000), random.Random(seed)
    for _ in range(400):
        key = str(chance.randrange(12))
        if chance.random() < 0.5:
            kept.put(key, key.encode() * 300)
        value = kept.get(key)
        assert value in (None, key.encode() * 300), value


def test_processes_at_once_never_see_a_wrong_value(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_hammer, args=(tmp_path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    kept = Kept(tmp_path, 3000)
    kept.put("last", b"")
    assert kept.held_bytes <= 3000


class Counting:
    """Converts in this process, and counts."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(
        self, artifact: Artifact, *, batch: int, inputs: tuple[InputSpec, ...] | None, kept: object
    ) -> ModelGraph:
        self.batches.append(batch)
        return load_graph(artifact, batch=batch, inputs=inputs)


class Net(torch.nn.Module):
    """Convolution, a reshape by the batch, attention: what has the batch in attributes and not only in shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = x.reshape(x.shape[0], 8, -1).transpose(1, 2)
        y: torch.Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
        return y


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(Net().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_another_batch_is_not_converted_again(tmp_path: Path, exported: Path, kind: str) -> None:
    path = exported
    if kind == "onnx":
        path = tmp_path / "m.onnx"
        write_onnx(path, width=64)
    counting = Counting()
    graphs = KeptGraphs(Kept(tmp_path / "kept", 10_000_000), counting)
    artifact = open_artifact(path)
    first = graphs.load(artifact, content="c", batch=16)
    graphs.settle()
    assert counting.batches == [16, 3, 8], "the one that was asked for first, and two for the template"
    for batch in (16, 4, 128, 3):
        assert graphs.load(artifact, content="c", batch=batch) == load_graph(artifact, batch=batch)
    other_process = KeptGraphs(Kept(tmp_path / "kept", 10_000_000), counting)
    assert other_process.load(artifact, content="c", batch=32).digest == load_graph(artifact, batch=32).digest
    assert len(counting.batches) == 3
    assert other_process.load(artifact, content="new upload", batch=16) == first
    other_process.settle()
    assert len(counting.batches) == 6


def test_graphs_of_another_form_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_onnx(tmp_path / "m.onnx", width=64)
    artifact, counting = open_artifact(tmp_path / "m.onnx"), Counting()
    kept = Kept(tmp_path / "kept", 10_000_000)
    for form, converted in (("same", 3), ("other", 6), ("same", 6)):
        with monkeypatch.context() as patched:
            if form == "other":
                patched.setattr(kept_graphs, "FORM", kept_graphs.FORM + 1)
            graphs = KeptGraphs(kept, counting)
            graphs.load(artifact, content="c", batch=16)
            graphs.load(artifact, content="c", batch=16)
            graphs.settle()
            graphs.load(artifact, content="c", batch=32)
        assert len(counting.batches) == converted, "neither a graph nor a template of the other one"


def test_damaged_graphs_are_converted_again(tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", width=64)
    artifact, counting = open_artifact(tmp_path / "m.onnx"), Counting()
    graphs = KeptGraphs(Kept(tmp_path / "kept", 10_000_000), counting)
    expected = graphs.load(artifact, content="c", batch=16)
    graphs.settle()
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:-2] + b"!!")
    assert graphs.load(artifact, content="c", batch=16) == expected
    graphs.settle()
    assert len(counting.batches) == 6


def test_file_of_one_batch_is_converted_once_and_says_so_for_others(tmp_path: Path) -> None:
    class Noisy(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.rand(x.shape[0], 1, 1, 1))

    program = torch.export.export(Noisy().eval(), (torch.zeros(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "fixed.pt2")
    artifact, counting = open_artifact(tmp_path / "fixed.pt2"), Counting()
    graphs = KeptGraphs(Kept(tmp_path / "kept", 10_000_000), counting)
    graphs.load(artifact, content="c", batch=2)
    graphs.settle()
    learnt = len(counting.batches)
    graphs.load(artifact, content="c", batch=2)
    assert len(counting.batches) == learnt
    for _ in range(2):
        with pytest.raises(InputShapeError, match="fixed batch of 2"):
            graphs.load(artifact, content="c", batch=4)
    graphs.settle()
    assert len(counting.batches) == learnt + 2, "that there is no template is known"


def test_file_that_is_let_go_meanwhile_says_nothing_of_its_batches(tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", width=64)
    artifact, counting = open_artifact(tmp_path / "m.onnx"), Counting()

    def once(*arguments: object, **named: object) -> ModelGraph:
        graph = counting(*arguments, **named)  # type: ignore[arg-type]
        (tmp_path / "m.onnx").unlink(missing_ok=True)
        return graph

    kept = Kept(tmp_path / "kept", 10_000_000)
    graphs = KeptGraphs(kept, once)
    graphs.load(artifact, content="c", batch=16)
    graphs.settle()
    write_onnx(tmp_path / "m.onnx", width=64)
    again = KeptGraphs(kept, counting)
    again.load(artifact, content="c", batch=4)
    again.settle()
    before = len(counting.batches)
    again.load(artifact, content="c", batch=99)
    assert len(counting.batches) == before, "a template was made after all"


def test_sizes_that_are_no_line_have_no_template(tmp_path: Path) -> None:
    write_onnx(tmp_path / "m.onnx", width=64)
    three, eight = (load_graph(open_artifact(tmp_path / "m.onnx"), batch=b) for b in (3, 8))
    form = template_of(three, eight)
    assert at_batch(form, 5) == load_graph(open_artifact(tmp_path / "m.onnx"), batch=5)
    assert at_batch(form, 1 << 40) is None, "its door says by name what is too large"
    write_onnx(tmp_path / "other.onnx", width=100)
    with pytest.raises(NotLinear):
        template_of(three, load_graph(open_artifact(tmp_path / "other.onnx"), batch=8))


def test_a_folder_that_cannot_be_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = Kept(tmp_path / "file" / "graphs", 1000)
    kept.put("k", b"value")
    assert kept.get("k") is None
