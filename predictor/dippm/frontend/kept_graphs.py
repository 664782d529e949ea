"""Graphs kept by the content of the file that they were read from, so that no file is converted twice.

1. The same content at the same batch: the graph as it was.
2. At another batch: from a template, which two batches give and a third one confirms. It is made after the first
   answer, on a thread of its own, so that nobody waits for it.
3. Where there is no template (the file has one batch, or is another network at batch 1): each batch is converted
   once.
What a format's own framework made of it (`converter`) is kept too.
"""

from __future__ import annotations

import json
import logging
import threading
import zlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from dippm.artifact import Artifact
from dippm.errors import DippmError, ParseLimitExceeded
from dippm.frontend.batch_template import NotLinear, at_batch, template_of
from dippm.frontend.child import load_graph_in_child
from dippm.frontend.inputs import InputSpec
from dippm.graph import ModelGraph
from dippm.kept import Kept
from dippm.version import VERSION

logger = logging.getLogger(__name__)

FORM = 3
"""Raised whenever a door makes another graph of the same file: graphs that were kept before answer no longer."""

_ONE_AT_A_TIME = threading.Semaphore(1)
"""Templates are learned by one thread at once: each parse of another batch is a process of its own."""
_LEARNT_AT = (3, 8)
_CONFIRMED_AT = 5


class KeptGraphs:
    """`load_graph_in_child`, with what it gave kept. One for a process; other processes may use the same folder."""

    def __init__(self, kept: Kept, load: Callable[..., ModelGraph] = load_graph_in_child) -> None:
        self._kept = kept
        self._load = load
        self._learning: dict[str, threading.Thread] = {}

    def load(
        self, artifact: Artifact, *, content: str, batch: int, inputs: tuple[InputSpec, ...] | None = None
    ) -> ModelGraph:
        """The graph of a file at a batch. `content` names the file's content: another content, another name.

        Raises what `load_graph_in_child` raises; that is not kept.
        """
        key = _key(artifact, content, inputs)
        graph = self._known(key, batch)
        if graph is None:
            graph = self._convert(artifact, content, batch, inputs, key)
            self._learn(artifact, content, batch, inputs, key)
        return graph

    def settle(self) -> None:
        """Wait for templates that are being made."""
        for thread in list(self._learning.values()):
            thread.join()

    def _known(self, key: str, batch: int) -> ModelGraph | None:
        body = self._get(f"{key}@{batch}")
        if body is not None:
            return ModelGraph.from_dict(body)
        template = self._get(f"{key}@")
        if template is None or not template["form"] or batch < template["from"]:
            return None
        return at_batch(template["form"], batch)

    def _convert(
        self, artifact: Artifact, content: str, batch: int, inputs: tuple[InputSpec, ...] | None, key: str
    ) -> ModelGraph:
        graph = self._load(artifact, batch=batch, inputs=inputs, kept=(self._kept, content))
        self._put(f"{key}@{batch}", graph.to_dict())
        return graph

    def _learn(
        self, artifact: Artifact, content: str, batch: int, inputs: tuple[InputSpec, ...] | None, key: str
    ) -> None:
        if key in self._learning or self._get(f"{key}@") is not None:
            return

        def graph_at(other: int) -> ModelGraph:
            known = self._get(f"{key}@{other}")
            if known is not None:
                return ModelGraph.from_dict(known)
            return self._convert(artifact, content, other, inputs, key)

        def learn() -> None:
            try:
                with _ONE_AT_A_TIME:
                    template = _template(graph_at, batch)
                if template["form"] or artifact.path.exists():  # else it was let go meanwhile, which says nothing
                    self._put(f"{key}@", template)
            except Exception:  # nobody waits for it: the next batch is converted as the first one was
                logger.warning("%s: no template for other batches", artifact.uri, exc_info=True)
            finally:
                self._learning.pop(key, None)

        thread = threading.Thread(target=learn, name="dippm-template", daemon=True)
        self._learning[key] = thread
        thread.start()

    def _get(self, key: str) -> Any:
        value = self._kept.get(key)
        return None if value is None else json.loads(zlib.decompress(value))

    def _put(self, key: str, body: Any) -> None:
        self._kept.put(key, zlib.compress(json.dumps(body, separators=(",", ":")).encode(), 1))


def _template(graph_at: Callable[[int], ModelGraph], asked: int) -> dict[str, Any]:
    """`form`, from two batches and confirmed by a third (empty: there is none); `from`, the smallest batch for it."""
    nothing = {"form": {}, "from": 0}
    try:
        form = template_of(*(graph_at(batch) for batch in _LEARNT_AT))
        third = asked if asked > 1 and asked not in _LEARNT_AT else _CONFIRMED_AT
        if at_batch(form, third) != graph_at(third):
            return nothing
        # PyTorch takes a batch of 1 for a size that never changes: there it may be another network.
        alone = asked == 1 and at_batch(form, 1) == graph_at(1)
    except ParseLimitExceeded:
        raise  # it says how busy the process was, not what the model is
    except (DippmError, NotLinear):
        return nothing
    return {"form": form, "from": 1 if alone else 2}


def _key(artifact: Artifact, content: str, inputs: tuple[InputSpec, ...] | None) -> str:
    described = None if inputs is None else [asdict(one) for one in inputs]
    # The name too: notes of a graph may quote it, and it is somebody's.
    return json.dumps([VERSION, FORM, artifact.format, content, artifact.uri, described])
