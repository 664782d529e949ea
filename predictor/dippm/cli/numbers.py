"""Types of numeric arguments: argparse calls them, and says their complaint with the argument's name."""

from __future__ import annotations

import argparse
import math


def whole(text: str) -> int:
    """A whole number from 1 on."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    if not (value := _number(text)) > 0:
        raise argparse.ArgumentTypeError(f"must be a number above 0, not {text!r}")
    return value


def not_negative(text: str) -> float:
    """A number, 0 or more."""
    if not (value := _number(text)) >= 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {text!r}")
    return value


def percent(text: str) -> float:
    """A number above 0 and under 100."""
    if not 0 < (value := _number(text)) < 100:
        raise argparse.ArgumentTypeError(f"must be a percentage above 0 and under 100, not {text!r}")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan
