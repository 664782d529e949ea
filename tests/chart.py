"""Renders charts/dippm with Helm's own library, for the tests of the chart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import helm_python
import yaml

REPOSITORY = Path(__file__).parents[1]
CHART = REPOSITORY / "charts" / "dippm"
NAMESPACE = "dippm-system"

Object = dict[str, Any]


def templates(values: Mapping[str, Any] | None = None, *, name: str = "dippm", upgrade: bool = False) -> dict[str, str]:
    """Rendered text by the template's file name."""
    with helm_python.Chart.load(CHART) as chart:
        rendered = chart.render(
            dict(values or {}), name=name, namespace=NAMESPACE, is_install=not upgrade, is_upgrade=upgrade
        )
    return {path.rsplit("/", 1)[1]: text for path, text in rendered.items()}


def objects(values: Mapping[str, Any] | None = None, *, name: str = "dippm", upgrade: bool = False) -> list[Object]:
    """Every object of a release."""
    texts = templates(values, name=name, upgrade=upgrade)
    return [
        document
        for file, text in sorted(texts.items())
        if file.endswith(".yaml")
        for document in yaml.safe_load_all(text)
        if document
    ]


def find(release: Iterable[Object], kind: str, name: str) -> Object:
    """The one object of a kind and name."""
    (found,) = [o for o in release if o["kind"] == kind and o["metadata"]["name"] == name]
    return found


def of_kind(release: Iterable[Object], kind: str) -> list[Object]:
    return [o for o in release if o["kind"] == kind]


def container(release: Iterable[Object], component: str) -> Object:
    """The only container of a component's Deployment (`operator` or `webhook`)."""
    (deployment,) = [
        o for o in of_kind(release, "Deployment") if o["metadata"]["labels"]["app.kubernetes.io/component"] == component
    ]
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    found: Object = only
    return found
