"""`dippm frameworks`: what kinds of model file are read here."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dippm.cli import render
from dippm.frameworks import Framework, frameworks
from dippm.frontend import isolation

EPILOG = """\
examples:
  dippm frameworks
  dippm frameworks --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dippm frameworks`."""
    parser.epilog = EPILOG
    parser.add_argument("--json", action="store_true", help="a JSON array instead of the table")


def run(args: argparse.Namespace) -> int:
    """Prints every format, and how processes that read files are kept off the network here."""
    known = frameworks()
    if args.json:
        print(json.dumps([to_dict(one) for one in known], indent=2))
    else:
        print(f"{to_text(known)}\n\n{isolation.spoken(isolation.walls_here())}")
    return 0


def to_dict(one: Framework) -> dict[str, Any]:
    """One format for JSON."""
    return {
        "format": one.format,
        "description": one.spoken,
        "ready": one.is_ready,
        "runtime": one.runtime.value,
        "predicted_as": one.predicted_as.value,
        "packages": dict(one.packages),
        "install": one.install,
        "python": one.python,
        "problem": one.problem,
    }


def to_text(known: tuple[Framework, ...]) -> str:
    """The table, and a line for each interpreter that cannot be asked."""
    rows = [
        [one.format, one.spoken, "yes" if one.is_ready else "no", _runtime(one), _has(one), _needs(one)]
        for one in known
    ]
    table = render.table(["FORMAT", "WHAT IT IS", "READ", "RUNTIME", "HAS", "NEEDS"], rows, left=6)
    problems = "".join(f"\n{problem}" for problem in dict.fromkeys(one.problem for one in known if one.problem))
    return f"{table}{problems and chr(10)}{problems}"


def _runtime(one: Framework) -> str:
    return one.runtime if one.runtime is one.predicted_as else f"{one.runtime} (as {one.predicted_as})"


def _has(one: Framework) -> str:
    if not one.packages:
        return "dippm"
    found = [f"{name} {version}" for name, version in one.packages.items() if version is not None]
    return ", ".join(found) + (f" in {one.python}" if one.python and found else "")


def _needs(one: Framework) -> str:
    return "" if one.is_ready else one.install
