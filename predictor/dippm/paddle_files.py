"""Which files are PaddlePaddle inference models, by content: a program, and weights that are never needed.

A program is JSON whose `base_code.magic` is `pir` (Paddle 3), or a ProgramDesc (Paddle 2; Paddle's framework.proto),
whose first field is the block 0, which has no parent. Its weights lie beside it as `.pdiparams`.
"""

from __future__ import annotations

import re
from pathlib import Path

from dippm.errors import ModelFormatError

HEAD_BYTES = 4096
_PIR = re.compile(rb'\s*\{\s*"base_code"\s*:\s*\{[^{}]*"magic"\s*:\s*"pir"')
_PROGRAM_DESC = re.compile(rb"\x0a[\x80-\xff]{0,4}[\x00-\x7f]\x08\x00\x10\xff{9}\x01", re.DOTALL)
_WEIGHTS = re.compile(rb"\x00{16}.{4}\x08", re.DOTALL)
"""Version 0, no levels of detail, version 0, the length of a TensorDesc, and its field 1."""


def is_program(head: bytes) -> bool:
    """Whether a file that begins so is the program of an inference model."""
    return bool(_PIR.match(head) or _PROGRAM_DESC.match(head))


def is_weights(head: bytes) -> bool:
    """Whether a file that begins so is a `.pdiparams`."""
    return bool(_WEIGHTS.match(head))


def program_in(folder: Path, shown: str) -> Path | None:
    """The program in a folder; None where there is none. Of one model in both forms, that of Paddle 3.

    Raises ModelFormatError where there are several models.
    """
    candidates = sorted(
        path for path in folder.iterdir() if path.suffix in (".json", ".pdmodel") or path.name == "__model__"
    )
    programs = {
        path.with_suffix(""): path for path in reversed(candidates) if path.is_file() and is_program(_head(path))
    }
    if len(programs) > 1:
        names = ", ".join(sorted(path.name for path in programs.values()))
        raise ModelFormatError(f"{shown} holds several PaddlePaddle models ({names}): name the file of one")
    return next(iter(programs.values()), None)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
