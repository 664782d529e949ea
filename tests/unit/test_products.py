"""What operators copy before they compute: held against PyTorch's own calls, and against what was measured."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dippm.case import Case
from dippm.frontend import graph_from_module
from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm.network.rules import workspace_rules
from dippm.network.workload import workloads
from dippm.products import Copies, Operand, linear_copies, matmul_copies, product_copies
from dippm.replay.saved import require_gradients
from dippm.strides import strides_of

ROOT = Path(__file__).parents[2]


def operand(tensor: torch.Tensor) -> Operand:
    return Operand(tuple(tensor.shape), tensor.stride())


def copied_by_pytorch(first: torch.Tensor, second: torch.Tensor, *, recorded: bool = False) -> int:
    """Elements that the clones inside `torch.matmul` make."""
    elements = 0

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal elements
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.clone.default:
                elements += out.numel()
            return out

    with torch.set_grad_enabled(recorded), Watching():
        torch.matmul(first, second)
    return elements


def heads() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values as timm splits them: [4, 3, 49, 32] each, out of one tensor."""
    qkv = torch.empty(4, 49, 3 * 3 * 32, device="meta").reshape(4, 49, 3, 3, 32).permute(2, 0, 3, 1, 4)
    return qkv.unbind(0)  # type: ignore[return-value]


Q, K, V = heads()
DENSE = torch.empty(4, 3, 49, 49, device="meta")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(Q, K.transpose(-2, -1), id="scores of heads that were split off"),
        pytest.param(DENSE, V, id="scores by values"),
        pytest.param(DENSE, DENSE.contiguous(), id="dense"),
        pytest.param(DENSE.transpose(-2, -1), DENSE, id="turned: a view"),
        pytest.param(DENSE, torch.empty(1, 3, 49, 8, device="meta"), id="a batch is broadcast"),
        pytest.param(DENSE, torch.empty(49, 8, device="meta"), id="folded"),
        pytest.param(Q, torch.empty(32, 8, device="meta"), id="not to be folded"),
        pytest.param(torch.empty(8, 49, device="meta"), DENSE, id="a matrix before a batch"),
        pytest.param(DENSE, torch.empty(49, device="meta"), id="a vector"),
        pytest.param(Q, torch.empty(32, device="meta"), id="a vector, not to be folded"),
        pytest.param(torch.empty(49, device="meta"), DENSE, id="a vector before a batch"),
        pytest.param(Q[0], K[0].transpose(-2, -1), id="three dimensions: no reshape"),
        pytest.param(torch.empty(5, 7, device="meta"), torch.empty(7, 3, device="meta"), id="two matrices"),
        pytest.param(DENSE, Q[:1, :1].expand(4, 3, 49, 32), id="expanded"),
    ],
)
def test_reshapes_copy_what_pytorch_clones(first: torch.Tensor, second: torch.Tensor) -> None:
    found = matmul_copies(operand(first), operand(second))
    assert found.first + found.second == copied_by_pytorch(first, second)


def test_cublas_wants_one_dense_dimension() -> None:
    wide = torch.empty(4, 49, 32, 2, device="meta")[..., 0]
    assert matmul_copies(operand(wide), operand(K[0].transpose(-2, -1)[:1].expand(4, 32, 49))).dense >= wide.numel()
    assert matmul_copies(operand(torch.empty(4, 49, 32)), operand(torch.empty(4, 32, 7))) == Copies()


def test_a_weight_before_a_batch_folds_it_and_turns_the_result_round() -> None:
    weight = Operand((8, 32), (32, 1), needs_gradient=True)
    rows = torch.empty(4, 32, 49, device="meta")
    found = matmul_copies(weight, operand(rows))
    assert found == Copies(second=rows.numel(), dense=4 * 49 * 8)


class ByView(torch.nn.Module):
    """A strided picture times a view of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(8, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(1, 2) @ self.weight.t()


@pytest.mark.parametrize("recorded", [False, True])
def test_a_view_of_a_weight_is_folded_where_gradients_are_recorded(recorded: bool) -> None:
    module, x = ByView().requires_grad_(recorded), torch.empty(4, 32, 49)
    graph = graph_from_module(module.eval(), [x], batch=4)
    needs = require_gradients(graph) if recorded else None
    found = [product_copies(graph, operator, strides_of(graph), needs) for operator in graph.operators]
    (copies,) = [c for c in found if c is not None]
    with torch.set_grad_enabled(recorded):
        turned = module.weight.t()
    assert copies.first + copies.second == copied_by_pytorch(x.transpose(1, 2), turned, recorded=recorded)
    assert (copies.first == x.numel()) is recorded


@pytest.mark.parametrize(
    ("dtype", "asked", "copied"),
    [("bfloat16", "float32", 4), ("float16", "float32", 0), ("float32", "float32", 0), ("float32", None, 0)],
)
def test_a_softmax_in_another_dtype_casts_what_it_reads(dtype: str, asked: str | None, copied: int) -> None:
    spec = TensorSpec((4, 8, 64), dtype)
    attributes = {"dim": -1} if asked is None else {"dim": -1, "dtype": asked}
    values = Value(spec, ValueKind.INPUT), Value(spec, ValueKind.RESULT, 0)
    softmax = Operator("softmax", "aten.softmax.int", (0,), (1,), attributes)
    graph = ModelGraph(values, (softmax,), (0,), (1,), batch=4)
    rules = workspace_rules(graph, Case(4), workloads(graph), strides_of(graph))
    assert rules.workspaces == (copied * spec.numel,)


def test_a_linear_layer_copies_strided_rows_only_where_gradients_are_recorded() -> None:
    weight = Operand((8, 32), (32, 1), needs_gradient=True)
    turned = torch.empty(4, 32, 49, device="meta").transpose(1, 2)
    assert linear_copies(operand(turned), weight, biased=True) == Copies()
    assert linear_copies(operand(turned), weight, biased=True, recorded=True) == Copies(first=turned.numel())
    assert linear_copies(operand(turned.contiguous()), weight, biased=True, recorded=True) == Copies()


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_exact_workspaces", ROOT / "bench" / "exact_workspaces.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAMILIES = frozenset({"swin", "xcit", "levit", "visformer", "crossvit", "bottleneck_attention", "volo", "focalnet"})
"""Super-families that compute attention by `matmul`, most of them of heads out of `unbind`."""


def test_measured_workspaces_are_met_to_the_byte(bench: ModuleType) -> None:
    pytest.importorskip("pyarrow", reason="reads the data set: pip install pyarrow")
    from dippm.data import DataSet

    data = DataSet(ROOT / "datasets" / "h200-v1")
    rows = [r for r in data.cases(joined=True) if r.super_family in FAMILIES and r.mode.value == "inference"]
    found = list(bench.held(data, sorted(rows, key=lambda row: row.id)[::24]))
    for kind, least, share in (
        ("batch_matmul", 100, 1.0),
        ("softmax", 50, 1.0),
        ("linear", 200, 1.0),
        ("layer_norm", 100, 0.99),
    ):
        exact = [one.is_exact for one in found if one.kind == kind]
        assert len(exact) >= least, kind
        assert sum(exact) / len(exact) >= share, [one for one in found if one.kind == kind and not one.is_exact][:3]
