"""Steps as a graph that is rewritten: who puts out a value, who reads it, and several steps made one."""

from __future__ import annotations

from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.steps import Step


class StepGraph:
    """The steps of a model in order, with their values' producers and readers; the base of what rewrites them."""

    def __init__(self, steps: list[Step], static: StaticGraph, outputs: frozenset[str]) -> None:
        self.static = static
        self._outputs = outputs
        self._steps: list[Step | None] = list(steps)
        self._position = {id(s): i for i, s in enumerate(steps)}
        self.producer = {o: s for s in steps for o in s.outputs}
        self._readers: dict[str, list[Step]] = {}
        for step in steps:
            for name in step.inputs:
                self._readers.setdefault(name, []).append(step)

    def steps(self) -> list[Step]:
        """The steps that are left, in order."""
        return [s for s in self._steps if s is not None]

    def holds(self, step: Step) -> bool:
        """Whether a step is still there, and was not made part of another."""
        return self._steps[self._position[id(step)]] is step

    def readers_of(self, name: str) -> list[Step]:
        """Steps that read a value; one that reads it twice is there twice."""
        return self._readers.get(name, [])

    def single(self, name: str) -> bool:
        """Whether one step alone reads a value, and it is no output of the model."""
        return len(self.readers_of(name)) == 1 and name not in self._outputs

    def only_reader(self, step: Step, kind: str) -> Step | None:
        """The one step that reads this step's one output, if it is of that kind and the output is not the model's."""
        if len(step.outputs) != 1 or step.outputs[0] in self._outputs:
            return None
        readers = self.readers_of(step.outputs[0])
        return readers[0] if len(readers) == 1 and readers[0].kind == kind else None

    def feeds_only(self, step: Step, *readers: Step) -> bool:
        """Whether exactly these steps read a step's first output, and it is no output of the model."""
        found = self.readers_of(step.outputs[0])
        same = len(found) == len(readers) and all(any(f is r for r in readers) for f in found)
        return same and step.outputs[0] not in self._outputs

    def fixed(self, name: str) -> bool:
        """Whether a value is a weight or a constant."""
        return name in self.static.weights or name in self.static.constants

    def is_number(self, name: str) -> bool:
        """Whether a value is a constant of one element."""
        array = self.static.constants.get(name)
        return array is not None and array.size == 1

    def number(self, step: Step) -> float | None:
        """The constant of one element among a step's operands (an exponent is no operand but an input of its node)."""
        name = next((i for i in step.nodes[0].input if self.is_number(i)), None)
        return None if name is None else float(self.static.constants[name].reshape(-1)[0])

    def merge(self, members: list[Step], merged: Step, *, first: bool = False) -> bool:
        """Put one step in the place of its last member (or its first). Always True."""
        members = sorted({id(m): m for m in members}.values(), key=lambda m: self._position[id(m)])
        merged.nodes = [n for m in members for n in m.nodes]
        place = self._position[id(members[0 if first else -1])]
        for member in members:
            self._steps[self._position[id(member)]] = None
            for name in member.inputs:
                self._readers[name] = [r for r in self._readers[name] if r is not member]
        self._steps[place] = merged
        self._position[id(merged)] = place
        for name in merged.outputs:
            self.producer[name] = merged
        for name in merged.inputs:
            self._readers.setdefault(name, []).append(merged)
        return True

    def rename(self, step: Step, old: str, new: str) -> None:
        """Give an output of a step another name; who reads it is told the new one elsewhere."""
        step.outputs = [new if o == old else o for o in step.outputs]
        self.producer[new] = step


def without_the_dead(steps: list[Step], outputs: frozenset[str]) -> list[Step]:
    """The steps that an output of the model depends on."""
    read = set(outputs)
    kept = []
    for step in reversed(steps):
        if not read.isdisjoint(step.outputs):
            kept.append(step)
            read.update(step.inputs)
    return kept[::-1]
