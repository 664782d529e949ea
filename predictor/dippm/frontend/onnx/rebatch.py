"""A file exported at a fixed batch, given another one.

An exporter that was not told of a batch spells it out: in target shapes, in constants that have a row for each picture
(masks, class tokens, states to begin with), in positions that are cut at. So the graph is made static twice: at the
batch of the file, which is what it says, and at the one asked for. A value carries the batch where the two shapes
differ (`batched_values`). Going through the nodes at the batch asked for

1. a number that is spelled out is written for the new batch (`spelled_out`);
2. a constant or weight that meets the batch with a row for each picture is one row, expanded: if its rows are alike
   (`batched_rows`);
3. every result is held against the file's own: each dimension is that of the file, or the batch's, and what reads the
   batch hands it on.

What does not come out so is refused: a wrong shape would be priced without a word. What a constant must be is only
known where it meets the batch, maybe behind other operators; so the pass is made again when it found one (2).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx

from dippm.errors import InputShapeError
from dippm.frontend.onnx.batched_rows import BatchedRows
from dippm.frontend.onnx.batched_values import BatchedValues, FixedBatch, integer
from dippm.frontend.onnx.file import OnnxFile
from dippm.frontend.onnx.fold import Folder, StaticGraph, fold
from dippm.frontend.onnx.node import OnnxNode
from dippm.frontend.onnx.spelled_out import SpelledOut
from dippm.frontend.onnx.types import Elements
from dippm.graph import TensorSpec

MAX_PASSES = 16
"""Each finds a constant that the one before did not meet."""
_REDUCING = ("Reduce", "Arg")


def fold_rebatched(
    file: OnnxFile, own_inputs: dict[str, TensorSpec], inputs: dict[str, TensorSpec], *, file_batch: int, batch: int
) -> StaticGraph:
    """`fold` of a file that was exported at `file_batch`, at `batch`. Inputs by name, with the batch, at either.

    Raises FixedBatch where the file cannot be given another batch; what `fold` does where it does not go through at its
    own.
    """
    rebatch = _Rebatch(file, fold(file, own_inputs), file_batch, batch)
    for _ in range(MAX_PASSES):
        folder = Folder(file, inputs, rebatch)
        known = rebatch.begin(folder)
        try:
            static = folder.run()
        except FixedBatch:
            raise
        except InputShapeError as error:
            if rebatch.known == known:
                raise FixedBatch(str(error)) from None
            continue  # what was found may mend it
        if rebatch.known == known:
            static.notes.extend(rebatch.notes())
            return static
    raise FixedBatch("its constants depend on each other")


class _Rebatch:
    """What `Folder` asks at every node (`fold.Amendments`)."""

    def __init__(self, file: OnnxFile, own: StaticGraph, file_batch: int, batch: int) -> None:
        self._own = own
        self._values = BatchedValues(own, file_batch, batch)
        self._spelled = SpelledOut(self._values)
        self._rows = BatchedRows(self._values, self._spelled.shapes, file.path)

    def begin(self, folder: Folder) -> int:
        """Start a pass. Returns how much is known."""
        self._folder = folder
        self._values.begin(folder)
        self._waiting: set[str] = set()
        """Constants of which there is a row, not expanded yet."""
        self._expanded: set[str] = set()
        return self.known

    @property
    def known(self) -> int:
        """How many constants are known to carry the batch."""
        return self._rows.known

    def notes(self) -> Iterator[str]:
        """What was taken for granted."""
        for name in self._rows.unseen:
            yield (
                f"{name!r} {self._own.specs[name].shape} was taken to be one row for each of the file's batch of "
                f"{self._values.old}: its elements are not at hand"
            )

    def row(self, name: str, elements: Elements | None) -> Elements | TensorSpec | None:
        """The one row of a constant or weight; it is expanded under the old name before its first reader."""
        place, spec = self._rows.places.get(name), self._own.specs.get(name)
        if place is None or spec is None or name in self._expanded:
            return None
        if elements is not None and elements.shape != spec.shape:
            return None  # computed, and of the batch already
        self._waiting.add(name)
        if elements is not None:
            return np.take(elements, [0], place.axis)
        return TensorSpec((*spec.shape[: place.axis], 1, *spec.shape[place.axis + 1 :]), spec.dtype)

    def before(self, node: OnnxNode) -> Iterator[OnnxNode]:
        """Expansions of the constants that a node reads, and the node at the new batch."""
        for name in dict.fromkeys(node.inputs):
            if name in self._waiting:
                self._waiting.remove(name)
                self._expanded.add(name)
                shape = self._values.scaled(self._values.shape(name), self._rows.places[name].axis)
                self._folder.numbers(f"{name}@shape", shape)
                inputs = [f"{name}@row", f"{name}@shape"]
                proto = onnx.helper.make_node("Expand", inputs, [name], name=f"{node.name}_expand")
                proto.metadata_props.extend(node.proto.metadata_props)  # in the module that it is read in
                yield OnnxNode(proto)
        self._rows.meet(node)
        yield self._spelled.rewritten(node)

    def after(self, node: OnnxNode) -> None:
        """Hold the results of a node against the file's own."""
        if any(name in self._expanded for name in node.outputs):
            return  # the expansion of a row: the file has no such node
        values = self._values
        there = (name for name in node.inputs if name in self._own.specs)  # numbers may have been written anew
        carried = [place for name in there if (place := values.place(name))]
        outer = {place.outer for place in carried if place.axis >= 0} or {1}
        for name in filter(None, node.outputs):
            place = values.place(name)
            if place is None and carried and not node.kind.startswith(_REDUCING):
                raise FixedBatch(f"{node.kind} {node.name or name!r} loses the batch")
            if place is None or name in values.outer:
                continue
            if node.kind == "Concat" and place.axis == integer(node, "axis", 0) % len(values.shape(name)):
                outer = {each * len(node.inputs) for each in outer}
            if outer != {1}:
                values.outer[name] = next(iter(outer)) if len(outer) == 1 else -1
