"""Steps that frameworks run as one operator, put together: what exporters take apart.

A bias after a product of matrices (linear), layer normalisation and GELU written out in elementary operators, and the
products that make SiLU and hard-swish. ONNX runtimes fuse the same patterns when they load a model. Attention that was
exported as two products and a softmax stays so: whether it was ever one kernel, the file does not say.
"""

from __future__ import annotations

from collections.abc import Callable

from dippm.frontend.onnx_fold import StaticGraph
from dippm.frontend.onnx_steps import Step
from dippm.graph import TensorSpec


def fuse(steps: list[Step], static: StaticGraph, outputs: frozenset[str]) -> list[Step]:
    """The steps with patterns put together; each stands where its last member stood."""
    return _Fuser(steps, static, outputs).run()


class _Fuser:
    def __init__(self, steps: list[Step], static: StaticGraph, outputs: frozenset[str]) -> None:
        self._static = static
        self._outputs = outputs
        self._steps: list[Step | None] = list(steps)
        self._position = {id(s): i for i, s in enumerate(steps)}
        self._producer = {o: s for s in steps for o in s.outputs}
        self._readers: dict[str, list[Step]] = {}
        for step in steps:
            for name in step.inputs:
                self._readers.setdefault(name, []).append(step)

    def run(self) -> list[Step]:
        rules: tuple[Callable[[Step], bool], ...] = (self._linear, self._layer_norm, self._gelu, self._gated)
        for step in list(self._steps):
            if step is not None and self._steps[self._position[id(step)]] is step:
                any(rule(step) for rule in rules)
        return [s for s in self._steps if s is not None]

    def _only_reader(self, step: Step, kind: str) -> Step | None:
        """The one step that reads this step's one output, if it is of that kind and the output is not the model's."""
        if len(step.outputs) != 1 or step.outputs[0] in self._outputs:
            return None
        readers = self._readers.get(step.outputs[0], [])
        return readers[0] if len(readers) == 1 and readers[0].kind == kind else None

    def _fixed(self, name: str) -> bool:
        return name in self._static.weights or name in self._static.constants

    def _number(self, step: Step) -> float | None:
        """The constant scalar among a step's operands (an exponent is no operand but an input of its node)."""
        for name in step.nodes[0].input:
            array = self._static.constants.get(name)
            if array is not None and array.size == 1:
                return float(array.reshape(-1)[0])
        return None

    def _merge(self, members: list[Step], merged: Step) -> bool:
        """Put one step in the place of its last member."""
        members = sorted({id(m): m for m in members}.values(), key=lambda m: self._position[id(m)])
        merged.nodes = [n for m in members for n in m.nodes]
        place = self._position[id(members[-1])]
        for member in members:
            self._steps[self._position[id(member)]] = None
        self._steps[place] = merged
        self._position[id(merged)] = place
        for name in merged.outputs:
            self._producer[name] = merged
        for name in merged.inputs:
            kept = [r for r in self._readers.get(name, []) if not any(r is m for m in members)]
            self._readers[name] = [*kept, merged]
        return True

    def _linear(self, step: Step) -> bool:
        """MatMul with a weight, and the bias after it; Gemm. The weight is shown as (out, in)."""
        if step.kind == "linear" and step.target == "onnx.Gemm":
            node = step.nodes[0]
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            self._show_weight(step.inputs[1], transposed)
            return False
        if step.target != "onnx.MatMul" or len(step.inputs) != 2 or step.inputs[1] not in self._static.weights:
            return False
        weight = self._static.specs[step.inputs[1]]
        if len(weight.shape) != 2:
            return False
        bias = self._only_reader(step, "add")
        members, inputs, outputs = [step], list(step.inputs), step.outputs
        if bias is not None and len(bias.inputs) == 2:
            other = next((i for i in bias.inputs if i != step.outputs[0]), "")
            if self._fixed(other) and self._static.specs[other].shape == (weight.shape[1],):
                members.append(bias)
                inputs.append(other)
                outputs = bias.outputs
        self._show_weight(step.inputs[1], transposed=False)
        return self._merge(members, Step("linear", "onnx.MatMul", inputs, list(outputs), {}))

    def _show_weight(self, name: str, transposed: bool) -> None:
        spec = self._static.weights.get(name)
        readers = self._readers.get(name, [])
        if spec is None or transposed or any(r.target not in ("onnx.Gemm", "onnx.MatMul") for r in readers):
            return
        if self._static.specs[name] == spec:
            self._static.weights[name] = TensorSpec(spec.shape[::-1], spec.dtype)

    def _layer_norm(self, mean: Step) -> bool:
        """(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias, as opsets below 17 spell it."""
        if mean.kind != "mean" or (centred := self._only_reader(mean, "subtract")) is None:
            return False
        x = mean.inputs[0]
        readers = self._readers.get(centred.outputs[0], [])
        squared = next(
            (r for r in readers if r.kind == "power" or (r.kind == "multiply" and len(set(r.inputs)) == 1)), None
        )
        divided = next((r for r in readers if r.kind == "divide"), None)
        chain = [squared]
        for kind in ("mean", "add", "sqrt", "divide"):
            last = chain[-1]
            chain.append(self._only_reader(last, kind) if last is not None else None)
        if divided is None or chain[-1] is not divided or centred.inputs != [x, mean.outputs[0]]:
            return False
        if len(readers) != (2 if squared is None or squared.kind == "power" else 3):
            return False
        members = [mean, centred, *[c for c in chain if c is not None]]
        inputs, last = [x], divided
        for kind in ("multiply", "add"):
            scaled = self._only_reader(last, kind)
            other = next((i for i in scaled.inputs if i != last.outputs[0]), "") if scaled is not None else ""
            if scaled is None or not self._fixed(other):
                break
            members.append(scaled)
            inputs.append(other)
            last = scaled
        return self._merge(members, Step("layer_norm", "onnx.LayerNormalization", inputs, list(last.outputs), {}))

    def _gelu(self, divided: Step) -> bool:
        """x / sqrt(2), erf, + 1, times x, times 0.5 (the halving may come first)."""
        erf = self._only_reader(divided, "erf") if divided.kind in ("divide", "multiply") else None
        plus = self._only_reader(erf, "add") if erf is not None else None
        if erf is None or plus is None or self._number(plus) != 1.0 or self._number(divided) is None:
            return False
        x = divided.inputs[0]
        members, last = [divided, erf, plus], plus
        halved_first: Step | None = None
        for _ in range(2):
            product = self._only_reader(last, "multiply")
            if product is None:
                break
            other = next((i for i in product.inputs if i != last.outputs[0]), "")
            before = self._producer.get(other)
            if other != x and self._number(product) != 0.5:
                if before is None or before.kind != "multiply" or before.inputs[0] != x or self._number(before) != 0.5:
                    break
                if self._only_reader(before, "multiply") is not product:
                    break
                halved_first = before
            members.append(product)
            last = product
        if len(members) + (halved_first is not None) < 5:
            return False
        if halved_first is not None:
            members.append(halved_first)
        return self._merge(members, Step("gelu", "onnx.Gelu", [x], list(last.outputs), {}))

    def _gated(self, gate: Step) -> bool:
        """x times its own sigmoid is SiLU, times its own hard sigmoid hard-swish."""
        kind = {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(gate.kind)
        product = self._only_reader(gate, "multiply") if kind else None
        if kind is None or product is None or sorted(product.inputs) != sorted([gate.inputs[0], gate.outputs[0]]):
            return False
        target = {"silu": "onnx.Swish", "hardswish": "onnx.HardSwish"}[kind]
        return self._merge([gate, product], Step(kind, target, [gate.inputs[0]], list(product.outputs), {}))
