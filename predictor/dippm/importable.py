"""Whether packages that are installed can be imported, tried in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache

TFLITE_INSTALL = "pip install tflite"
"""Of what TensorFlow's extra brings, all that a TFLite file needs."""
SECONDS = 120.0
"""Longest wait; PyTorch, torchvision and timm take 4 s on one core."""


def why_not(packages: Sequence[str]) -> str:
    """Empty where all of them can be imported by this interpreter, one after the other; else what the failure says.

    Nothing is imported here. The answer is kept for as long as this process lives.
    """
    return _tried(tuple(packages))


def reinstall_torchvision(torch_version: str) -> str:
    """The command that makes torchvision one for this torch, whose local version names the index that it came from."""
    local = torch_version.partition("+")[2]
    index = f" --index-url https://download.pytorch.org/whl/{local}" if local else ""
    return f"pip install --force-reinstall --no-deps torchvision{index}"


@cache
def _tried(packages: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", f"import {', '.join(packages)}"],
            capture_output=True, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"the import did not end within {SECONDS:g} s"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit status {done.returncode}")[:200]
