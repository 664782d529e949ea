"""What a pickle is, without loading it: weights alone are told from objects that bring their own classes.

A pickle names each class and function that it calls (GLOBAL, STACK_GLOBAL; docs.python.org/3/library/pickletools.html).
A state dict of PyTorch, or a checkpoint of such, names containers and what puts tensors together, and nothing else.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MAX_BYTES = 64 << 20
"""Most of a pickle that is looked at; that of a state dict has about 100 bytes a tensor."""
_PICKLES = 5
"""Most pickles in a row: before 1.6 PyTorch wrote a magic number, a version and the machine before the object."""
_OF_WEIGHTS = re.compile(
    r"collections OrderedDict|collections defaultdict|torch (\w+Storage|\w+Tensor|Size|device|dtype|\w*(int|float)\d+)"
    r"|torch\.storage \w*Storage|torch\._utils _rebuild_\w+|torch\._tensor _rebuild_\w+|torch\.nn\.parameter Parameter"
    r"|numpy(\.\w+)* (dtype|ndarray|scalar|_reconstruct)|builtins (dict|list|set|tuple|int|float|str|bool|slice)"
)


def holds_weights_alone(path: Path) -> bool:
    """Whether a pickle, or an archive of torch.save, holds tensors and no class of its own; False where that is not
    clear. Nothing in it is run."""
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"
        if not is_archive:
            with path.open("rb") as file:
                return _weights_alone(set(_named_in_row(file)))
        with zipfile.ZipFile(path) as archive:
            member = next(n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl")
            if archive.getinfo(member).file_size > MAX_BYTES:
                return False
            with archive.open(member) as file:
                return _weights_alone(set(_named(file)))
    except (OSError, ValueError, LookupError, StopIteration, NotImplementedError, zipfile.BadZipFile):
        return False  # damaged, or written by hand: what it is need not be said more closely


def _weights_alone(named: set[str]) -> bool:
    puts_together = any("_rebuild_" in name for name in named)
    return puts_together and all(_OF_WEIGHTS.fullmatch(name) for name in named)


def _named_in_row(file: IO[bytes]) -> Iterator[str]:
    for _ in range(_PICKLES):
        yield from _named(file)


def _named(file: IO[bytes]) -> Iterator[str]:
    """`module name` of all that one pickle calls. Raises ValueError for what is no pickle."""
    said: list[str] = []
    """The last strings; STACK_GLOBAL takes two of them from the stack. Those that were memorised are not followed."""
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name == "STACK_GLOBAL":
            yield " ".join(said[-2:])
        elif isinstance(argument, str):
            said = [*said[-1:], argument]
