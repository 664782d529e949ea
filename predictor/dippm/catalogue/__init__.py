"""The catalogue: what is known about devices, as data files beside this module, each naming its sources."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import yaml


@cache
def read(name: str) -> dict[str, Any]:
    """The catalogue file `name` (`mig_profiles.yaml`, ...), parsed once a process; callers do not change it."""
    text = resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
    body = yaml.safe_load(text)
    if not isinstance(body, dict):
        raise ValueError(f"{name} in the catalogue is not a mapping")
    return body
