"""Scaled dot-product attention, put together again.

PyTorch's exporters write one call out as: query and key each times the square root of the scale, their product, plus
a mask (or a boolean one as 0 and -inf), softmax, rows of NaN to zero, and the product with the values. Models that
compute attention in their own Python scale once, before or after the product: eager PyTorch runs those operators one
by one, so they stay. Both factors scaled by the same number, or the exporter's own word for it, make it one call.
"""

from __future__ import annotations

import re

import numpy as np
import onnx

from dippm.frontend.onnx.fold import StaticGraph
from dippm.frontend.onnx.step_graph import StepGraph
from dippm.frontend.onnx.steps import FX_NODE, Step, metadata
from dippm.graph import Attribute, TensorSpec

_CALL = "aten.scaled_dot_product_attention"
_CAUSAL = re.compile(
    re.escape(_CALL) + r"\.default\]\(args = \(%\w+, %\w+, %\w+, (?P<mask>%?\w+), [\d.]+, (?P<causal>True|False)\)"
)
"""The call with its dropout and `is_causal` spelled out, as the dynamo exporter keeps it."""
_HIDDEN = -1e4
"""What is added to a score that counts for nothing is below."""


def fuse_attention(steps: list[Step], static: StaticGraph, outputs: frozenset[str]) -> list[Step]:
    """The steps with each attention put together, in the place of its last product."""
    return _Attention(steps, static, outputs).run()


