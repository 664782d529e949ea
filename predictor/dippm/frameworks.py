"""Which kinds of model file are read, what each needs beside dippm itself, and which runtime `auto` takes for it.

What is installed is looked up by its metadata: nothing is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass

from dippm import runtimes
from dippm.artifact import FORMATS, spoken
from dippm.case import Runtime
from dippm.errors import ModelFormatError
from dippm.frontend.convert_child import versions
from dippm.frontend.converter import CONVERTERS

_EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "huggingface": ("huggingface", ("transformers",)),
    "safetensors": ("timm", ("timm", "torchvision")),
    "tflite": ("tensorflow", ("tflite",)),
}
"""Of formats that are read in the parsing process and need more than dippm itself: the extra, and its packages."""


@dataclass(frozen=True, slots=True)
class Framework:
    """One format, and whether it can be read here."""

    format: str
    spoken: str
    """What a file of it is, in words."""
    runtime: Runtime
    """What `auto` takes for it."""
    predicted_as: Runtime
    """The measured runtime whose figures are given for that one."""
    packages: Mapping[str, str | None]
    """Version of each package that it needs, None where that is missing."""
    install: str
    """The command that installs what it needs; empty where dippm alone is enough."""
    python: str = ""
    """Another interpreter that converts it, where a setting names one."""
    problem: str = ""
    """Why that interpreter cannot be asked."""

    @property
    def is_ready(self) -> bool:
        """Whether a file of this format can be read here."""
        return not self.problem and None not in self.packages.values()


def frameworks() -> tuple[Framework, ...]:
    """Every format, in the order of `artifact.FORMATS`; a pickle is none, for it is only read when it is trusted."""
    return tuple(_framework(name) for name in FORMATS if name != "pickle")


def _framework(name: str) -> Framework:
    resolved = runtimes.resolve(Runtime.AUTO, name)
    packages: Mapping[str, str | None] = {}
    install = python = problem = ""
    if converter := CONVERTERS.get(name):
        install = converter.install
        python = "" if converter.interpreter() == sys.executable else converter.interpreter()
        try:
            packages = converter.installed()
        except ModelFormatError as error:
            packages, problem = {n.partition("|")[0]: None for n in converter.packages}, str(error)
    elif extra := _EXTRAS.get(name):
        install, packages = f"pip install 'dippm[{extra[0]}]'", versions(extra[1])
    return Framework(name, spoken(name), resolved.asked, resolved.predicted, packages, install, python, problem)
