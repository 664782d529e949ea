"""The network: featurizer, forward pass, training, tables and bundle, on graphs small enough to read."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dippm.case import Case, Mode, Precision, Runtime
from dippm.evaluate.heldback import FIGURES, read_rows
from dippm.graph import Attribute, ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm.network import bundle as bundle_module
from dippm.network import lookup
from dippm.network.alike import by_rows, neighbours_of, refined
from dippm.network.bundle import Bundle, NoWeightsError, load_bundle, read_bundle, write_bundle
from dippm.network.costs import ENERGY_COLUMNS, EnergyCost, HostCost
from dippm.network.featurizer import NODE_COLUMNS, STATIC_COLUMNS, both_ways, featurize
from dippm.network.forward import DENSE_NODES, forward, neighbours
from dippm.network.model import PMGNS, Hyperparameters
from dippm.network.schema import BundleMismatchError
from dippm.network.workload import workloads
from dippm.replay import replay
from dippm.train.command import finish
from dippm.train.corpus import Corpus
from dippm.train.featurise import corpus_of, in_reading_order
from dippm.train.finetune import network_of
from dippm.train.fit import Costs, assemble, table_of
from dippm.train.labels import CaseLabels, MeasuredCase, OperatorLabels
from dippm.train.networks import Plan, job_names, load_network, run, run_side_by_side, save_network
from dippm.train.trainer import Scales, Settings, predict_operators, train
from dippm.vocabulary import KINDS

torch.set_num_threads(1)
EAGER = Case(4, Precision.FP32, runtime=Runtime.EAGER)
TINY = Hyperparameters(hidden=48, head=32)
COSTS = Costs(
    gap_us=1.0,
    host=HostCost(20.0, np.full(len(KINDS), 5.0, dtype=np.float32)),
    energy=EnergyCost(100.0, dict.fromkeys(ENERGY_COLUMNS, 0.0)),
)


class Builder:
    """Collects values and operators in the order in which they are called."""

    def __init__(self, batch: int, dtype: str = "float32") -> None:
        self.batch, self.dtype = batch, dtype
        self.values: list[Value] = []
        self.operators: list[Operator] = []

    def value(self, kind: ValueKind, *shape: int, dtype: str | None = None) -> int:
        """A new input, parameter or constant."""
        self.values.append(Value(TensorSpec(shape, dtype or self.dtype), kind))
        return len(self.values) - 1

    def call(
        self,
        kind: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        alias: int | None = None,
        **attributes: Attribute,
    ) -> int:
        """One operator with one output."""
        self.values.append(
            Value(TensorSpec(tuple(shape), self.dtype), ValueKind.RESULT, producer=len(self.operators), alias_of=alias)
        )
        output = len(self.values) - 1
        self.operators.append(Operator(kind, f"aten.{kind}.default", tuple(inputs), (output,), attributes))
        return output

    def graph(self, inputs: Sequence[int], outputs: Sequence[int]) -> ModelGraph:
        """The finished graph."""
        return ModelGraph(
            tuple(self.values), tuple(self.operators), tuple(inputs), tuple(outputs), self.batch, format="pt2"
        )


def residual_network(
    batch: int, width: int = 16, blocks: int = 2, size: int = 16, dtype: str = "float32"
) -> ModelGraph:
    """conv, then blocks of conv, batch_norm, relu and an addition, then a mean and a linear layer."""
    b = Builder(batch, dtype)
    image = b.value(ValueKind.INPUT, batch, 3, size, size)
    x = b.call(
        "conv2d", (image, b.value(ValueKind.PARAMETER, width, 3, 3, 3)), (batch, width, size, size),
        kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1,
    )  # fmt: skip
    for _ in range(blocks):
        y = b.call(
            "conv2d", (x, b.value(ValueKind.PARAMETER, width, width, 3, 3)), (batch, width, size, size),
            kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1), groups=1,
        )  # fmt: skip
        y = b.call(
            "batch_norm", (y, *(b.value(ValueKind.PARAMETER, width) for _ in range(4))), (batch, width, size, size)
        )
        y = b.call("relu", (y,), (batch, width, size, size), alias=y)
        x = b.call("add", (x, y), (batch, width, size, size))
    x = b.call("adaptive_avg_pool2d", (x,), (batch, width, 1, 1), output_size=(1, 1))
    x = b.call("flatten", (x,), (batch, width), alias=x)
    x = b.call("linear", (x, b.value(ValueKind.PARAMETER, 10, width), b.value(ValueKind.PARAMETER, 10)), (batch, 10))
    return b.graph((image,), (x,))


def token_mixer(batch: int, width: int = 32, tokens: int = 12, layers: int = 2, dtype: str = "float32") -> ModelGraph:
    """Layers of layer_norm, linear, gelu, linear and an addition."""
    b = Builder(batch, dtype)
    x = start = b.value(ValueKind.INPUT, batch, tokens, width)
    for _ in range(layers):
        norm = (x, b.value(ValueKind.PARAMETER, width), b.value(ValueKind.PARAMETER, width))
        y = b.call("layer_norm", norm, (batch, tokens, width))
        y = b.call("linear", (y, b.value(ValueKind.PARAMETER, 4 * width, width)), (batch, tokens, 4 * width))
        y = b.call("gelu", (y,), (batch, tokens, 4 * width))
        y = b.call("linear", (y, b.value(ValueKind.PARAMETER, width, 4 * width)), (batch, tokens, width))
        x = b.call("add", (x, y), (batch, tokens, width))
    return b.graph((start,), (x,))


def labels_of(graph: ModelGraph, case: Case) -> OperatorLabels:
    """Labels by a plain rule that a network can learn: convolutions are slow and need a workspace, others are not."""
    features = featurize(graph, case)
    view = np.array([w.is_view for w in features.work])
    slow = np.array([3.0 if w.kind == "conv2d" else 1.5 for w in features.work])
    workspace = np.array([w.bytes_in + w.bytes_out if w.kind == "conv2d" else 0 for w in features.work])
    workspace = np.where(features.rules.exact, features.rules.workspaces, workspace)
    return OperatorLabels(
        workspace_bytes=workspace.astype(np.int64),
        kernel_us=np.where(view, 0.0, slow * np.exp(features.log_roofline)),
        kernels=np.where(view, 0, 1).astype(np.int64),
    )


@dataclass(frozen=True)
class Example:
    """A case in memory, as a source of itself."""

    id: str
    architecture: str
    group: str
    model: ModelGraph
    case: Case
    labels: OperatorLabels

    @property
    def mark(self) -> str:
        """Graphs of other batch sizes are others."""
        return f"{self.model.digest} {self.case}"

    def graph(self) -> ModelGraph:
        """The graph."""
        return self.model

    def operators(self, graph: ModelGraph) -> OperatorLabels:
        """The labels that it was made with."""
        assert graph is self.model
        return self.labels

    def measured(self, labels: CaseLabels) -> MeasuredCase:
        """The case as training sees it."""
        return MeasuredCase(self.id, self.architecture, self.group, self.architecture, self.case, labels, self)


NOTHING = CaseLabels(math.nan, math.nan, math.nan, math.nan)


def examples(count: int = 8) -> list[Example]:
    """Cases of two architectures at growing batch sizes, in four groups."""
    out = []
    for index in range(count):
        graph = (residual_network if index % 2 else token_mixer)(2 ** (1 + index // 2))
        case = replace(EAGER, batch=graph.batch)
        out.append(Example(f"case{index}", f"net{index % 2}", f"group{index % 4}", graph, case, labels_of(graph, case)))
    return out


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus.of(e.measured(NOTHING) for e in examples())


@pytest.fixture(scope="module")
def trained(corpus: Corpus) -> tuple[PMGNS, Scales]:
    torch.set_num_threads(1)
    settings = Settings(epochs=80, nodes_per_step=64, learning_rate=3e-3)
    return train(corpus, np.arange(len(corpus)), TINY, settings)


def bundle_of(corpus: Corpus, trained: tuple[PMGNS, Scales], *, table: bool) -> Bundle:
    measured = table_of(corpus, np.arange(len(corpus))) if table else lookup.EMPTY
    return assemble(*trained, measured, COSTS, "H200")


def test_workload_of_a_convolution_counts_what_it_multiplies_and_moves() -> None:
    work = workloads(residual_network(4, width=16, size=16))[0]
    assert work.macs == 4 * 16 * 16 * 16 * 27
    assert (work.m, work.n, work.k, work.products) == (4 * 16 * 16, 16, 27, 1)
    assert work.bytes_in == 4 * 3 * 16 * 16 * 4
    assert work.bytes_out == 4 * 16 * 16 * 16 * 4
    assert work.bytes_weight == 16 * 27 * 4


def test_views_move_nothing_and_in_place_operators_do() -> None:
    by_kind = {w.kind: w for w in workloads(residual_network(4))}
    assert by_kind["flatten"].is_view
    assert by_kind["flatten"].bytes_moved == 0
    assert by_kind["relu"].in_place
    assert by_kind["relu"].bytes_moved == 2 * by_kind["relu"].bytes_in


def test_features_have_their_columns_and_no_infinities() -> None:
    graph = residual_network(4)
    features = featurize(graph, EAGER)
    assert features.nodes.shape == (len(graph.operators), len(NODE_COLUMNS))
    assert features.statics.shape == (len(STATIC_COLUMNS),)
    assert np.isfinite(features.nodes).all()
    assert features.edges.shape[1] == 2 * len(graph.edges)
    assert (np.diff(features.edges[1]) >= 0).all()


def with_dropouts(graph: ModelGraph) -> tuple[ModelGraph, list[int]]:
    """A dropout, or two in a row, behind every operator, and the places of the operators that there were."""
    b, renamed, places = Builder(graph.batch), dict[int, int](), list[int]()
    for index, value in enumerate(graph.values):
        if value.producer is None:
            b.values.append(value)
            renamed[index] = len(b.values) - 1
    for number, operator in enumerate(graph.operators):
        (output,), place = operator.outputs, len(b.operators)
        value = graph.values[output]
        alias = None if value.alias_of is None else renamed[value.alias_of]
        b.values.append(replace(value, producer=place, alias_of=alias))
        result = len(b.values) - 1
        inputs = tuple(renamed[i] for i in operator.inputs)
        b.operators.append(replace(operator, inputs=inputs, outputs=(result,)))
        places.append(place)
        for _ in range(1 + number % 2):
            result = b.call("dropout", (result,), value.spec.shape, alias=result)
        renamed[output] = result
    return b.graph([renamed[i] for i in graph.inputs], [renamed[i] for i in graph.outputs]), places


@pytest.mark.parametrize("graph", [residual_network(2), token_mixer(3)], ids=["cnn", "tokens"])
def test_what_is_said_of_a_network_does_not_depend_on_its_dropouts(
    graph: ModelGraph, corpus: Corpus, trained: tuple[PMGNS, Scales]
) -> None:
    torch.nn.init.normal_(trained[0].graph_out.weight)
    bundle = bundle_of(corpus, trained, table=False)
    longer, places = with_dropouts(graph)
    ours, theirs = (bundle.network(featurize(g, EAGER)) for g in (graph, longer))
    np.testing.assert_allclose(theirs[0][places], ours[0], atol=1e-5)
    np.testing.assert_allclose(theirs[1], ours[1], atol=1e-5)
    estimates, without = bundle.estimate(longer, EAGER), bundle.estimate(graph, EAGER)
    assert sum(estimates.kernels) == sum(without.kernels)
    assert sum(estimates.kernel_us) == pytest.approx(sum(without.kernel_us))


def test_an_unknown_kind_has_a_slot_of_its_own() -> None:
    graph = residual_network(4)
    operators = (replace(graph.operators[0], kind="quantum_conv"), *graph.operators[1:])
    assert featurize(replace(graph, operators=operators), EAGER).kinds[0] == KINDS.index("unknown")


@pytest.mark.parametrize("graph", [residual_network(2), token_mixer(3)], ids=["cnn", "tokens"])
@pytest.mark.parametrize("edges", [True, False])
def test_numpy_and_pytorch_geometric_give_the_same_numbers(graph: ModelGraph, edges: bool) -> None:
    torch.manual_seed(1)
    model = PMGNS(replace(TINY, edges=edges)).eval()
    torch.nn.init.normal_(model.graph_out.weight)
    features = featurize(graph, EAGER)
    arrays = (features.nodes / 10, features.kinds, features.edges)
    with torch.no_grad():
        operators, graphs = model(
            *map(torch.from_numpy, arrays),
            torch.from_numpy(features.statics)[None] / 10,
            torch.zeros(len(features.kinds), dtype=torch.int64),
        )
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    ours = forward(weights, *arrays, features.statics / 10, blocks=3, with_edges=edges)
    np.testing.assert_allclose(ours[0], operators.numpy(), atol=2e-5)
    np.testing.assert_allclose(ours[1], graphs.numpy()[0], atol=2e-5)


@pytest.mark.parametrize("count", [3, 50])
def test_neighbour_mean_of_a_node_without_neighbours_is_zero(count: int) -> None:
    x = np.zeros((count, 1), dtype=np.float32)
    x[:3] = [[1.0], [2.0], [4.0]]
    edges = np.array([[1, 2, 0], [0, 0, 1]])
    assert neighbours(count, edges)(x)[:3].tolist() == [[3.0], [1.0], [0.0]]
    assert not neighbours(count, edges[:, :0])(x).any()


@pytest.mark.parametrize("odd", [None, 0, 300])
def test_of_operators_that_are_alike_one_is_computed(odd: int | None) -> None:
    """A long chain of equal operators, in which one may differ: PyTorch Geometric computes all of them."""
    torch.manual_seed(2)
    count = DENSE_NODES + 100
    model = PMGNS(TINY).eval()
    nodes = np.full((count, len(NODE_COLUMNS)), 0.5, dtype=np.float32)
    if odd is not None:
        nodes[odd] = 2.0
    kinds = np.full(count, KINDS.index("relu"))
    edges = both_ways(tuple((i, i + 1) for i in range(count - 2)))  # the last has no neighbour
    statics = np.zeros(len(STATIC_COLUMNS), dtype=np.float32)
    with torch.no_grad():
        arrays = map(torch.from_numpy, (nodes, kinds, edges, statics[None], np.zeros(count, dtype=np.int64)))
        operators, graphs = model(*arrays)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    ours = forward(weights, nodes, kinds, edges, statics, blocks=3)
    np.testing.assert_allclose(ours[0], operators.numpy(), atol=2e-5)
    np.testing.assert_allclose(ours[1], graphs.numpy()[0], atol=2e-5)
    alike = by_rows(nodes)
    for _ in range(3):
        alike = refined(alike, neighbours_of(count, edges))
    # Both ends three deep, the lone one, the middle; around the odd one three on each side that are there.
    assert len(alike.first) == {None: 8, 0: 9, 300: 15}[odd]
    assert np.array_equal(alike.of[alike.first], np.arange(len(alike.first)))


def test_the_network_overfits_a_tiny_set(corpus: Corpus, trained: tuple[PMGNS, Scales]) -> None:
    bundle = bundle_of(corpus, trained, table=False)
    for example in examples():
        estimates = bundle.estimate(example.model, example.case)
        measured = float(example.labels.kernel_us.sum())
        assert sum(estimates.kernel_us) == pytest.approx(measured, rel=0.08)
        assert list(estimates.workspace_bytes) == example.labels.workspace_bytes.tolist()
        assert list(estimates.kernels) == example.labels.kernels.tolist()


def test_measured_operators_are_looked_up(corpus: Corpus, trained: tuple[PMGNS, Scales]) -> None:
    bundle = bundle_of(corpus, trained, table=True)
    example = examples()[3]
    estimates = bundle.estimate(example.model, example.case)
    np.testing.assert_allclose(estimates.kernel_us, example.labels.kernel_us, rtol=1e-6)
    assert estimates.is_known
    assert not bundle.estimate(example.model, example.case, use_table=False).is_known
    elsewhere = replace(example.case, precision=Precision.TF32)
    assert bundle.estimate(example.model, elsewhere).known_share == 0.0
    gradients = replace(example.case, mode=Mode.AUTOGRAD)
    assert bundle.estimate(example.model, gradients).known_share == 0.0


def test_a_bundle_is_read_back_as_it_was_written(corpus: Corpus, trained: tuple[PMGNS, Scales], tmp_path: Path) -> None:
    bundle = bundle_of(corpus, trained, table=True)
    write_bundle(bundle, tmp_path / "b.safetensors")
    again = read_bundle(tmp_path / "b.safetensors")
    assert again.schema == bundle.schema
    example = examples()[0]
    ours, theirs = (b.estimate(example.model, example.case, use_table=False) for b in (bundle, again))
    np.testing.assert_allclose(ours.kernel_us, theirs.kernel_us, rtol=0.02)
    assert ours.workspace_bytes == theirs.workspace_bytes
    assert again.table.keys.tolist() == bundle.table.keys.tolist()


def test_a_bundle_of_other_columns_is_refused(corpus: Corpus, trained: tuple[PMGNS, Scales]) -> None:
    schema = bundle_of(corpus, trained, table=False).schema
    text = replace(schema, node_columns=schema.node_columns[1:]).to_json()
    with pytest.raises(BundleMismatchError, match="node_columns"):
        type(schema).from_json(text)


def test_an_empty_package_says_that_it_has_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "FILE", "nothing.safetensors")
    load_bundle.cache_clear()
    with pytest.raises(NoWeightsError, match="dippm train"):
        load_bundle()


def test_training_resumes_where_it_stopped(corpus: Corpus, tmp_path: Path) -> None:
    settings = Settings(epochs=4, nodes_per_step=64)
    everything = np.arange(len(corpus))
    whole, _ = train(corpus, everything, TINY, settings)

    class Stopped(Exception):
        pass

    def stop(epoch: int, losses: dict[str, float]) -> None:
        if epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        train(corpus, everything, TINY, settings, checkpoint=tmp_path / "c", report=stop)
    epochs: list[int] = []
    resumed, _ = train(
        corpus, everything, TINY, settings, checkpoint=tmp_path / "c", report=lambda epoch, _: epochs.append(epoch)
    )
    assert epochs == [2, 3]
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_training_ends_within_its_seconds_and_not_before(corpus: Corpus, tmp_path: Path) -> None:
    settings = Settings(epochs=100_000, seconds=0.5, nodes_per_step=64)
    epochs: list[int] = []
    start = time.monotonic()
    train(
        corpus, np.arange(len(corpus)), TINY, settings, checkpoint=tmp_path / "c", report=lambda e, _: epochs.append(e)
    )
    assert 0.5 <= time.monotonic() - start < 20
    assert 1 <= len(epochs) < 100_000
    again: list[int] = []
    train(
        corpus, np.arange(len(corpus)), TINY, settings, checkpoint=tmp_path / "c", report=lambda e, _: again.append(e)
    )
    assert len(again) == 1, "a stopped training knows how long it has already trained"


def test_networks_trained_side_by_side_are_those_trained_one_by_one(corpus: Corpus, tmp_path: Path) -> None:
    corpus.save(tmp_path / "corpus.npz")
    plan, names = Plan(TINY, Settings(epochs=1, nodes_per_step=64)), ["all", "without-1"]
    run_side_by_side(tmp_path / "corpus.npz", names, tmp_path / "a", plan, jobs=2)
    run(corpus, names, tmp_path / "b", plan)
    for name in names:
        ours, theirs = (load_network(tmp_path / folder / f"{name}.pt")[0] for folder in "ab")
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


def test_every_network_starts_from_the_same_one_when_finetuning(
    corpus: Corpus, trained: tuple[PMGNS, Scales], tmp_path: Path
) -> None:
    write_bundle(bundle_of(corpus, trained, table=False), tmp_path / "start.safetensors")
    slow = Settings(epochs=1, nodes_per_step=64, learning_rate=1e-9)
    run(corpus, ["without-0", "without-1"], tmp_path, Plan(TINY, slow, start=tmp_path / "start.safetensors"))
    start, _ = network_of(read_bundle(tmp_path / "start.safetensors"))
    for name in ("without-0", "without-1"):
        for ours, theirs in zip(load_network(tmp_path / f"{name}.pt")[0].parameters(), start.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)


def test_networks_go_on_from_those_of_their_names_where_a_folder_is_the_start(
    corpus: Corpus, trained: tuple[PMGNS, Scales], tmp_path: Path
) -> None:
    first = Plan(TINY, Settings(epochs=1, nodes_per_step=64))
    names = ["without-0", "without-1"]
    run(corpus, names, tmp_path / "first", first)
    slow = Settings(epochs=1, nodes_per_step=64, learning_rate=1e-9)
    run(corpus, names, tmp_path / "second", Plan(TINY, slow, start=tmp_path / "first"))
    folds = [[load_network(tmp_path / f / f"{name}.pt")[0].kinds.weight for name in names] for f in ("first", "second")]
    for before, after in zip(*folds, strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-3)
    assert not torch.equal(*folds[0])


def test_a_network_survives_half_precision(corpus: Corpus, trained: tuple[PMGNS, Scales], tmp_path: Path) -> None:
    save_network(tmp_path / "n.pt", *trained)
    model, scales = load_network(tmp_path / "n.pt")
    cases = np.arange(2)
    ours, theirs = (predict_operators(m, corpus, s, cases)[0][0] for m, s in (trained, (model, scales)))
    np.testing.assert_allclose(ours[:, 0], theirs[:, 0], atol=0.02)


def test_corpus_keeps_distinct_rows_once_and_reads_back(corpus: Corpus, tmp_path: Path) -> None:
    assert len(corpus.rows) < len(corpus.row_of)
    corpus.save(tmp_path / "c.npz")
    again = Corpus.load(tmp_path / "c.npz")
    assert again.ids.tolist() == [e.id for e in examples()]
    np.testing.assert_array_equal(again.rows[again.row_of], corpus.rows[corpus.row_of])
    assert math.isclose(float(np.nansum(again.kernel_us)), float(np.nansum(corpus.kernel_us)))


def test_a_grown_data_set_is_featurised_only_where_it_is_new(tmp_path: Path) -> None:
    cases = in_reading_order([e.measured(NOTHING) for e in examples()])
    first = [case for case in cases if case.network == "net0"]
    corpus_of(first, tmp_path / "corpus.npz")
    (kept,) = (tmp_path / "corpus").iterdir()
    before = kept.stat().st_mtime_ns
    grown = corpus_of(cases, tmp_path / "corpus.npz")
    assert kept.stat().st_mtime_ns == before
    assert len(list((tmp_path / "corpus").iterdir())) == 2
    whole = Corpus.of(cases)
    assert grown.ids.tolist() == [case.id for case in cases]
    np.testing.assert_array_equal(grown.rows[grown.row_of], whole.rows[whole.row_of])
    np.testing.assert_array_equal(grown.keys, whole.keys)
    np.testing.assert_array_equal(grown.edge_start, whole.edge_start)
    assert len(np.unique(grown.rows, axis=0)) == len(grown.rows)


def measured_cases() -> list[MeasuredCase]:
    """The small cases as a data set would hold them, a tenth more memory reserved than the replay says."""
    out = []
    for example in examples(10):
        case, graph, labels = example.case, example.model, example.labels
        memory = replay(
            graph, runtime=case.runtime, allocator=case.allocator, workspaces=labels.workspace_bytes.tolist()
        )
        device = (float(labels.kernel_us.sum()) + float(labels.kernels.sum())) / 1e3
        out.append(
            example.measured(
                CaseLabels(
                    weights_bytes=memory.weights_bytes,
                    inputs_bytes=memory.inputs_bytes,
                    allocated_bytes=memory.allocated_bytes,
                    reserved_bytes=1.1 * memory.reserved_bytes,
                    context_bytes=700.0 * 2**20,
                    device_ms=device,
                    host_ms=0.02 + 0.005 * len(graph.operators),
                    latency_ms=max(device, 0.02 + 0.005 * len(graph.operators)),
                    energy_j=0.3 * device,
                ),
            )
        )
    return out


def test_training_ends_in_a_bundle_and_in_predictions_of_what_was_held_back(tmp_path: Path) -> None:
    cases = in_reading_order(measured_cases())
    corpus = corpus_of(cases, tmp_path / "corpus.npz")
    run(corpus, job_names(nested=False), tmp_path, Plan(TINY, Settings(epochs=2, nodes_per_step=64)))
    described = {"device": "H200", "data": "toy"}
    finish(cases, corpus, tmp_path, tmp_path / "b.safetensors", seed=0, data=described)
    rows = read_rows(tmp_path / "heldback.csv.gz")
    assert [r.id for r in rows] == [c.id for c in cases]
    assert {r.group: len({q.fold for q in rows if q.group == r.group}) for r in rows} == dict.fromkeys(
        (f"group{i}" for i in range(4)), 1
    )
    index = FIGURES.index("reserved_bytes")
    assert all(r.measured[index] == pytest.approx(1.1 * r.composed[index], rel=0.5) for r in rows)
    bundle = read_bundle(tmp_path / "b.safetensors")
    estimates = bundle.estimate(cases[0].source.graph(), cases[0].case)
    assert estimates.is_known
    measured = cases[0].source.operators(cases[0].source.graph())
    np.testing.assert_allclose(estimates.kernel_us, measured.kernel_us, rtol=1e-5)
    assert not estimates.upper["reserved"].calibrated
    assert bundle.schema.trained_on["cases"] == len(cases)
    assert corpus_of(cases, tmp_path / "corpus.npz").ids.tolist() == corpus.ids.tolist()


FROZEN = Path(__file__).parents[1] / "golden" / "network_frozen.json"


def shipped_figures() -> dict[str, dict[str, float]]:
    """What the shipped bundle says of four small cases, by network alone and with its table."""
    bundle = load_bundle()
    out = {}
    for name, graph in (("cnn", residual_network(16, width=64, size=56)), ("tokens", token_mixer(8, width=256))):
        for precision in (Precision.FP32, Precision.FP16):
            case = Case(graph.batch, precision, runtime=Runtime.EAGER)
            cast = graph.cast(precision.float_dtype)
            estimates = bundle.estimate(cast, case, use_table=False)
            out[f"{name}-{precision.value}"] = {
                "kernel_us": sum(estimates.kernel_us),
                "kernels": float(sum(estimates.kernels)),
                "workspace_bytes": float(max(estimates.workspace_bytes)),
                "host_us": sum(estimates.host_us),
                "energy_j": sum(estimates.energy_j),
                "looked_up_us": sum(bundle.estimate(cast, case).kernel_us),
            }
    return out


def test_the_shipped_weights_say_what_they_said() -> None:
    """New weights are frozen anew with `python tests/unit/test_network.py` (PYTHONPATH=predictor)."""
    frozen = json.loads(FROZEN.read_text())
    figures = shipped_figures()
    assert figures.keys() == frozen.keys()
    for name, expected in frozen.items():
        assert figures[name] == pytest.approx(expected, rel=1e-3), name


def test_the_shipped_bundle_is_small_loaded_once_and_says_what_it_was_trained_on() -> None:
    load_bundle.cache_clear()
    bundle = load_bundle()
    assert load_bundle() is bundle
    assert bundle.device == "H200"
    assert bundle.schema.trained_on["cases"] >= 500
    assert bundle.schema.hyper["hidden"] == 512
    assert set(bundle.schema.statistics) >= {"allocated_bytes", "device_ms", "energy_j"}
    size = (Path(bundle_module.__file__).parents[1] / "weights" / "pmgns.safetensors").stat().st_size
    assert size < 12 * 2**20


def test_predictions_import_neither_pytorch_nor_pytorch_geometric() -> None:
    code = (
        "import sys; from dippm.network.bundle import load_bundle; import dippm.network.compose; load_bundle();"
        "print([m for m in ('torch', 'torch_geometric', 'tvm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(shipped_figures(), indent=1) + "\n")
