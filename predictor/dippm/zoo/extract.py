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


def extract(network: Network, batch: int = TEMPLATE_BATCH) -> ModelGraph:
    """The network's graph at a batch, in fp32, made on the meta device."""
    from dippm.frontend import graph_from_module

    module, inputs = build(ZooCase(network, batch, Precision.FP32), "meta")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return graph_from_module(module, inputs, batch=batch)


def append_graph(path: Path, key: str, batch: int, graph: ModelGraph | str) -> None:
    """Adds a graph (or the sentence that says why there is none) as one gzip member."""
    body = {"key": key, "batch": batch, **({"error": graph} if isinstance(graph, str) else {"graph": graph.to_dict()})}
    with path.open("ab") as out:
        out.write(gzip.compress((json.dumps(body, separators=(",", ":")) + "\n").encode(), 6))


def read_graphs(paths: Iterable[Path]) -> Iterator[tuple[str, int, ModelGraph | str]]:
    """(network key, batch, graph or the reason why there is none) of every line."""
    for path in paths:
        with gzip.open(path, "rt") as lines:
            for line in lines:
                body = json.loads(line)
                yield body["key"], body["batch"], body.get("error") or ModelGraph.from_dict(body["graph"])


def extract_all(wanted: Iterable[tuple[Network, int]], out: Path) -> int:
    """Extracts what `out` does not hold yet; a network that cannot be exported costs its line. Gives the number made."""
    done = {(key, batch) for key, batch, _ in read_graphs([out])} if out.exists() else set()
    torch.set_num_threads(1)
    made = 0
    for network, batch in wanted:
        if (network.key, batch) in done:
            continue
        try:
            graph: ModelGraph | str = extract(network, batch)
        except Exception as error:  # any constructor or export may fail; the line says how
            graph = f"{network.architecture}: {type(error).__name__}: {error}"[:400]
        append_graph(out, network.key, batch, graph)
        made += 1
        print(f"{made} {network.architecture} {graph if isinstance(graph, str) else len(graph.operators)}", flush=True)
    return made
