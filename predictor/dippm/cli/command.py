"""What a command is: one small protocol, for the built-in ones and for plugins alike."""

from __future__ import annotations

import argparse
from typing import Protocol


class Command(Protocol):
    """A subcommand. Plugins put such an object under the entry-point group `dippm.commands`.

    `run` gives the exit code. It raises DippmError for what the user can put right: its sentence goes to stderr and
    the exit code is 2.
    """

    @property
    def name(self) -> str:
        """What it is called by."""

    @property
    def help(self) -> str:
        """One line for the list of commands."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declares the command's arguments; may set the parser's description and epilog."""

    def run(self, args: argparse.Namespace) -> int:
        """Does it."""
