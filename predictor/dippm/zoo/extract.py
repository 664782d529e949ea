"""Graphs of the zoo's networks, through the same path as a user's file, without touching a weight."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from dippm.case import Precision
from dippm.data.batches import TEMPLATE_BATCH
from dippm.graph import ModelGraph
from dippm.zoo.build import build
from dippm.zoo.case import Network, ZooCase

GraphName = tuple[str, int, str]
"""Network key, batch, dtype of the floating-point tensors."""


def extract(network: Network, batch: int = TEMPLATE_BATCH, precision: Precision = Precision.FP32) -> ModelGraph:
    """The network's graph at a batch, made on the meta device.

    A network that casts (a norm computed in fp32) is another graph in half precision than its fp32 graph cast down.
    """
    from dippm.frontend import graph_from_module

    module, inputs = build(ZooCase(network, batch, precision), "meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return graph_from_module(module, inputs, batch=batch)


def append_graph(path: Path, name: GraphName, graph: ModelGraph | str) -> None:
    """Adds a graph (or the sentence that says why there is none) as one gzip member."""
    body = {
        "key": name[0],
        "batch": name[1],
        "float_dtype": name[2],
        **({"error": graph} if isinstance(graph, str) else {"graph": graph.to_dict()}),
    }
    with path.open("ab") as out:
        out.write(gzip.compress((json.dumps(body, separators=(",", ":")) + "\n").encode(), 6))


def read_graphs(paths: Iterable[Path]) -> Iterator[tuple[GraphName, ModelGraph | str]]:
    """(name, graph or the reason why there is none) of every line."""
    for path in paths:
        with gzip.open(path, "rt") as lines:
            for line in lines:
                body = json.loads(line)
                name = (body["key"], body["batch"], body.get("float_dtype", "float32"))
                yield name, body.get("error") or ModelGraph.from_dict(body["graph"])


def casts(graph: ModelGraph) -> bool:
    """Whether the network chooses dtypes itself, so that its graph must be made once for each precision."""
    return any(operator.kind == "cast" for operator in graph.operators)


def extract_all(wanted: Iterable[tuple[Network, int, Precision]], out: Path) -> int:
    """Extracts what `out` does not hold yet and gives the number made; a network that cannot costs its line."""
    done = {name for name, _ in read_graphs([out])} if out.exists() else set()
    torch.set_num_threads(1)
    made = 0
    for network, batch, precision in wanted:
        name = (network.key, batch, precision.float_dtype)
        if name in done:
            continue
        try:
            graph: ModelGraph | str = extract(network, batch, precision)
        except Exception as error:  # any constructor or export may fail; the line says how
            graph = f"{network.architecture}: {type(error).__name__}: {error}"[:400]
        append_graph(out, name, graph)
        made += 1
        print(f"{made} {network.architecture} {graph if isinstance(graph, str) else len(graph.operators)}", flush=True)
    return made
