"""Text for people: aligned tables."""

from __future__ import annotations

import math
from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Columns two spaces apart; the first `left` are flush left, the others flush right."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    out = []
    for line in lines:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        out.append("  ".join(cells).rstrip())
    return "\n".join(out)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """One `name  value` line each, values in one column."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in pairs)


def mib(value: float) -> str:
    """Whole MiB with a thousands separator, rounded up, as everything that says what is needed does."""
    return f"{math.ceil(value):,d}"


def ms(value: float) -> str:
    """Milliseconds with three significant digits or more."""
    return f"{value:,.3f}" if value < 10 else f"{value:,.1f}"
