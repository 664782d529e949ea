"""The zoo: the same list from the same seed, prefixes that are data sets, networks that come out alive."""

from __future__ import annotations

from collections import Counter
from importlib.resources import as_file, files
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from dippm.case import Allocator, Mode, Precision, Runtime
from dippm.data.batches import at_batch, collides
from dippm.zoo.build import batch_statistics, build, construct, duplicate, example_inputs, fill, place
from dippm.zoo.case import InputShape, Network, ZooCase, read_cases, write_cases
from dippm.zoo.catalogue import broad, declared, random_members
from dippm.zoo.declare import anchors, declare, near_boundary, networks_first, stratified
from dippm.zoo.extract import append_graph, extract, extract_all, extract_template, read_graphs
from dippm.zoo.planning import Plan, plan, read_plans

PAPER = {
    "efficientnet", "mnasnet", "mobilenet", "resnet", "vgg", "swin", "vit", "densenet", "visformer", "poolformer",
}  # fmt: skip
SMALL = Network(
    "perceptron_small", "handwritten", "perceptron", {"features": 32, "hidden": 48, "layers": 2}, (InputShape((32,)),)
)
TINY_UNET = Network("unet_tiny", "handwritten", "unet", {"width": 8, "depth": 2}, (InputShape((3, 32, 32)),))


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    with as_file(files("dippm.zoo").joinpath("planning.jsonl")) as path:
        return read_plans(path)


def test_the_papers_ten_families_and_many_more_are_declared() -> None:
    members = declared()
    families = {m.family for m in members}
    assert families >= PAPER
    assert len(families - PAPER) >= 25
    assert len({m.network.architecture for m in members if m.network.source == "transformers"}) >= 10


def test_the_broad_zoo_holds_more_than_three_thousand_networks_and_each_once() -> None:
    members = broad() + random_members(1600, 1)
    keys = {m.network.key for m in members}
    assert len(keys) == len(members) > 3_000
    assert {m.network.key for m in declared()} <= keys
    assert {"decoder", "diffusion", "detr", "deeplab", "conformer", "recommender"} <= {m.family for m in members}


def test_what_was_measured_before_is_not_drawn_again(plans: dict[str, Plan]) -> None:
    members = declared() + random_members(40, 1)
    first = declare(members, plans, seed=5, timed=0, memory=80)
    rest = declare(members, plans, seed=5, timed=0, memory=80, known=[case.id for case in first])
    assert len(rest) == 80
    assert not {case.id for case in first} & {case.id for case in rest}


def test_half_of_the_searched_caps_lie_near_a_boundary(plans: dict[str, Plan]) -> None:
    cases = declare(broad(), plans, seed=2, timed=0, memory=1_500, caps=100)
    searched = [case for case in cases if case.purpose == "min_cap"]
    assert len(searched) == 100
    assert sum(near_boundary(case.planned_mib) for case in searched) == 50


def test_a_duplicate_shares_what_the_original_shares_and_nothing_with_it() -> None:
    layer = nn.Linear(4, 4)
    original = nn.Sequential(layer, nn.BatchNorm1d(4), layer)
    original[1].running_mean.fill_(3.0)
    twin = duplicate(original)
    assert twin[0] is twin[2]
    assert twin[0].weight is not layer.weight
    assert twin[1].running_mean.tolist() == [3.0] * 4
    twin[1].running_mean.zero_()
    assert original[1].running_mean.tolist() == [3.0] * 4


def test_relatives_share_a_super_family() -> None:
    by_family = {m.family: m.super_family for m in declared()}
    assert by_family["resnet"] == by_family["resnext"] == by_family["wide_resnet"]
    assert by_family["vit"] == by_family["deit"] != by_family["swin"]


def test_network_keys_tell_input_shapes_apart() -> None:
    keys = [m.network.key for m in declared() + random_members(50, 1)]
    assert len(set(keys)) == len(keys)


def test_the_same_seed_gives_the_same_list(plans: dict[str, Plan]) -> None:
    members = declared() + random_members(40, 1)
    first = declare(members, plans, seed=5, timed=60, memory=80, caps=5)
    again = declare(members, plans, seed=5, timed=60, memory=80, caps=5)
    other = declare(members, plans, seed=6, timed=60, memory=80, caps=5)
    assert first == again
    assert first != other
    labelled = [c.id for c in first if c.purpose == "labels"]
    assert len(set(labelled)) == len(labelled) == 140


def test_the_list_spreads_footprints_and_ways_to_run(plans: dict[str, Plan]) -> None:
    cases = declare(declared() + random_members(160, 1), plans, seed=1, timed=300, memory=600)
    planned = [c.planned_mib for c in cases]
    assert min(planned) < 1_000
    assert max(planned) > 40_000
    assert {c.precision for c in cases} == set(Precision)
    assert {c.allocator for c in cases} == set(Allocator)
    runs = Counter((c.mode, c.runtime) for c in cases)
    assert runs[Mode.INFERENCE, Runtime.GRAPH] >= 0.1 * 600
    assert runs[Mode.AUTOGRAD, Runtime.EAGER] >= 0.05 * 600
    assert all(c.mode is Mode.INFERENCE and c.runtime is Runtime.EAGER for c in cases if c.timed)
    assert len({c.super_family for c in anchors(cases)}) == 20


