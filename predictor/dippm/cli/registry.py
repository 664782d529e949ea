"""Which commands there are. Nothing is imported before its command is asked for: torch alone takes two seconds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from dippm.cli.command import Command
from dippm.errors import DippmError

PLUGIN_GROUP = "dippm.commands"


class MissingPackage(DippmError):
    """A command needs a package that is not installed."""

    reason = "MissingPackage"


@dataclass(frozen=True, slots=True)
class LazyModule:
    """A built-in command: a module with `add_arguments(parser)` and `run(args) -> int`, imported on use."""

    name: str
    help: str
    module: str
    extra: str = ""
    """The extra of the distribution that has what the module needs."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The module's own."""
        self._load().add_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """The module's own."""
        return self._load().run(args)

    def _load(self) -> Command:
        try:
            return cast(Command, import_module(self.module))
        except ModuleNotFoundError as error:
            raise MissingPackage(_missing(self.name, error, self.extra)) from error


@dataclass(frozen=True, slots=True)
class Plugin:
    """A command that another package registered; loaded on use, and for the list of commands."""

    entry: EntryPoint

    @property
    def name(self) -> str:
        """Name of the entry point, which is the command's."""
        return self.entry.name

    @property
    def help(self) -> str:
        """The plugin's line, or why it cannot be had."""
        try:
            return self._load().help
        except MissingPackage as error:
            return f"(not available: {error})"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The plugin's own."""
        self._load().add_arguments(parser)

    def run(self, args: argparse.Namespace) -> int:
        """The plugin's own."""
        return self._load().run(args)

    def _load(self) -> Command:
        try:
            return cast(Command, self.entry.load())
        except ModuleNotFoundError as error:
            raise MissingPackage(_missing(self.name, error, "operator")) from error


BUILT_IN: tuple[LazyModule, ...] = (
    LazyModule("predict", "what a model file needs: memory, latency, energy, MIG profile", "dippm.cli.predict"),
    LazyModule("profiles", "the catalogue of devices and MIG profiles", "dippm.cli.profiles"),
    LazyModule("frameworks", "what kinds of model file are read, and what each needs", "dippm.cli.frameworks"),
    LazyModule("measure", "measure cases on the GPU at hand", "dippm.measure.command", "train"),
    LazyModule("graph", "make the model graphs of measured cases", "dippm.zoo.command", "train"),
    LazyModule("train", "train the network on measured cases", "dippm.train.command", "train"),
    LazyModule("evaluate", "errors on held-back architectures", "dippm.evaluate.command", "train"),
)


def commands() -> Mapping[str, Command]:
    """All commands by name: the built-in ones, then plugins in the order of their names."""
    found: dict[str, Command] = {command.name: command for command in BUILT_IN}
    for entry in sorted(entry_points(group=PLUGIN_GROUP), key=lambda e: e.name):
        found.setdefault(entry.name, Plugin(entry))
    return found


def _missing(command: str, error: ModuleNotFoundError, extra: str) -> str:
    way_out = f"pip install 'dippm[{extra}]'" if extra else "install it"
    return f"dippm {command} needs the package {error.name}, which is not installed: {way_out}"
