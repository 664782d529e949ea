"""A deep stack exported by three of its layers gives the graph that the whole model's export gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dippm.frontend import repeated_layers
from dippm.frontend.exported_program import graph_of_module
from dippm.frontend.repeated_layers import graph_of_layers

DEPTH = 9


class Layer(nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        y, gate = self.up(self.norm(x)).chunk(2, -1)
        return x + self.down(torch.cat((y * table, gate), -1))


class Scaled(Layer):
    """As GPT-2 can: by a number of its own."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        return super().forward(x, table) / (self.number + 1)


class EverySixth(Layer):
    """As decoders do that attend to everything in one layer of so many: what differs is not seen in three layers."""

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = super().forward(x, table)
        return x.relu() if self.number % 6 == 5 else x


class Model(nn.Module):
    def __init__(self, kind: type[Layer] = Layer, tables: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.blocks = nn.ModuleList(kind(n) for n in range(DEPTH))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 50, bias=False)
        self.tables = tables
        self.all_states = False

    def forward(self, input_ids: Tensor) -> Any:
        x = self.embed(input_ids)
        tables = [x.sin() for _ in range(self.tables)]
        states = []
        for number, block in enumerate(self.blocks):
            x = block(x, tables[number // 5 % self.tables])
            states.append(x)
        x = self.head(self.norm(x))
        return (x, *states) if self.all_states else x


def run(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Hold both graphs against each other; how many layers each export had."""
    model = model.eval().to("meta")
    ids = {"input_ids": torch.empty(2, 7, dtype=torch.int64, device="meta")}
    depths = []

    def counted(module: Any, *args: Any, **kwargs: Any) -> Any:
        depths.append(len(module.blocks))
        return graph_of_module(module, *args, **kwargs)

    monkeypatch.setattr(repeated_layers, "graph_of_module", counted)
    assert graph_of_layers(model, ids, batch=2) == graph_of_module(model, ids, batch=2)
    assert len(model.blocks) == DEPTH  # type: ignore[arg-type]  # put back
    return depths


def test_equal_layers_are_exported_three_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(Model(), monkeypatch) == [3]


def test_a_tied_head_stays_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    model.head.weight = model.embed.weight
    assert run(model, monkeypatch) == [3]


@pytest.mark.parametrize("kind", [Scaled, EverySixth])
def test_layers_that_differ_by_their_number_are_all_exported(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(Model(kind), monkeypatch) == [DEPTH]


def test_layers_that_read_different_tensors_are_all_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 3's layers take one of two rotary tables of one shape."""
    assert run(Model(tables=2), monkeypatch) == [DEPTH]


def test_where_every_layer_is_put_out_all_are_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    model.all_states = True
    assert run(model, monkeypatch)[-1] == DEPTH


def test_layers_of_other_sizes_are_all_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    model.blocks[4].up.bias = None
    assert run(model, monkeypatch) == [DEPTH]


def test_a_model_that_reads_data_is_exported_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks(Model):
        def forward(self, input_ids: Tensor) -> Any:
            if not torch.compiler.is_exporting() or len(self.blocks) < DEPTH:
                raise IndexError("counts its layers")
            return super().forward(input_ids)

    assert run(Looks(), monkeypatch) == [3, DEPTH]
