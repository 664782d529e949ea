"""The fixed splits: what is locked, held back and left out, in training and as torch-geometric has it."""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.test_data import RUNS, chain, row

import dippm.data
from dippm.data import DataSet, geometric, splits
from dippm.data.footprints import evenly_spread
from dippm.data.pack import Graphs, pack, write
from dippm.data.splits import FOLDS, RANDOM, fold_of, locked, part_of
from dippm.errors import ArtifactUnreachable, ModelFormatError
from dippm.evaluate.command import add_arguments, run
from dippm.train.corpus import UNMEASURED, Corpus
from dippm.train.examples import read_cases
from dippm.train.split import folds, without_held_back_operators
from dippm.zoo.catalogue import broad

ROOT = Path(__file__).parents[2] / "datasets" / "h200-v1"
LOCKED = min(locked())
FAMILIES = ("resnet", "vit", LOCKED, RANDOM, RANDOM)


def test_six_super_families_are_locked_and_none_of_the_papers() -> None:
    assert len(locked()) == 6
    assert not locked() & splits.PAPERS
    assert locked() <= {member.super_family for member in broad()}


def test_every_super_family_has_one_place() -> None:
    for case in DataSet(ROOT).cases(status=None):
        if case.super_family in locked():
            assert fold_of(case.super_family, case.architecture) is None
        else:
            assert fold_of(case.super_family, case.architecture) in range(FOLDS)


def test_what_is_new_joins_the_folds_and_moves_nothing() -> None:
    body = {"locked": ["a"], "folds": [["b"], ["c"], [], [], []]}
    networks, sources = {"a": 9, "b": 5, "c": 4, "d": 3, "e": 2, RANDOM: 99}, dict.fromkeys("abcde", "timm")
    more = splits.extend(body, networks, {**sources, RANDOM: "random"})
    assert more == {"locked": ["a"], "folds": [["b"], ["c"], ["d"], ["e"], []]}
    assert splits.extend(more, networks, {**sources, RANDOM: "random"}) == more


def test_locked_ones_are_drawn_among_those_with_enough_members() -> None:
    counts = {f"family{i}": 8 + i % 3 for i in range(9)} | {"small": 7, "looked_at": 50, "resnet": 99, RANDOM: 999}
    drawn = splits.draw_locked(counts, ["looked_at"])
    assert drawn == splits.draw_locked(dict(reversed(counts.items())), ["looked_at"])
    assert len(drawn) == 6
    assert not {"small", "looked_at", "resnet", RANDOM} & set(drawn)


def test_the_random_split_is_the_papers_70_15_15() -> None:
    parts = [part_of(f"case{i}") for i in range(4000)]
    assert [parts.count(name) / 4000 for name in ("train", "validation", "test")] == pytest.approx(
        [0.7, 0.15, 0.15], abs=0.02
    )


