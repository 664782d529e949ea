"""The import contracts of .importlinter hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_import_contracts_hold() -> None:
    """`lint-imports` under the interpreter of the tests, on the sources of this checkout."""
    environment = {"PYTHONPATH": "predictor:operator", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    report = subprocess.run([*command, "--no-cache"], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert report.returncode == 0, report.stdout + report.stderr
