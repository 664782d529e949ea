"""The process that converts one model to ONNX: limits first, then the framework, then the file.

It runs in an interpreter that need not have PyTorch, TVM or this distribution (`converter` says how), so it imports
what has no needs of its own.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from dippm.errors import DippmError
from dippm.frontend.isolation import deny_programs, leave_network, leave_processes
from dippm.frontend.limits import Limits, limit_self
from dippm.processes import close_memory, die_with_parent


@dataclass(frozen=True, slots=True)
class Converted:
    """What a converter makes of a model file."""

    onnx: bytes
    """A serialized ModelProto; weights may be left out of it, where it still says their shapes."""
    notes: tuple[str, ...] = ()
    """What the user should know of the conversion, a sentence each."""


def main() -> None:
    """One request on standard input, one answer on standard output: a line of JSON, then the ONNX model."""
    answer_to = os.dup(1)
    os.dup2(2, 1)  # what frameworks print is no part of the answer
    request = json.loads(sys.stdin.buffer.read())
    die_with_parent()
    close_memory()  # to the child that reads the next file
    limit_self(Limits(**request["limits"]))
    leave_network()
    leave_processes()
    head, onnx = _answer(request)
    with os.fdopen(answer_to, "wb") as pipe:
        pipe.write(json.dumps(head).encode() + b"\n" + onnx)
        pipe.flush()
    os._exit(0)  # frameworks may crash when an interpreter shuts down around them; all is said


def _answer(request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    shown = request["shown"]
    try:
        if request["refusals"]:
            import_module(request["refusals"]).refuse(Path(request["path"]), shown)
        if missing := [names for names, version in versions(request["packages"]).items() if version is None]:
            return {"missing": missing}, b""
        module = import_module(request["module"])
        deny_programs()  # not before: frameworks look for compilers and the like when they are imported
        converted: Converted = module.convert(Path(request["path"]), shown)
    except DippmError as error:
        return {"error": type(error).__name__, "message": str(error)}, b""
    except MemoryError:
        limit = request["limits"]["address_space_bytes"] >> 20
        return {"error": "ParseLimitExceeded", "message": f"converting {shown} needs more than {limit} MiB"}, b""
    except Exception as error:
        # The edge of a framework: it raises anything on a file that is damaged in a way of its own.
        first = (str(error).strip() or "no reason given").splitlines()[0][:200]
        said = f"{shown} cannot be converted to ONNX: {type(error).__name__}: {first}"
        return {"error": "ModelFormatError", "message": said}, b""
    return {"notes": converted.notes}, converted.onnx


def versions(distributions: Sequence[str]) -> dict[str, str | None]:
    """Version of each distribution in this interpreter, None where it is not installed; nothing is imported.

    `a|b` is the first of them that is installed.
    """
    found: dict[str, str | None] = dict.fromkeys(distributions)
    for names in distributions:
        for name in reversed(names.split("|")):
            with suppress(metadata.PackageNotFoundError):
                found[names] = metadata.version(name)
    return found
