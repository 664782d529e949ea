"""The command line: `dippm predict`, `profiles`, the pipeline's commands, and what plugins add (`size`)."""

from __future__ import annotations

from dippm.cli.entry import main

__all__ = ["main"]
