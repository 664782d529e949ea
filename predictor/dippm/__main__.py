"""`python -m dippm`: the command line."""

from __future__ import annotations

import sys

from dippm.cli import main

sys.exit(main())
