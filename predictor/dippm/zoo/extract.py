"""Graphs of the zoo's networks, through the same path as a user's file, without touching a weight."""

from __future__ import annotations

import gzip
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from dippm.case import Precision
from dippm.data.batches import TEMPLATE_BATCH, TEMPLATE_BATCHES, at_batch, collides
from dippm.graph import ModelGraph
from dippm.zoo.build import build
from dippm.zoo.case import Network, ZooCase

SPARE_BATCH = 79
"""The prime that the last of the templates is held against."""
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


def extract_template(network: Network, precision: Precision = Precision.FP32) -> ModelGraph:
    """The network's graph at the first batch of `TEMPLATE_BATCHES` from which it can be rescaled.

    1. At a prime batch, a size is taken to follow the batch if it is a multiple of the prime. Where no tensor holds two
       such sizes and no weight one, none is a multiple by chance.
    2. Otherwise the graph at the next prime says whether it is: it must be the rescaled one.

    Raises ValueError where no two neighbouring primes agree.
    """
    graph = extract(network, TEMPLATE_BATCH, precision)
    for following in (*TEMPLATE_BATCHES[1:], SPARE_BATCH):
        if not collides(graph):
            return graph
        other = extract(network, following, precision)
        if at_batch(graph, following).digest == other.digest:
            return graph
        graph = other
    raise ValueError("no two of the batches that templates are made at agree: store it at its own batch")


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


def _done(out: Path) -> set[GraphName]:
    """What a file holds, templates under the first one's name; one that may be wrong counts once it was made twice."""
    done: set[GraphName] = set()
    doubtful: set[GraphName] = set()
    for (key, batch, dtype), graph in read_graphs([out]) if out.exists() else ():
        name = (key, TEMPLATE_BATCH if batch in TEMPLATE_BATCHES else batch, dtype)
        if isinstance(graph, ModelGraph) and name[1] == TEMPLATE_BATCH and name not in doubtful and collides(graph):
            doubtful.add(name)
        else:
            done.add(name)
    return done


def extract_all(wanted: Iterable[tuple[Network, int, Precision]], out: Path) -> int:
    """Extracts what `out` does not hold yet and gives the number made; a network that cannot costs its line."""
    done = _done(out)
    torch.set_num_threads(1)
    made = 0
    for network, batch, precision in wanted:
        dtype = precision.float_dtype
        name = (network.key, batch, dtype)
        template = batch == TEMPLATE_BATCH
        if name in done:
            continue
        graph: ModelGraph | str
        try:
            graph = extract_template(network, precision) if template else extract(network, batch, precision)
            name = (network.key, graph.batch, dtype)
        except Exception as error:  # any constructor or export may fail; the line says how
            graph = f"{network.architecture}: {type(error).__name__}: {error}"[:400]
        append_graph(out, name, graph)
        made += 1
        print(f"{made} {network.architecture} {graph if isinstance(graph, str) else len(graph.operators)}", flush=True)
    return made
