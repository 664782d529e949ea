"""One case of the zoo: a model, its inputs, and how it is to be run. Frozen, and a line of JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dippm.case import Allocator, Case, Mode, Precision, Runtime
from dippm.errors import DippmError


@dataclass(frozen=True, slots=True)
class InputShape:
    """One input of a model, without its batch dimension (which comes first)."""

    shape: tuple[int, ...]
    dtype: str = "float"
    """`float`: in the case's precision; `int64`: indices below `high`."""
    high: int = 0


@dataclass(frozen=True, slots=True)
class Network:
    """A model of the zoo before batch and precision are chosen: everything that decides its constructor."""

    architecture: str
    """Name in the data set, e.g. `resnet50` or `random_0042`."""
    source: str
    """Who defines it: `timm`, `transformers`, `handwritten` or `random`."""
    model: str
    """Name at the source: timm's model, transformers' model type, the handwritten class, or `random`."""
    kwargs: Mapping[str, Any]
    inputs: tuple[InputShape, ...]

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that name this network: its constructor and input shapes."""
        body = json.dumps([self.source, self.model, self.kwargs, [asdict(i) for i in self.inputs]], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class ZooCase:
    """A network at one batch size, in one precision, mode, runtime and allocator."""

    network: Network
    batch: int
    precision: Precision = Precision.FP32
    mode: Mode = Mode.INFERENCE
    runtime: Runtime = Runtime.EAGER
    allocator: Allocator = Allocator.DEFAULT
    family: str = ""
    super_family: str = ""
    timed: bool = True
    """Whether time and energy are measured too (one process on the GPU), or memory alone."""
    planned_mib: float = 0.0
    """Footprint expected when the list was drawn (MiB); schedules processes, is never a label."""
    planned_ms: float = 0.0
    """Device time expected when the list was drawn (ms)."""
    anchor: bool = False
    """One of the cases that open and close every run on a GPU."""
    purpose: str = field(default="labels")
    """`labels`; `min_cap`: search for the smallest allocator cap instead; `onnxruntime`: labels of ONNX Runtime."""
    options: Mapping[str, str] = field(default_factory=dict)
    """How the runtime is set where that is not its default (`dippm.measure.onnxruntime_options` has the names)."""

    @property
    def id(self) -> str:
        """Name of the case: the network's key, then batch, how it is run, and what options are not the default."""
        run = "-".join((self.precision.value, self.mode.value, self.runtime.value, self.allocator.value))
        options = "".join(f";{name}={self.options[name]}" for name in sorted(self.options))
        return f"{self.network.key}-b{self.batch}-{run}{options}"

    @property
    def case(self) -> Case:
        """The predictor's own value for the same question."""
        return Case(self.batch, self.precision, self.mode, self.runtime, self.allocator, device="H200")

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it back."""
        body = asdict(self)
        if not self.options:
            del body["options"]
        return json.dumps(body, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> ZooCase:
        """Inverse of `to_json`."""
        body = json.loads(line)
        network = body.pop("network")
        inputs = tuple(InputShape(tuple(i["shape"]), i["dtype"], i["high"]) for i in network.pop("inputs"))
        return cls(
            network=Network(inputs=inputs, **network),
            precision=Precision(body.pop("precision")),
            mode=Mode(body.pop("mode")),
            runtime=Runtime(body.pop("runtime")),
            allocator=Allocator(body.pop("allocator")),
            **body,
        )

    def at_batch(self, batch: int) -> ZooCase:
        """The same case at another batch size."""
        return replace(self, batch=batch)


def read_cases(path: Path) -> list[ZooCase]:
    """The cases of a list written by `write_cases`, in its order. Raises DippmError for a file that is none."""
    try:
        return [ZooCase.from_json(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except OSError as error:
        raise DippmError(f"{path} cannot be read ({error.strerror}): name a list that dippm graph list wrote") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise DippmError(f"{path} is no list of cases: dippm graph list writes one") from None


def write_cases(path: Path, cases: Iterable[ZooCase]) -> None:
    """Writes one case a line."""
    path.write_text("".join(case.to_json() + "\n" for case in cases))
