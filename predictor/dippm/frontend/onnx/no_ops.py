"""Calls that the dynamo exporter leaves away because they change nothing: dropout, and copies to a dense layout.

It drops both as a `clone`, and the calls that follow still name it in their metadata
(`aten.add.Tensor(%clone_1, %layer_norm)`). Of a value that lies densely it is a dropout, else a copy. Nothing tells of
either in a file of the TorchScript-based exporter.
"""

from __future__ import annotations

import re

import onnx

from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.scopes import paths_of, split_frames, trace_of
from dippm.frontend.onnx.step_graph import StepGraph
from dippm.frontend.onnx.steps import FX_NODE, Step, metadata

_ARGUMENTS = re.compile(r"\]\(args = \((?P<args>.*?)\), kwargs")
_REFERENCE = re.compile(r"%(\w+)")
_CLONE = re.compile(r"clone(_\d+)?$")


def put_clones_back(steps: list[Step], static: StaticGraph, outputs: frozenset[str]) -> list[Step]:
    """The steps with what was left away; before they are put together to larger ones."""
    graph = StepGraph(steps, static, outputs)
    clones: dict[str, str] = {}
    made: dict[str, list[tuple[str, Step]]] = {}
    """Of a value its clones, each with the first step that reads it."""
    for step in steps:
        named = _named_by(step)
        if named is None:
            continue
        for place, name in enumerate(step.inputs):
            clone = _named_clone(step, name, named, graph)
            if clone is None:
                continue
            if clone not in clones:
                clones[clone] = f"{name}@{clone}"
                made.setdefault(name, []).append((clones[clone], step))
            elif clones[clone].partition("@")[0] != name:
                continue
            step.inputs[place] = clones[clone]
            _reads(step, name, clones[clone])
    after: dict[int, list[Step]] = {}
    before: dict[int, list[Step]] = {}
    for name, found in made.items():
        if len(found) == 1:
            producer = graph.producer[name]
            after.setdefault(id(producer), []).append(_clone_of(name, found[0][0], producer, static))
        else:  # what is cloned again and again (a mask, by each layer) is no dropout: a copy where it is read
            for result, reader in found:
                before.setdefault(id(reader), []).append(_copy_for(name, result, reader, static))
    return [s for step in steps for s in (*before.get(id(step), ()), step, *after.get(id(step), ()))]


def _named_by(step: Step) -> list[str] | None:
    """What a step was given, as its exporter's metadata names it, weights left out; None where there is none."""
    found = _ARGUMENTS.search(metadata(step.nodes[-1], FX_NODE)) if step.nodes else None
    if found is None:
        return None
    return [r for r in _REFERENCE.findall(found["args"]) if not r.startswith(("p_", "b_", "c_"))]


def _named_clone(step: Step, name: str, named: list[str], graph: StepGraph) -> str | None:
    """The clone that a step was given in place of a value.

    What another node of the same call put out was given to nobody, and a constant may be called a clone too.
    """
    if name not in graph.producer or name in named:
        return None
    call = metadata(step.nodes[-1], FX_NODE)
    group = [n for n in step.inputs if n in graph.producer and _call_of(graph.producer[n]) != call]
    missing = [n for n in dict.fromkeys(group) if n not in named]
    unseen = [r for r in dict.fromkeys(named) if r not in graph.static.specs]
    if name not in missing:
        return None
    if len(missing) != len(unseen):
        return None
    clone = unseen[missing.index(name)]
    return clone if _CLONE.match(clone) else None


def _call_of(producer: Step) -> str:
    return metadata(producer.nodes[-1], FX_NODE) if producer.nodes else ""


def _clone_of(name: str, result: str, producer: Step, static: StaticGraph) -> Step:
    """A dropout or copy of a value: a module call beside the one that put it out, reached from the same line."""
    above = _path(producer)[:-1]
    path = (*above, f"{above[-1]}.dropout" if above[-1] else "dropout") if above else ()
    return _clone(name, result, path, "\n".join(split_frames(trace_of(producer))[: len(above)]), static)


def _copy_for(name: str, result: str, reader: Step, static: StaticGraph) -> Step:
    """A copy of a value in the call that reads it."""
    return _clone(name, result, _path(reader), trace_of(reader), static)


def _clone(name: str, result: str, path: tuple[str, ...], trace: str, static: StaticGraph) -> Step:
    static.specs[result] = static.specs[name]
    node = onnx.helper.make_node("Identity", [name], [result])
    return Step("dropout", "onnx.Identity", [name], [result], {}, [node], "clone", path=path, trace=trace)


def _path(step: Step) -> tuple[str, ...]:
    return paths_of(step.nodes[-1]) if step.path is None else step.path


def _reads(step: Step, old: str, new: str) -> None:
    """The step's node reads another value; nodes are copied, as steps may share one."""
    node = onnx.NodeProto()
    node.CopyFrom(step.nodes[-1])
    for place, name in enumerate(node.input):
        if name == old:
            node.input[place] = new
    step.nodes = [*step.nodes[:-1], node]
