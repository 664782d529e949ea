"""`python -m dippm`: the command line."""

from __future__ import annotations

from dippm.cli import command_line

command_line()
