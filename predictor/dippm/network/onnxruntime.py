"""What ONNX Runtime was measured to do, beside what is replayed: the bounds of its memory, and its time.

Made by `python -m dippm.train.onnxruntime` from the rows of a data set and kept in a file of its own,
`dippm/weights/onnxruntime.json`. Its memory is replayed by its own rules (`dippm.replay.onnxruntime`) from the
workspaces that the bundle estimates. Its kernels are taken to be PyTorch's; a pass waits for each to be launched:

    latency = device_share x (kernels' time, as a graph of PyTorch) + launch_us x kernels
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from dippm.network import calibration
from dippm.network.bundle import Estimates

FILE = "onnxruntime.json"


@dataclass(frozen=True, slots=True)
class Calibration:
    """The measured side of a prediction for ONNX Runtime."""

    cases: int
    """Measured cases that the bounds stand on."""
    bounds: Mapping[str, Mapping[str, Any]]
    """By target (`min_cap`, `reserved`), as in the bundle's schema."""
    timed: int
    """Cases that the time stands on."""
    device_share: float
    launch_us: float
    time_error_percent: float
    """Median error of the latency, each super-family left out of the fit in turn."""

    def applied(self, estimates: Estimates, risk_percent: float) -> Estimates:
        """Estimates of the graph runtime as ONNX Runtime's: bounds and times. Nothing is left over to correct: what the
        network tells of whole graphs, it tells of PyTorch."""
        share, launch = self.device_share, self.launch_us
        return replace(
            estimates,
            kernel_us=tuple(us * share for us in estimates.kernel_us),
            gap_us=estimates.gap_us * share + launch,
            host_us=tuple(launch * count for count in estimates.kernels),
            host_pass_us=0.0,
            log_residuals={},
            upper=calibration.read(self.bounds, risk_percent, known=estimates.is_known),
        )

    def to_json(self) -> str:
        """Text of the file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_calibration(path: Path) -> Calibration:
    """Inverse of `Calibration.to_json`."""
    return Calibration(**json.loads(path.read_text(encoding="utf-8")))


@lru_cache(maxsize=1)
def load_calibration() -> Calibration:
    """The calibration that ships in the package, read once a process."""
    with resources.as_file(resources.files("dippm.weights").joinpath(FILE)) as path:
        return read_calibration(path)