@given(st.lists(st.sampled_from("aabbbcddddddd"), min_size=1, max_size=120), st.integers(0, 9))
def test_any_prefix_holds_each_stratum_in_proportion(items: list[str], seed: int) -> None:
    shuffled = stratified(list(enumerate(items)), lambda item: item[1], seed)
    assert sorted(shuffled) == sorted(enumerate(items))
    sizes = Counter(items)
    for length in range(1, len(items) + 1):
        for stratum, count in Counter(item[1] for item in shuffled[:length]).items():
            assert abs(count - sizes[stratum] * length / len(items)) <= len(sizes)


def test_networks_come_before_their_repeats() -> None:
    cases = [ZooCase(n, b) for n, b in ((SMALL, 1), (SMALL, 2), (SMALL, 3), (TINY_UNET, 1))]
    assert [(c.network.architecture, c.batch) for c in networks_first(cases)] == [
        ("perceptron_small", 1), ("unet_tiny", 1), ("perceptron_small", 2), ("perceptron_small", 3),
    ]  # fmt: skip


def test_a_case_survives_its_file(tmp_path: Path) -> None:
    case = ZooCase(SMALL, 7, Precision.BF16, Mode.NO_GRAD, Runtime.GRAPH, Allocator.EXPANDABLE, "f", "s", timed=False)
    write_cases(tmp_path / "cases.jsonl", [case])
    assert read_cases(tmp_path / "cases.jsonl") == [case]
    assert case.id == f"{SMALL.key}-b7-bf16-no_grad-graph-expandable"


@pytest.mark.parametrize("seed", range(6))
def test_random_networks_are_alive_and_repeatable(seed: int) -> None:
    network = Network(f"random_{seed}", "random", "random", {"seed": seed}, (InputShape((3, 64, 64)),))
    module, inputs = build(ZooCase(network, 2), "cpu")
    with torch.no_grad(), batch_statistics(module):
        module(*example_inputs(network.inputs, 4, torch.device("cpu"), torch.float32, seed=2))
    with torch.no_grad():
        out = module(*inputs)
    assert out.shape[0] == 2
    assert bool(torch.isfinite(out).all())
    assert float(out.std()) > 0
    twin, _ = build(ZooCase(network, 2), "cpu")
    assert [tuple(p.shape) for p in twin.parameters()] == [tuple(p.shape) for p in module.parameters()]


class RandomDraws(TorchDispatchMode):
    """Notes how many numbers each random call draws."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket in (torch.ops.aten.uniform_, torch.ops.aten.normal_):
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_constructing_draws_no_large_random_tensor() -> None:
    with RandomDraws() as draws:
        construct(SMALL)
    assert max(draws.sizes, default=0) <= 1024


def test_filling_scales_by_fan_in_and_leaves_norms_alone() -> None:
    module = place(construct(TINY_UNET), torch.device("cpu"), torch.float32)
    fill(module)
    convolution, norm = module.stem[3], module.stem[4]  # type: ignore[index]
    fan_in = convolution.weight[0].numel()
    assert float(convolution.weight.detach().std()) == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
    assert bool((norm.weight == 1).all())
    assert bool((norm.bias == 0).all())


def test_on_the_meta_device_nothing_is_allocated() -> None:
    module, inputs = build(ZooCase(TINY_UNET, 4, Precision.FP16))
    assert {t.device.type for t in (*module.parameters(), *module.buffers(), *inputs)} == {"meta"}
    assert module(*inputs).shape == (4, 21, 32, 32)
    assert inputs[0].dtype == torch.float16


def test_a_plan_counts_weights_work_and_live_tensors() -> None:
    found = plan(SMALL, batch=4)
    assert found.weights_mib == pytest.approx(
        sum(p.numel() for p in construct(SMALL).parameters()) * 4 / 2**20, abs=1e-3
    )
    assert found.gflop == pytest.approx(2 * (32 * 48 + 48 * 48 + 48 * 1000) / 1e9, abs=1e-4)
    assert found.activations_mib * 2**20 >= 1000 * 4


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown source 'elsewhere'"):
        construct(Network("x", "elsewhere", "x", {}, ()))


@pytest.mark.parametrize(
    "network", [TINY_UNET, Network("random_7", "random", "random", {"seed": 7}, (InputShape((3, 64, 64)),))]
)
def test_a_template_graph_is_the_graph_at_any_batch(network: Network) -> None:
    template = extract(network)
    for batch in (1, 5):
        scaled, direct = at_batch(template, batch), extract(network, batch)
        assert scaled.to_dict() == direct.to_dict()


class Tied(nn.Module):
    """An output layer that shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.out = nn.Linear(8, 40, bias=False)
        self.out.weight = self.embed.weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_weights_that_are_shared_stay_shared_on_any_device(dtype: torch.dtype) -> None:
    for device in ("cpu", "meta"):
        module = place(Tied(), torch.device(device), dtype)
        storages = [layer.weight.untyped_storage()._cdata for layer in (module.embed, module.out)]
        assert storages[0] == storages[1], device


def test_a_size_that_is_a_multiple_of_the_templates_batch_moves_it_to_the_next(tmp_path: Path) -> None:
    # 793 = 13 x 61 pairwise products of embeddings
    network = next(m.network for m in declared() if m.network.architecture == "recommender_64")
    template = extract_template(network)
    assert collides(extract(network))
    assert template.batch == 67
    direct = extract(network, 3)
    assert [v.spec for v in at_batch(template, 3).values] == [v.spec for v in direct.values]

    stored = tmp_path / "graphs.gz"
    append_graph(stored, (network.key, 61, "float32"), extract(network))
    assert extract_all([(network, 61, Precision.FP32)], stored) == 1
    assert extract_all([(network, 61, Precision.FP32)], stored) == 0
    assert [name[1] for name, _ in read_graphs([stored])] == [61, 67]
