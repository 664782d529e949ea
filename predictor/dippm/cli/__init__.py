"""The command line: `dippm predict`, `profiles`, the pipeline's commands, and what plugins add (`size`)."""

from __future__ import annotations

from dippm.cli.entry import command_line, main

__all__ = ["command_line", "main"]
