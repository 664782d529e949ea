"""The webhook stays light: what it imports, and how much memory that takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
HEAVY = ("torch", "torch_geometric", "tvm", "onnx", "pandas", "kopf", "dippm.network", "dippm.frontend")


def test_a_fresh_interpreter_imports_neither_torch_nor_tvm() -> None:
    program = (
        "import dippm_operator.webhook.main, re, sys\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        # not ru_maxrss, in which the memory of the process that forked us counts
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024)\n"
    )
    path = os.pathsep.join(str(REPOSITORY / half) for half in ("predictor", "operator"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    heavy, mib = done.stdout.splitlines()
    assert heavy == "[]"
    assert int(mib) < 100  # 72 MiB when this was written
