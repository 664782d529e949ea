"""PMGNS, the network of DIPPM (Panner Selvam and Brorsson, Euro-Par 2023, section 3.4), in PyTorch Geometric.

Three GraphSAGE blocks over the operators, their mean joined with the static features, three fully connected blocks:
as in the paper. New here is that it answers on two levels: an operator's workspace, kernel time and kernel count from
the node embeddings, and the graph's log residuals over what is composed of the operators.

Only training and evaluation import this module (PyTorch Geometric takes seconds to import); predictions run the same
forward pass in NumPy (`dippm.network.forward`), and a test holds the two together.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from dippm.network.featurizer import NODE_COLUMNS, STATIC_COLUMNS, works
from dippm.network.workspace import CLASSES
from dippm.vocabulary import KINDS

with warnings.catch_warnings():
    # PyTorch Geometric 2.8 calls the deprecated torch.jit.script while it is imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    from torch_geometric.nn import SAGEConv, global_add_pool

OPERATOR_COLUMNS: tuple[str, ...] = (
    "log_time_residual", "kernels_logit", "log_kernels", "workspace_log_ratio", *(f"workspace:{c}" for c in CLASSES)
)  # fmt: skip
GRAPH_COLUMNS: tuple[str, ...] = ("allocated", "reserved", "device_ms", "host_ms", "energy_j")
"""Log residuals of the measured value over the composed one."""


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Sizes of the network; the paper's (its Table 3) are the defaults."""

    hidden: int = 512
    blocks: int = 3
    dropout: float = 0.05
    kind_width: int = 24
    """Width of the operator kind's embedding."""
    head: int = 256
    """Width of the operator head."""
    edges: bool = True
    """False is the ablation: every operator is seen alone."""


class SAGEBlock(nn.Module):
    """GraphSAGE (mean of the neighbours), layer normalisation, ReLU, dropout; residual where the width stays."""

    def __init__(self, width_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.conv = SAGEConv(width_in, width, aggr="mean")
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)
        self.residual = width_in == width

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """[n, width_in], [2, e] -> [n, width]."""
        y: Tensor = self.drop(torch.relu(self.norm(self.conv(x, edges))))
        return x + y if self.residual else y


class DenseBlock(nn.Module):
    """Linear, layer normalisation, ReLU, dropout."""

    def __init__(self, width_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width_in, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width_in] -> [..., width]."""
        y: Tensor = self.drop(torch.relu(self.norm(self.linear(x))))
        return y


class PMGNS(nn.Module):
    """Nodes, edges and static features in; columns for each operator and for each graph out."""

    def __init__(self, hyper: Hyperparameters) -> None:
        super().__init__()
        self.hyper = hyper
        width_in = len(NODE_COLUMNS) + hyper.kind_width
        self.kinds = nn.Embedding(len(KINDS), hyper.kind_width)
        widths = [width_in, *[hyper.hidden] * hyper.blocks]
        self.sage = nn.ModuleList(SAGEBlock(a, b, hyper.dropout) for a, b in pairwise(widths))
        self.operator_block = DenseBlock(hyper.hidden + width_in, hyper.head, hyper.dropout)
        self.operator_out = nn.Linear(hyper.head, len(OPERATOR_COLUMNS))
        widths = [hyper.hidden + len(STATIC_COLUMNS), *[hyper.hidden] * hyper.blocks]
        self.dense = nn.ModuleList(DenseBlock(a, b, hyper.dropout) for a, b in pairwise(widths))
        self.graph_out = nn.Linear(hyper.hidden, len(GRAPH_COLUMNS))
        nn.init.zeros_(self.graph_out.weight)
        nn.init.zeros_(self.graph_out.bias)

    def forward(
        self, nodes: Tensor, kinds: Tensor, edges: Tensor, statics: Tensor, graph_of: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Some graphs put together: ([n, operator columns], [g, graph columns]).

        Nodes [n, node columns] and statics [g, static columns] are standardised; kinds [n], edges [2, e], graph_of [n].
        """
        x, embedded = self.embed(nodes, kinds, edges)
        return self.operators(x, embedded), self.graphs(self.pool(embedded, kinds, graph_of, len(statics)), statics)

    def embed(self, nodes: Tensor, kinds: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs joined with the kind's embedding [n, width_in], and what the blocks make of them [n, hidden]."""
        x = torch.cat([nodes, self.kinds(kinds)], dim=1)
        embedded = x
        for block in self.sage:
            embedded = block(embedded, edges if self.hyper.edges else edges[:, :0])
        return x, embedded

    def operators(self, x: Tensor, embedded: Tensor) -> Tensor:
        """Operator columns, [n, len(OPERATOR_COLUMNS)]."""
        y: Tensor = self.operator_out(self.operator_block(torch.cat([embedded, x], dim=1)))
        return y

    def graphs(self, pooled: Tensor, statics: Tensor) -> Tensor:
        """Graph columns, [g, len(GRAPH_COLUMNS)]: the mean over operators, joined with the static features."""
        y = torch.cat([pooled, statics], dim=1)
        for block in self.dense:
            y = block(y)
        out: Tensor = self.graph_out(y)
        return out

    def pool(self, embedded: Tensor, kinds: Tensor, graph_of: Tensor, graphs: int) -> Tensor:
        """Mean embedding of each graph's operators, [g, hidden]; those that do nothing are not counted."""
        counted = torch.from_numpy(works(np.arange(len(KINDS)))).to(kinds.device)[kinds].to(embedded.dtype)[:, None]
        total: Tensor = global_add_pool(embedded * counted, graph_of, size=graphs)
        count: Tensor = global_add_pool(counted, graph_of, size=graphs)
        return total / count.clamp(min=1)
