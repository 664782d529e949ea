"""What a bundle says about itself: sizes, columns, units, label statistics, costs and calibration, as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dippm import vocabulary
from dippm.network import featurizer, workspace

FORMAT = "dippm-bundle"
UNITS: Mapping[str, str] = {
    "workspace": "bytes", "kernel": "us", "host": "us", "energy": "J", "residuals": "log(measured / composed)",
}  # fmt: skip


class BundleMismatchError(ValueError):
    """The bundle was made for other columns, classes or another vocabulary than this code has."""


@dataclass(frozen=True)
class Schema:
    """Metadata of one bundle."""

    device: str
    """Product whose measurements it was trained on."""
    hyper: Mapping[str, Any]
    """`Hyperparameters` of the network."""
    operator_columns: tuple[str, ...]
    graph_columns: tuple[str, ...]
    graph_shrink: Mapping[str, float]
    """Share of each graph residual that is applied: what held-back families showed to be of use, 0 to 1."""
    measured_kinds: tuple[str, ...]
    """Kinds whose workspace was measured; the others' are taken from the rule of their kind."""
    gap_us: float
    """Device time between two kernels."""
    host_pass_us: float
    static_w: float
    energy: Mapping[str, float]
    """Coefficients by `dippm.network.costs.ENERGY_COLUMNS`."""
    bounds: Mapping[str, Mapping[str, Any]]
    """By target (`min_cap`, `reserved`): `known` and `unknown` rates by risk, sample sizes, and `otherwise`."""
    statistics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Count, median and range of each label."""
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    """Data set, cases, architectures, seed."""
    node_columns: tuple[str, ...] = featurizer.NODE_COLUMNS
    static_columns: tuple[str, ...] = featurizer.STATIC_COLUMNS
    workspace_classes: tuple[str, ...] = workspace.CLASSES
    featurizer_version: int = featurizer.VERSION
    vocabulary_version: int = vocabulary.VERSION
    kinds: int = len(vocabulary.KINDS)
    units: Mapping[str, str] = field(default_factory=lambda: dict(UNITS))
    format: str = FORMAT

    def to_json(self) -> str:
        """Text for the safetensors metadata."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Schema:
        """Inverse of `to_json`; raises BundleMismatchError where this code could not read the weights rightly."""
        body = json.loads(text)
        if body.get("format") != FORMAT:
            raise BundleMismatchError("this safetensors file is no dippm bundle")
        for key, value in body.items():
            if isinstance(value, list):
                body[key] = tuple(value)
        schema = cls(**body)
        for name, ours in (
            ("node_columns", featurizer.NODE_COLUMNS),
            ("static_columns", featurizer.STATIC_COLUMNS),
            ("workspace_classes", workspace.CLASSES),
            ("featurizer_version", featurizer.VERSION),
            ("vocabulary_version", vocabulary.VERSION),
        ):
            if getattr(schema, name) != ours:
                raise BundleMismatchError(f"the bundle's {name} is not this version's: train it again with dippm train")
        return schema
