"""The console scripts `dippm-operator` and `dippm-webhook`, which answer in one sentence where the extra is missing.

`--help` is the settings' own: it needs no package that dippm itself does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

BAD_INPUT = 2


def operator() -> int:
    """`dippm-operator`: what `controller.main` does."""
    from dippm_operator.controller.settings import parse_settings

    return _run("dippm-operator", parse_settings, "dippm_operator.controller.main")


def webhook() -> int:
    """`dippm-webhook`: what `webhook.main` does."""
    from dippm_operator.webhook.settings import parse_settings

    return _run("dippm-webhook", parse_settings, "dippm_operator.webhook.main")


def _run(name: str, parse_settings: Callable[[], object], module: str) -> int:
    """Exit code of the module's `main`; 2 with one sentence where a package is not installed."""
    if {"-h", "--help"}.intersection(sys.argv[1:]):
        parse_settings()  # prints, and exits
    try:
        main: Callable[[], int] = import_module(module).main
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("dippm"):
            raise  # a fault of our own
        missing = f"{name} needs the package {error.name}, which is not installed"
        print(f"{missing}: pip install 'dippm[operator]'", file=sys.stderr)
        return BAD_INPUT
    return main()
