"""Module scopes of ONNX nodes, as PyTorch's exporters leave them in names and metadata."""

from __future__ import annotations

import ast
import re
from functools import lru_cache

import onnx

from dippm.frontend.onnx.steps import Step, metadata

STACK_TRACE = "pkg.torch.onnx.stack_trace"


def trace_of(step: Step) -> str:
    """The stack trace of an operator, outermost frame first, as Python prints it; empty where the file has none."""
    return step.trace if step.trace is not None else metadata(step.nodes[-1], STACK_TRACE)


def split_frames(trace: str) -> list[str]:
    """The frames of a stack trace, each with its line of code."""
    return [part.rstrip() for part in re.split(r"^(?=\s*File )", trace, flags=re.MULTILINE) if part.strip()]


class Scopes:
    """Module scopes of nodes in order: a module that is entered again is `path@1`, then `path@2`."""

    def __init__(self) -> None:
        self._previous: tuple[str, ...] = ()
        self._calls: dict[str, int] = {}
        self._shown: tuple[str, ...] = ()

    def of(self, step: Step) -> tuple[str, ...]:
        """Scope of the next operator, outermost first."""
        paths = step.path if step.path is not None else paths_of(step.nodes[-1])
        shown = []
        entered = False
        for depth, path in enumerate(paths):
            if not entered and depth < len(self._previous) and self._previous[depth] == path:
                shown.append(self._shown[depth])
                continue
            entered = True
            calls = self._calls[path] = self._calls.get(path, -1) + 1
            shown.append(f"{path}@{calls}" if calls else path)
        self._previous, self._shown = paths, tuple(shown)
        return self._shown


def paths_of(node: onnx.NodeProto) -> tuple[str, ...]:
    """Full module paths of a node, from its metadata (dynamo exporter) or its name (`/layer1/layer1.0/conv1/Conv`)."""
    return _paths(metadata(node, "pkg.torch.onnx.name_scopes"), node.name)


@lru_cache(maxsize=4096)
def _paths(recorded: str, name: str) -> tuple[str, ...]:
    if recorded:
        try:
            return tuple(str(p) for p in ast.literal_eval(recorded)[:-1])
        except (ValueError, SyntaxError, TypeError):
            return ()
    parts = [p for p in name.split("/")[1:-1] if p]
    if not name.startswith("/"):
        return ()
    paths = [""]
    above, last = "", ""
    for part in parts:
        if last and part.startswith(f"{last}."):
            path = f"{above}.{part}" if above else part
        else:
            above = paths[-1]
            path = f"{above}.{part}" if above else part
        last = part
        paths.append(path)
    return tuple(paths)
