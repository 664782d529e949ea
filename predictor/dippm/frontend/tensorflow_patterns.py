"""What Keras and TensorFlow write out in elementary operators, put together in an ONNX graph again (in place).

Only `onnx` is imported: the process of TensorFlow uses it on what tf2onnx gives, this one on what a TFLite file gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

_FIRST_TO_LAST, _LAST_TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def put_together(model: onnx.ModelProto) -> None:
    """Layer norms, global average pools; constants as second operands, where the ONNX door looks for them."""
    graph = _Graph(model.graph)
    for node in list(model.graph.node):
        fixed = [i in graph.initializers for i in node.input]
        if node.op_type in ("Add", "Mul") and fixed == [True, False]:
            node.input[0], node.input[1] = node.input[1], node.input[0]
    for node in list(model.graph.node):
        if node.op_type == "Add":
            graph.layer_norm(node)
        elif node.op_type == "ReduceMean":
            graph.global_pool(node)
    graph.drop_unread()


class _Graph:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self.initializers = {t.name: t for t in graph.initializer}
        self._producers = {o: n for n in graph.node for o in n.output}

    def _made(self, name: str, *kinds: str) -> onnx.NodeProto | None:
        node = self._producers.get(name)
        return node if node is not None and node.op_type in kinds else None

    def _numbers(self, name: str) -> list[float] | None:
        """Elements of an initializer that has its data."""
        tensor = self.initializers.get(name)
        if tensor is None or not (tensor.raw_data or tensor.float_data or tensor.int64_data or tensor.int32_data):
            return None
        array: np.ndarray[Any, Any] = numpy_helper.to_array(tensor)
        return [float(v) for v in array.reshape(-1)] if array.size <= 8 else None

    def _channel_mean(self, name: str) -> tuple[str, bool] | None:
        """What a value is the mean of, over its channels alone, which are kept, and whether those come first."""
        node = self._made(name, "ReduceMean")
        if node is None:
            return None
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        axes = attributes.get("axes") or (self._numbers(node.input[1]) if len(node.input) > 1 else None)
        kept = attributes.get("keepdims", 1)
        listed = [] if axes is None or not kept else [int(a) for a in axes]
        return (node.input[0], listed == [1]) if listed in ([-1], [2], [1]) else None

    def layer_norm(self, last: onnx.NodeProto) -> None:
        """`x * inverse + (offset - mean * inverse)`, `inverse = scale / sqrt(mean((x - mean)^2) + epsilon)`."""
        for scaled, rest in (tuple(last.input), tuple(reversed(last.input))):
            product, moved = self._made(scaled, "Mul"), self._made(rest, "Add", "Sub", "Mul")
            if product is None or moved is None:
                continue
            offset, shifted = "", moved
            if moved.op_type in ("Add", "Sub"):
                fixed = [i for i in moved.input if i in self.initializers]
                others = [m for i in moved.input if (m := self._made(i, "Mul")) is not None]
                if len(fixed) != 1 or len(others) != 1:
                    continue
                offset, shifted = fixed[0], others[0]
            for x, inverse in (tuple(product.input), tuple(reversed(product.input))):
                if inverse not in shifted.input:
                    continue
                mean = next((i for i in shifted.input if i != inverse), "")
                if (negated := self._made(mean, "Neg")) is not None:
                    mean = negated.input[0]
                found = self._variance(inverse, x, mean)
                over = self._channel_mean(mean)
                if found is not None and over is not None and over[0] == x:
                    self._replace(last, x, found[0], offset, found[1], channels_first=over[1])
                    return

    def _variance(self, inverse: str, x: str, mean: str) -> tuple[str, float] | None:
        """Scale (empty where there is none) and epsilon, if `inverse` is the inverse deviation of x."""
        scale = ""
        if (scaled := self._made(inverse, "Mul")) is not None:
            fixed = [i for i in scaled.input if i in self.initializers]
            if len(fixed) != 1:
                return None
            scale, inverse = fixed[0], next(i for i in scaled.input if i != fixed[0])
        reciprocal = self._made(inverse, "Reciprocal")
        root = self._made(reciprocal.input[0], "Sqrt") if reciprocal is not None else None
        padded = self._made(root.input[0], "Add") if root is not None else None
        if padded is None:
            return None
        epsilon = self._numbers(padded.input[1])
        over = self._channel_mean(padded.input[0])
        squared = self._made(over[0], "Mul", "Pow") if over is not None else None
        if epsilon is None or len(epsilon) != 1 or squared is None:
            return None
        centred = self._made(squared.input[0], "Sub")
        if centred is None or centred.input[0] != x:
            return None
        reshaped = self._made(centred.input[1], "Reshape")  # tf2onnx's transpose of a mean, which has one channel
        if mean not in (centred.input[1], reshaped.input[0] if reshaped is not None else ""):
            return None
        if squared.op_type == "Mul" and squared.input[1] != squared.input[0]:
            return None
        return scale, epsilon[0]

    def _replace(
        self, last: onnx.NodeProto, x: str, scale: str, offset: str, epsilon: float, *, channels_first: bool
    ) -> None:
        """A layer norm in the place of its last operator; channels come last while it runs, as PyTorch has them."""
        weight = scale or offset
        if not weight:
            return
        vectors = [self._vector(scale) if scale else self._ones(offset), *([self._vector(offset)] if offset else [])]
        if not channels_first:
            last.CopyFrom(
                helper.make_node(
                    "LayerNormalization", [x, *vectors], last.output, name=last.name, axis=-1, epsilon=epsilon
                )
            )
            return
        y = last.output[0]
        turned, normed = f"{y}_last", f"{y}_normed"
        before = [
            helper.make_node("Transpose", [x], [turned], name=turned, perm=_FIRST_TO_LAST),
            helper.make_node("LayerNormalization", [turned, *vectors], [normed], name=normed, axis=-1, epsilon=epsilon),
        ]
        position = list(self._graph.node).index(last)
        last.CopyFrom(helper.make_node("Transpose", [normed], [y], name=y, perm=_LAST_TO_FIRST))
        for node in reversed(before):
            self._graph.node.insert(position, node)
        for reader in list(self._graph.node):
            if y not in reader.input:
                continue
            if reader.op_type == "Transpose" and tuple(reader.attribute[0].ints) == _FIRST_TO_LAST:
                reader.CopyFrom(helper.make_node("Identity", [normed], reader.output, name=reader.name))
            elif reader.op_type == "Shape" and not reader.attribute:
                self._shape_of_turned(reader, normed)

    def _shape_of_turned(self, reader: onnx.NodeProto, normed: str) -> None:
        """The same shape from the tensor before it was turned, which then nobody reads turned."""
        order = f"{reader.output[0]}_order"
        self._graph.initializer.append(numpy_helper.from_array(np.array(_LAST_TO_FIRST, np.int64), order))
        own = f"{reader.output[0]}_last"
        position = list(self._graph.node).index(reader)
        reader.CopyFrom(helper.make_node("Gather", [own, order], reader.output, name=reader.name, axis=0))
        self._graph.node.insert(position, helper.make_node("Shape", [normed], [own], name=own))

    def _vector(self, name: str) -> str:
        """A weight as a vector."""
        tensor = self.initializers[name]
        if len(tensor.dims) == 1:
            return name
        flat = f"{name}_vector"
        if flat not in self.initializers:
            copy = self._graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = flat
            del copy.dims[:]
            copy.dims.append(int(np.prod(tensor.dims)))
            self.initializers[flat] = copy
        return flat

    def _ones(self, like: str) -> str:
        """A norm without scale: ones."""
        name, count = f"{like}_ones", int(np.prod(self.initializers[like].dims))
        ones = self._graph.initializer.add()
        ones.CopyFrom(numpy_helper.from_array(np.ones(count, np.float32), name))
        self.initializers[name] = ones
        return name

    def global_pool(self, node: onnx.NodeProto) -> None:
        """The mean over height and width of what was just brought to channels last is a pool over channels first."""
        turned = self._made(node.input[0], "Transpose")
        if turned is None or len(node.input) < 2 or self._numbers(node.input[1]) != [1.0, 2.0]:
            return
        attributes = {a.name: helper.get_attribute_value(a) for a in (*turned.attribute, *node.attribute)}
        if tuple(attributes.get("perm", ())) != _FIRST_TO_LAST or attributes.get("keepdims", 1):
            return
        pooled = f"{node.output[0]}_pooled"
        position = list(self._graph.node).index(node)
        pool = helper.make_node("GlobalAveragePool", [turned.input[0]], [pooled], name=pooled)
        node.CopyFrom(helper.make_node("Flatten", [pooled], list(node.output), name=node.name, axis=1))
        self._graph.node.insert(position, pool)

    def drop_unread(self) -> None:
        """Take out nodes and initializers that nothing reads any more."""
        read = {o.name for o in self._graph.output}
        kept = []
        for node in reversed(list(self._graph.node)):
            if read.intersection(node.output):
                kept.append(node)
                read.update(node.input)
                read.update(
                    i for a in node.attribute for g in (a.g, *a.graphs) for inner in g.node for i in inner.input
                )
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(kept)]
        tensors = [t for t in self._graph.initializer if t.name in read]
        tensors = [onnx.TensorProto.FromString(t.SerializeToString()) for t in tensors]
        del self._graph.node[:]
        del self._graph.initializer[:]
        self._graph.node.extend(kept)
        self._graph.initializer.extend(tensors)
