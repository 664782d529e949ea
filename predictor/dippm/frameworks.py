"""Which kinds of model file are read, what each needs beside dippm itself, and which runtime `auto` takes for it.

What is installed is looked up by its metadata, and nothing is imported here. Of timm and torchvision that says too
little: one made for another torch is installed and cannot be imported, so that is tried in a process of its own.
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
from dippm.importable import TFLITE_INSTALL, reinstall_torchvision, why_not

_NEEDED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "huggingface": ("pip install 'dippm[huggingface]'", ("transformers",)),
    "safetensors": ("pip install 'dippm[timm]'", ("timm", "torchvision")),
    "tflite": (TFLITE_INSTALL, ("tflite",)),
}
"""Of formats that are read in the parsing process and need more than dippm itself: what installs it, and its packages.
"""
_TRANSFORMERS = 5
"""The major version of transformers that builds architectures."""


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
    """The command that installs what it needs, or anew; empty where dippm alone is enough."""
    python: str = ""
    """Another interpreter that converts it, where a setting names one."""
    problem: str = ""
    """Why it cannot be read although all is there: that interpreter cannot be asked, or a package not be imported."""

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
    elif needed := _NEEDED.get(name):
        install, packages = needed[0], versions(needed[1])
        if None not in packages.values():
            install, problem = _tried(name, packages) or (install, "")
    return Framework(name, spoken(name), resolved.asked, resolved.predicted, packages, install, python, problem)


def _tried(name: str, packages: Mapping[str, str | None]) -> tuple[str, str] | None:
    """What is there and does not do: the command that mends it, and the sentence; None where all is well."""
    if name == "huggingface" and not _is_at_least(packages["transformers"], _TRANSFORMERS):
        install = "pip install --upgrade 'dippm[huggingface]'"
        return install, f"transformers {packages['transformers']} is too old, {_TRANSFORMERS} is needed: {install}"
    if name == "safetensors" and (why := why_not(tuple(packages))):
        torch = str(versions(("torch",))["torch"])
        install = reinstall_torchvision(torch)
        said = " and ".join(f"{package} {version}" for package, version in packages.items())
        return install, f"{said} cannot be imported beside torch {torch} ({why}): {install}"
    return None


def _is_at_least(version: str | None, major: int) -> bool:
    first = (version or "").partition(".")[0]
    return first.isdecimal() and int(first) >= major