def test_training_folds_follow_the_file() -> None:
    names = ["resnet", "vit", RANDOM, "resnet", "of_ones_own", "of_ones_own"]
    found = folds(names, ["resnet18", "vit_b", "random_7", "resnet50", "x", "y"]).tolist()
    assert found[0] == found[3] == fold_of("resnet", "resnet18")
    assert found[1] == fold_of("vit", "vit_b")
    assert found[2] == fold_of(RANDOM, "random_7")
    assert found[4] == found[5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one small network under the names of several families."""
    cases: dict[str, dict[str, Any]] = {}
    rows = []
    for index, family in enumerate(FAMILIES):
        name = f"abc{index}-b2-fp32-inference-eager-default"
        network = {"architecture": f"{family}_{index}", "source": "x", "model": "x", "kwargs": {}, "inputs": []}
        cases[name] = {
            "id": name, "network": network, "family": family, "super_family": family, "batch": 2, "precision": "fp32",
            "mode": "inference", "runtime": "eager", "allocator": "default",
        }  # fmt: skip
        measured = {**row("first", allocated_mib=3.0 + index, activations_mib=1.0), "case": name}
        measured["operators"] |= {"sequence": [0, 1], "freed_bytes": [0, 0], "kernel_us": [3.5, 1.0], "kernels": [2, 1]}
        rows.append(measured)
    graphs = Graphs([((f"abc{index}", 61, "float32"), chain()) for index in range(len(FAMILIES))])
    root = tmp_path_factory.mktemp("data")
    write(pack([*RUNS, *rows], cases, graphs), root)
    return root


def test_training_and_evaluation_leave_locked_super_families_out(folder: Path) -> None:
    assert [c.group for c in read_cases(folder)] == ["resnet", "vit", RANDOM, RANDOM]
    assert [c.group for c in read_cases(folder, release=True)] == [LOCKED]


def test_evaluation_of_unseen_architectures_leaves_the_training_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    seen = tmp_path / "heldback.csv"
    run(parser.parse_args(["--data", str(folder), "--json", "--out", str(seen)]))
    assert json.loads(capsys.readouterr().out)["cases"] == 4
    text = [line for line in seen.read_text().splitlines() if "vit_1" not in line]
    seen.write_text("\n".join(text) + "\n")
    run(parser.parse_args(["--data", str(folder), "--json", "--unseen", str(seen)]))
    unseen = json.loads(capsys.readouterr().out)
    assert (unseen["cases"], "training never saw" in unseen["of"]) == (1, True)
    run(parser.parse_args(["--data", str(folder), "--json", "--sample", "2"]))
    sample = json.loads(capsys.readouterr().out)
    assert sample["cases"] == 2
    assert "those that it was trained on among them (--unseen CSV leaves them out)" in sample["of"]
    with pytest.raises(ArtifactUnreachable, match=r"heldback.csv.gz of the bundle's training"):
        run(parser.parse_args(["--data", str(folder), "--unseen", str(tmp_path / "none.csv")]))


def test_evaluate_says_what_is_no_file_of_its_own_and_no_fold(tmp_path: Path) -> None:
    other = tmp_path / "README.md"
    other.write_text("# Not a table\n\nof rows\n")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ModelFormatError, match="holds no held-back rows"):
        run(parser.parse_args(["--heldback", str(other)]))
    with pytest.raises(ArtifactUnreachable, match="there are folds 0 to 4"):
        run(parser.parse_args(["--heldback", "docs/accuracy/heldback.csv.gz", "--fold", "7"]))


def test_evaluate_looks_at_locked_cases_only_when_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args(["--data", str(folder), "--json"]))
    assert json.loads(capsys.readouterr().out)["architectures"] == 4
    run(parser.parse_args(["--data", str(folder), "--json", "--release"]))
    assert json.loads(capsys.readouterr().out)["architectures"] == 1
    with pytest.raises(ArtifactUnreachable, match="name it with --data FOLDER"):
        run(parser.parse_args(["--release"]))


def test_random_networks_hand_over_nothing_of_a_held_back_operator(folder: Path) -> None:
    cases = read_cases(folder)
    corpus = Corpus.of(cases)
    groups = corpus.groups.tolist()
    hidden = without_held_back_operators(corpus, np.array([groups.index("vit")]))
    for g, group in enumerate(groups):
        here = hidden.nodes_of(g)
        if group == RANDOM:
            assert (hidden.workspace_class[here] == UNMEASURED).all()
            assert np.isnan(hidden.kernel_us[here]).all()
        else:
            np.testing.assert_array_equal(hidden.workspace_class[here], corpus.workspace_class[here])


def test_load_gives_graphs_with_fixed_splits(folder: Path, tmp_path: Path) -> None:
    data = dippm.data.load(folder, processed=tmp_path)
    assert len(data) == len(FAMILIES)
    graph = data[0]
    assert graph.x.shape == (3, 32)
    assert graph.edge_index.tolist() == [[0, 1], [1, 2]]
    assert graph.y[0, :2].tolist() == [3.0, 1.0]
    assert torch.isnan(graph.y[0, 3])
    assert graph.workspace_bytes.tolist() == [1536, 0, -1]
    assert data.cases[int(data[2].index)].super_family == LOCKED
    assert sum(len(part) for part in data.random_split()) == 4
    assert [int(g.index) for g in data.release()] == [2]
    within = [i for i, row in enumerate(data.cases) if 750 <= (row.footprint_mib or 0) <= 120_000 and i != 2]
    assert [int(g.index) for g in data.evenly_spread()] == within
    for part in (data.index_select([0, 2]), data.index_select([2, 3, 4])):
        assert sum(map(len, part.random_split())) == len(part) - 1
        assert sum(map(len, part.leave_families_out(0))) == len(part) - 1
        assert [int(g.index) for g in part.release()] == [2]


def test_as_many_cases_of_every_doubling() -> None:
    footprints = {f"{mib}-{i}": mib for mib, count in ((800, 50), (1_600, 20), (100_000, 30)) for i in range(count)}
    footprints |= {"small": 700.0, "huge": 130_000.0}
    found = evenly_spread(footprints.items(), 25)
    assert Counter(footprints[name] for name in found) == {800: 25, 1_600: 20, 100_000: 8}
    assert found == evenly_spread(reversed(footprints.items()), 25)
    assert evenly_spread(footprints.items(), 10) < found


def test_a_graph_is_put_together_when_it_is_asked_for_and_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[int]()
    whole = geometric._arrays
    monkeypatch.setattr(geometric, "_arrays", lambda data, row, index: made.append(index) or whole(data, row, index))
    data = dippm.data.load(folder, processed=tmp_path)
    train, _ = data.leave_families_out(0)
    assert made == [], "neither the data set nor its parts need a graph"
    first = data[3]
    assert made == [3]
    again = dippm.data.load(folder, processed=tmp_path)
    assert torch.equal(again[3].x, first.x)
    assert made == [3], "another process finds it"
    first.x = None
    assert data[3].x is not None, "what is handed out is one's own"
    assert len(train) < len(data) == len(FAMILIES)


def test_workers_of_a_loader_read_the_same_graphs(folder: Path, tmp_path: Path) -> None:
    data = dippm.data.load(folder, processed=tmp_path)
    expected = [graph.index.item() for graph in data]
    found = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2, multiprocessing_context="spawn")
    assert sorted(graph.index.item() for graph in found) == expected


def test_a_disk_that_keeps_nothing_is_no_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    data = dippm.data.load(folder, processed=tmp_path / "file" / "processed")
    assert data[0].x.shape == (3, 32)


def test_damaged_graphs_are_made_again(folder: Path, tmp_path: Path) -> None:
    x = dippm.data.load(folder, processed=tmp_path)[0].x
    (kept,) = tmp_path.glob("graphs-*.sqlite")
    with closing(sqlite3.connect(kept)) as connection, connection:
        assert connection.execute("UPDATE arrays SET body = substr(body, 1, 40)").rowcount == 1
    assert torch.equal(dippm.data.load(folder, processed=tmp_path)[0].x, x)
    kept.write_bytes(b"no database" * 1000)
    assert torch.equal(dippm.data.load(folder, processed=tmp_path)[0].x, x)


def test_a_fold_leaves_whole_super_families_out(folder: Path, tmp_path: Path) -> None:
    data = dippm.data.load(folder, processed=tmp_path)
    fold = fold_of("vit", "vit_1")
    assert fold is not None
    train, test = data.leave_families_out(fold)
    names = [data.cases[int(g.index)].super_family for g in test]
    assert "vit" in names
    assert not {LOCKED} & {data.cases[int(g.index)].super_family for part in (train, test) for g in part}
    for graph in train:
        family = data.cases[int(graph.index)].super_family
        assert family != "vit"
        assert (graph.workspace_bytes[:2] == -1).all() == (family == RANDOM)
    assert data[0].workspace_bytes[0] == 1536
    with pytest.raises(ValueError, match="folds 0 to 4"):
        data.leave_families_out(5)
