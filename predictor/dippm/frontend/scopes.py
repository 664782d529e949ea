"""Module scopes and source lines of fx nodes, as torch.export records them (and saves them inside a `.pt2`)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from typing import Any

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in .*\n\s+(?P<text>.*)$', re.MULTILINE)
_TORCH_OWN = ("/torch/nn/", "/torch/fx/", "/torch/_")


def scope_of(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Full module paths, outermost first; the second call of a module is `path@1`, as the stack's key says."""
    stack = meta.get("nn_module_stack") or {}
    scopes = []
    for key, entry in stack.items():
        path, key = entry[0] if isinstance(entry, tuple) else str(entry), str(key)
        call = key.rpartition("@")[2] if "@" in key else ""
        scopes.append(f"{path}@{call}" if call and not path.endswith(f"@{call}") else path)
    return tuple(scopes)


def source_of(meta: Mapping[str, Any]) -> str:
    """The lines that were running, innermost user code first, one a line, as `file.py:123: x = self.relu(x)`.

    torch.export keeps one frame for each `forward` on the stack, so the last line is the outermost module's and line
    -1-i belongs to `scope[i]`. torch.nn's own frame is dropped where it is the innermost one (it only says
    `F.relu(input)`).
    """
    trace = meta.get("stack_trace")
    if not trace:
        return ""
    frames = [(m["file"], m["line"], m["text"]) for m in _FRAME.finditer(trace)]
    while len(frames) > 1 and any(own in frames[-1][0] for own in _TORCH_OWN):
        frames.pop()
    return "\n".join(f"{posixpath.basename(f)}:{line}: {text.strip()}" for f, line, text in reversed(frames))