class _Attention(StepGraph):
    def run(self) -> list[Step]:
        for step in self.steps():
            if step.kind == "softmax":
                self._attention(step)
        return self.steps()

    def _attention(self, softmax: Step) -> bool:
        members = [softmax]
        scores, mask = self._masked(softmax, members)
        product = self.producer.get(scores)
        if product is None or product.target != "onnx.MatMul" or not self.single(scores):
            return False
        members.append(product)
        query, query_scale = self._unscaled(product.inputs[0], members)
        key, key_scale = self._unscaled(product.inputs[1], members)
        exported = softmax.recorded.startswith(_CALL)
        if not exported and (query_scale is None or key_scale is None or not np.isclose(query_scale, key_scale)):
            return False
        last = self._weighted(softmax, members)
        if last is None:
            return False
        key, transposed = self._transposed(key, members)
        attributes: dict[str, Attribute] = {}
        width = self.static.specs[query].shape[-1]
        scale = (query_scale or 1.0) * (key_scale or 1.0)
        if not np.isclose(scale, width**-0.5, rtol=1e-4):
            attributes["scale"] = float(scale)
        operands = [query, key, last.inputs[1]]
        if mask is not None:
            if self._is_causal(mask, softmax):
                attributes["is_causal"] = True
            else:
                operands.append(self._boolean(mask, members))
        if transposed:
            attributes["key_transposed"] = True
        merged = Step(
            "scaled_dot_product_attention", "onnx.Attention", operands, list(last.outputs), attributes,
            converter="attention",
        )  # fmt: skip
        return self.merge(members, merged)

    def _masked(self, softmax: Step, members: list[Step]) -> tuple[str, str | None]:
        """The scores before the mask, and the mask."""
        scores = softmax.inputs[0]
        added = self.producer.get(scores)
        if added is None or added.target != "onnx.Add" or not self.single(scores):
            return scores, None
        for position in (0, 1):
            before = self.producer.get(added.inputs[position])
            if before is not None and before.target == "onnx.MatMul":
                members.append(added)
                return added.inputs[position], added.inputs[1 - position]
        return scores, None

    def _unscaled(self, factor: str, members: list[Step]) -> tuple[str, float | None]:
        step = self.producer.get(factor)
        if step is None or step.target not in ("onnx.Mul", "onnx.Div") or not self.single(factor):
            return factor, None
        number = self.number(step)
        if number is None:
            return factor, None
        members.append(step)
        rest = next(i for i in step.inputs if not self.is_number(i))
        return rest, number if step.target == "onnx.Mul" else 1.0 / number

    def _weighted(self, softmax: Step, members: list[Step]) -> Step | None:
        """The product with the values, over the way that rows without a score are put to zero."""
        last = softmax
        readers = self.readers_of(softmax.outputs[0])
        if len(readers) == 2:
            found = {r.target: r for r in readers}
            check, chosen = found.get("onnx.IsNaN"), found.get("onnx.Where")
            if check is None or chosen is None or chosen.inputs[0] != check.outputs[0]:
                return None
            members += [check, chosen]
            last = chosen
        product = self.only_reader(last, "batch_matmul")
        if product is None or product.inputs[0] != last.outputs[0]:
            return None
        members.append(product)
        return product

    def _transposed(self, key: str, members: list[Step]) -> tuple[str, bool]:
        """The key as the call takes it, and whether it still has to be transposed.

        The exporter's transposition is left away, or another one that it was merged with is undone in part.
        """
        step = self.producer.get(key)
        specs = self.static.specs
        if step is None or not self.single(key):
            return key, True
        if step.target == "onnx.Transpose":
            given = step.given.get("perm")
            order = list(given if isinstance(given, tuple) else reversed(range(len(specs[key].shape))))
            order[-2:] = reversed(order[-2:])
            if order == sorted(order):
                members.append(step)
                return step.inputs[0], False
            name = f"{key}@key"
            shape = specs[step.inputs[0]].shape
            specs[name] = TensorSpec(tuple(shape[d] for d in order), specs[key].dtype)
            node = onnx.NodeProto()
            node.CopyFrom(step.nodes[0])
            step.nodes = [node]
            step.given = {**step.given, "perm": tuple(order)}
            self.rename(step, key, name)
            return name, False
        if step.target == "onnx.Reshape":
            turned = self.producer.get(step.inputs[0])
            flat = self.producer.get(turned.inputs[0]) if turned is not None else None
            if turned is None or flat is None or turned.target != "onnx.Transpose" or flat.target != "onnx.Reshape":
                return key, True
            shape, out = specs[flat.inputs[0]].shape, specs[key].shape
            whole = (*out[:-2], out[-1], out[-2])
            if shape == whole:
                members += [m for m in (flat, turned, step) if self.single(m.outputs[0])]
                return flat.inputs[0], False
            if self.single(flat.outputs[0]) and self.single(turned.outputs[0]):
                # The model's own reshape of the key and the exporter's were made one: it is the model's again.
                name = f"{key}@key"
                specs[name] = TensorSpec(whole, specs[key].dtype)
                self.rename(flat, flat.outputs[0], name)
                members += [turned, step]
                return name, False
        return key, True

    def _is_causal(self, mask: str, softmax: Step) -> bool:
        """Whether the mask hides what lies above the diagonal, and nothing else.

        The dynamo exporter's word for it outweighs the elements, which it may have put into another file; of a large
        mask there are but the operators that make it.
        """
        if (told := _CAUSAL.search(metadata(softmax.nodes[-1], FX_NODE))) is not None:
            return told["mask"] == "None" and told["causal"] == "True"
        array = self.static.constants.get(mask)
        if array is None:
            return self._is_made_causal(mask)
        if array.ndim != 2 or array.dtype.kind != "f":
            return False
        return bool(np.array_equal(array == 0, np.tril(np.ones(array.shape, dtype=bool))))

    def _is_made_causal(self, mask: str) -> bool:
        """Whether a mask is 0 where the lower triangle of ones is not 0, and -inf elsewhere (`Trilu`, `Equal`)."""
        chain = [self.producer.get(mask)]
        for kind in ("Where", "Equal", "Trilu", "Expand"):
            step = chain[-1]
            if step is None or step.target != f"onnx.{kind}":
                return False
            chain.append(self.producer.get(step.nodes[0].input[0]))
        chosen, equal, triangle, ones = (s.nodes[0].input for s in chain[:4] if s is not None)
        hidden, shown = self._element(chosen[1]), self._element(chosen[2])
        offset = self._element(triangle[1]) if len(triangle) > 1 and triangle[1] else 0.0
        upper = chain[2].given.get("upper", 1) if chain[2] is not None else 1
        elements = self._element(equal[1]), shown, offset, upper, self._element(ones[0])
        return elements == (0, 0, 0, 0, 1) and hidden is not None and hidden < _HIDDEN

    def _element(self, name: str) -> float | None:
        return float(self.static.constants[name].reshape(-1)[0]) if self.is_number(name) else None

    def _boolean(self, mask: str, members: list[Step]) -> str:
        """The boolean mask that was made 0 and -inf, else the mask as it is."""
        step = self.producer.get(mask)
        if step is None or step.target != "onnx.Where":
            return mask
        shown, hidden = (self.static.constants.get(i) for i in step.inputs[1:])
        if shown is None or hidden is None or shown.size != 1 or hidden.size != 1:
            return mask
        if float(shown.reshape(-1)[0]) != 0 or float(hidden.reshape(-1)[0]) > _HIDDEN:
            return mask
        if self.single(mask):
            members.append(step)
        return step.inputs[0]
