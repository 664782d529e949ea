"""Steps that frameworks run as one operator, put together: what exporters take apart.

A bias after a product of matrices (linear), layer and group normalisation and GELU written out in elementary operators,
the products that make SiLU and hard-swish, slices and a concatenation that make a roll. Attention is a file of its own
(`attention`). What a model's own Python writes out in elementary operators (an RMS norm of transformers, a GELU
with `pow(x, 3)`) stays so: eager PyTorch runs it so, and it comes so from a `.pt2`.
"""

from __future__ import annotations

from collections.abc import Callable

from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.step_graph import StepGraph
from dippm.frontend.onnx.steps import Step
from dippm.graph import Attribute, TensorSpec


def fuse(steps: list[Step], static: StaticGraph, outputs: frozenset[str]) -> list[Step]:
    """The steps with patterns put together; each stands where its last member stood."""
    return _Fuser(steps, static, outputs).run()


class _Fuser(StepGraph):
    def run(self) -> list[Step]:
        rules: tuple[Callable[[Step], bool], ...] = (
            self._linear, self._layer_norm, self._gelu, self._tanh_gelu, self._gated, self._group_norm, self._roll,
            self._rsqrt, self._unbind,
        )  # fmt: skip
        for step in self.steps():
            if step.inputs and self.holds(step):
                any(rule(step) for rule in rules)
        return self.steps()

    def _linear(self, step: Step) -> bool:
        """MatMul with a weight, and the bias after it; Gemm. The weight is shown as (out, in)."""
        if step.kind == "linear" and step.target == "onnx.Gemm":
            node = step.nodes[0]
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            self._show_weight(step.inputs[1], transposed)
            return False
        if step.target != "onnx.MatMul" or len(step.inputs) != 2 or step.inputs[1] not in self.static.weights:
            return False
        weight = self.static.specs[step.inputs[1]]
        if len(weight.shape) != 2:
            return False
        bias = self.only_reader(step, "add")
        members, inputs, outputs = [step], list(step.inputs), step.outputs
        if bias is not None and len(bias.inputs) == 2:
            other = next((i for i in bias.inputs if i != step.outputs[0]), "")
            if self.fixed(other) and self.static.specs[other].shape == (weight.shape[1],):
                members.append(bias)
                inputs.append(other)
                outputs = bias.outputs
        self._show_weight(step.inputs[1], transposed=False)
        return self.merge(members, Step("linear", "onnx.MatMul", inputs, list(outputs), {}, converter="linear"))

    def _show_weight(self, name: str, transposed: bool) -> None:
        spec = self.static.weights.get(name)
        readers = self.readers_of(name)
        if spec is None or transposed or any(r.target not in ("onnx.Gemm", "onnx.MatMul") for r in readers):
            return
        if self.static.specs[name] == spec:
            self.static.weights[name] = TensorSpec(spec.shape[::-1], spec.dtype)

    def _layer_norm(self, mean: Step) -> bool:
        """(x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias, as opsets below 17 spell it."""
        if mean.kind != "mean" or (centred := self.only_reader(mean, "subtract")) is None:
            return False
        x = mean.inputs[0]
        readers = self.readers_of(centred.outputs[0])
        squared = next(
            (r for r in readers if r.kind == "power" or (r.kind == "multiply" and len(set(r.inputs)) == 1)), None
        )
        divided = next((r for r in readers if r.kind == "divide"), None)
        chain = [squared]
        for kind in ("mean", "add", "sqrt", "divide"):
            last = chain[-1]
            chain.append(self.only_reader(last, kind) if last is not None else None)
        if divided is None or chain[-1] is not divided or centred.inputs != [x, mean.outputs[0]]:
            return False
        if len(readers) != (2 if squared is None or squared.kind == "power" else 3):
            return False
        members = [mean, centred, *[c for c in chain if c is not None]]
        inputs, last = [x], divided
        for kind in ("multiply", "add"):
            scaled = self.only_reader(last, kind)
            other = next((i for i in scaled.inputs if i != last.outputs[0]), "") if scaled is not None else ""
            if scaled is None or not self.fixed(other):
                break
            members.append(scaled)
            inputs.append(other)
            last = scaled
        merged = Step("layer_norm", "onnx.LayerNorm", inputs, list(last.outputs), {}, converter="layer_norm")
        return self.merge(members, merged)

    def _gelu(self, divided: Step) -> bool:
        """x / sqrt(2), erf, + 1, times x, times 0.5 (the halving may come first)."""
        erf = self.only_reader(divided, "erf") if divided.kind in ("divide", "multiply") else None
        plus = self.only_reader(erf, "add") if erf is not None else None
        if erf is None or plus is None or self.number(plus) != 1.0 or self.number(divided) is None:
            return False
        x = divided.inputs[0]
        members, last = [divided, erf, plus], plus
        halved_first: Step | None = None
        for _ in range(2):
            product = self.only_reader(last, "multiply")
            if product is None:
                break
            other = next((i for i in product.inputs if i != last.outputs[0]), "")
            before = self.producer.get(other)
            if other != x and self.number(product) != 0.5:
                if before is None or before.kind != "multiply" or before.inputs[0] != x or self.number(before) != 0.5:
                    break
                if self.only_reader(before, "multiply") is not product:
                    break
                halved_first = before
            members.append(product)
            last = product
        if len(members) + (halved_first is not None) < 5:
            return False
        if halved_first is not None:
            members.append(halved_first)
        return self.merge(members, Step("gelu", "onnx.Gelu", [x], list(last.outputs), {}, converter="gelu"))

    def _gated(self, gate: Step) -> bool:
        """x times its own sigmoid is SiLU, times its own hard sigmoid hard-swish."""
        kind = {"sigmoid": "silu", "hardsigmoid": "hardswish"}.get(gate.kind)
        product = self.only_reader(gate, "multiply") if kind else None
        if kind is None or product is None or sorted(product.inputs) != sorted([gate.inputs[0], gate.outputs[0]]):
            return False
        target = {"silu": "onnx.Swish", "hardswish": "onnx.HardSwish"}[kind]
        merged = Step(kind, target, [gate.inputs[0]], list(product.outputs), {}, converter=kind)
        return self.merge([gate, product], merged)

    def _tanh_gelu(self, tanh: Step) -> bool:
        """x / 2 (1 + tanh(b (x + k x (x x)))), as the TorchScript-based exporter spells GELU's approximation.

        A model's own Python that says `pow(x, 3)` is not this.
        """
        if tanh.target != "onnx.Tanh":
            return False
        inner = self.producer.get(tanh.inputs[0])
        sum_ = self._scaled(inner)
        added = self.producer.get(sum_ or "")
        if inner is None or added is None or added.target != "onnx.Add":
            return False
        x, cubic = added.inputs[0], self.producer.get(added.inputs[1])
        cube = self.producer.get(self._scaled(cubic) or "")
        if cubic is None or cube is None or cube.target != "onnx.Mul" or cube.inputs[0] != x:
            return False
        square = self.producer.get(cube.inputs[1])
        if square is None or square.target != "onnx.Mul" or square.inputs != [x, x]:
            return False
        members, last = [square, cube, cubic, added, inner, tanh], tanh
        for kind in ("add", "multiply", "multiply"):
            following = self.only_reader(last, kind)
            if following is None:
                return False
            members.append(following)
            last = following
        merged = Step("gelu", "onnx.Gelu", [x], list(last.outputs), {"approximate": "tanh"}, converter="gelu")
        return self.merge(members, merged)

    def _scaled(self, product: Step | None) -> str | None:
        """What a product with a number multiplies."""
        if product is None or product.target != "onnx.Mul" or self.number(product) is None:
            return None
        return next((i for i in product.inputs if not self.is_number(i)), None)

    def _rsqrt(self, root: Step) -> bool:
        """One over a square root."""
        inverse = self.only_reader(root, "reciprocal") or self.only_reader(root, "divide")
        if root.target != "onnx.Sqrt" or inverse is None:
            return False
        if inverse.kind == "divide" and (inverse.inputs[1] != root.outputs[0] or self.number(inverse) != 1.0):
            return False
        merged = Step("rsqrt", "onnx.Rsqrt", [root.inputs[0]], list(inverse.outputs), {}, converter="rsqrt")
        return self.merge([root, inverse], merged)

    def _group_norm(self, norm: Step) -> bool:
        """Instance norm over (batch, groups, rest), given the shape back, times a weight, plus a bias a channel."""
        if norm.target != "onnx.InstanceNormalization":
            return False
        before, after = self.producer.get(norm.inputs[0]), self.only_reader(norm, "reshape")
        if before is None or after is None or before.kind != "reshape" or not self.feeds_only(before, norm):
            return False
        x = before.inputs[0]
        shape, grouped = self.static.specs[x].shape, self.static.specs[norm.inputs[0]].shape
        if self.static.specs[after.outputs[0]].shape != shape or len(grouped) != 3 or len(shape) < 2:
            return False
        members, inputs, last = [before, norm, after], [x], after
        for kind in ("multiply", "add"):
            scaled = self.only_reader(last, kind)
            other = next((i for i in scaled.inputs if i != last.outputs[0]), "") if scaled is not None else ""
            if scaled is None or not self.fixed(other) or self.static.specs[other].numel != shape[1]:
                break
            members.append(scaled)
            inputs.append(other)
            last = scaled
        for name in inputs[1:]:
            flat = TensorSpec((shape[1],), self.static.specs[name].dtype)
            self.static.weights[name] = self.static.specs[name] = flat
        attributes: dict[str, Attribute] = {"num_groups": grouped[1]}
        merged = Step("group_norm", "onnx.GroupNorm", inputs, list(last.outputs), attributes, converter="group_norm")
        return self.merge(members, merged)

    def _unbind(self, split: Step) -> bool:
        """Slices of one along a dimension that is then left away: by a split, or each by a slice of its own."""
        x = split.inputs[0]
        shape = self.static.specs[x].shape
        if split.target == "onnx.Split":
            axis = int(split.given.get("axis", 0) or 0) % len(shape)  # type: ignore[arg-type]
            slices, parts = [split], split.outputs
        elif split.target == "onnx.Slice" and split.recorded.startswith("aten.unbind"):
            slices = [r for r in self.readers_of(x) if r.target == "onnx.Slice"]
            found = self.static.constants.get(split.nodes[0].input[3]) if len(split.nodes[0].input) > 3 else None
            axis = 0 if found is None else int(found.reshape(-1)[0]) % len(shape)
            parts = [s.outputs[0] for s in slices]
            if [_cut(s, self.static, axis) for s in slices] != [
                (i, None if i == shape[axis] - 1 else i + 1) for i in range(shape[axis])
            ]:
                return False
        else:
            return False
        squeezes = [self.readers_of(o)[0] for o in parts if self.single(o)]
        left = (*shape[:axis], *shape[axis + 1 :])
        if not len(squeezes) == len(parts) == shape[axis]:
            return False
        if any(s.target != "onnx.Squeeze" or self.static.specs[s.outputs[0]].shape != left for s in squeezes):
            return False
        outputs = [s.outputs[0] for s in squeezes]
        merged = Step("split", "onnx.Split", [x], outputs, {"dim": axis}, converter="unbind")
        return self.merge([*slices, *squeezes], merged, first=True)

    def _roll(self, joined: Step) -> bool:
        """The end of a tensor before its beginning, along one dimension; of two in a row, one roll over both."""
        if joined.target != "onnx.Concat" or len(joined.inputs) != 2:
            return False
        parts = [self.producer.get(i) for i in joined.inputs]
        if not all(p is not None and p.target == "onnx.Slice" and self.feeds_only(p, joined) for p in parts):
            return False
        late, early = (p for p in parts if p is not None)
        specs = self.static.specs
        x = late.inputs[0]
        axis = int(joined.given.get("axis", 0) or 0) % len(specs[x].shape)  # type: ignore[arg-type]
        cut = _cut(late, self.static, axis)
        if early.inputs[0] != x or cut is None or cut[1] is not None or _cut(early, self.static, axis) != (0, cut[0]):
            return False
        if specs[x].shape != specs[joined.outputs[0]].shape:
            return False
        shift = -specs[early.outputs[0]].shape[axis]
        merged = Step("roll", "onnx.Roll", [x], list(joined.outputs), {}, converter="roll")
        merged.attributes |= {"shifts": (shift,), "dims": (axis,)}
        before = self.producer.get(x)
        members = [late, early, joined]
        if before is not None and before.converter == "roll" and self.feeds_only(before, late, early):
            first = before.attributes
            merged.attributes = {n: (*first[n], *merged.attributes[n]) for n in first}  # type: ignore[misc]
            merged.inputs = list(before.inputs)
            members = [before, *members]
        return self.merge(members, merged)


def _cut(part: Step, static: StaticGraph, axis: int) -> tuple[int, int | None] | None:
    """Where a slice along one axis starts and ends (None: at the end); None where it is another slice."""
    names = list(part.nodes[0].input)
    found = [static.constants.get(n) for n in names[1:]]
    if len(found) < 2 or any(f is None or f.size != 1 for f in found):
        return None
    start, end, *rest = (int(f.reshape(-1)[0]) for f in found if f is not None)
    length = static.specs[names[0]].shape
    if (rest and rest[0] % len(length) != axis) or (len(rest) > 1 and rest[1] != 1):
        return None
    size = length[axis]
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    return start, None if end >= size else end
