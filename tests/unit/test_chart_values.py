"""Values that the chart refuses, and what it says then."""

from __future__ import annotations

from typing import Any

import helm_python
import pytest
import yaml
from tests.chart import CHART, container, find, objects, templates

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown certificate provider": (
        {"certificates": {"provider": "vault"}},
        'certificates.provider is "vault"; set it to self or cert-manager.',
    ),
    "a failure policy that does not exist": (
        {"webhook": {"failurePolicy": "Maybe"}},
        'webhook.failurePolicy is "Maybe"; set it to Ignore (recommended) or Fail.',
    ),
    "no webhook replica": (
        {"webhook": {"replicas": 0}},
        "webhook.replicas must be at least 1; use 2 or more so that a node drain leaves no pod unsized.",
    ),
    "an issuer without cert-manager": (
        {"certificates": {"issuerRef": {"name": "company"}}},
        "certificates.issuerRef is given but certificates.provider is self; set certificates.provider=cert-manager.",
    ),
    "a time-out that the API server refuses": (
        {"webhook": {"timeoutSeconds": 31}},
        "webhook.timeoutSeconds is 31; the API server takes 1 to 30, and 5 or less keeps pod creation quick.",
    ),
    "a digest that is none": (
        {"image": {"digest": "latest"}},
        'image.digest is "latest"; give sha256: and 64 hexadecimal digits, or leave it empty and set image.tag.',
    ),
    "a relative file root": (
        {"operator": {"fileRoots": ["models"]}},
        'operator.fileRoots has "models"; give an absolute path such as /models.',
    ),
    "a file root that is not mounted": (
        {"operator": {"fileRoots": ["/models"]}},
        "operator.fileRoots is given but nothing is mounted there; "
        "add operator.extraVolumes and operator.extraVolumeMounts.",
    ),
    "no room for any model": (
        {"operator": {"maxArtifactGiB": 0}},
        "operator.maxArtifactGiB must be at least 1; it is the largest model file that is fetched.",
    ),
}


@pytest.mark.parametrize(("values", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_bad_value_is_refused_with_the_way_out(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(helm_python.HelmError) as refusal:
        templates(values)
    assert sentence in str(refusal.value)


MISTYPED: dict[str, dict[str, Any]] = {
    "a misspelt key": {"webhok": {"replicas": 2}},
    "a misspelt key further down": {"webhook": {"replica": 2}},
    "text for a number": {"webhook": {"replicas": "two"}},
    "a log level that does not exist": {"logLevel": "loud"},
    "a pull policy that does not exist": {"image": {"pullPolicy": "Sometimes"}},
}


@pytest.mark.parametrize("values", MISTYPED.values(), ids=MISTYPED)
def test_the_schema_refuses(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmValuesError, match="don't meet the specifications of the schema"):
        templates(values)


def test_the_schema_accepts_the_defaults_and_global_values() -> None:
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema({})
        chart.validate_schema({"global": {"imageRegistry": "registry.example.com"}})


def test_the_schema_describes_each_value_by_its_comment() -> None:
    with helm_python.Chart.load(CHART) as chart:
        schema = chart.schema
    assert schema is not None
    replicas = schema["properties"]["webhook"]["properties"]["replicas"]
    assert replicas["description"] == "Two, so that a node drain never leaves pods unsized."
    assert replicas["type"] == "integer"


def test_each_value_is_used_by_a_template() -> None:
    """A value that no template reads would be a promise that nobody keeps."""
    texts = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())

    def leaves(values: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
        found = []
        for key, value in values.items():
            below = leaves(value, (*path, key)) if isinstance(value, dict) and value else [(*path, key)]
            found += below
        return found

    for leaf in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        name = ".Values." + ".".join(leaf)
        common = ".values." + ".".join(leaf[1:])
        parents = [".Values." + ".".join(leaf[:end]) + " |" for end in range(1, len(leaf))]
        assert name in texts or common in texts or any(parent in texts for parent in parents), name


def test_byte_counts_are_whole_numbers() -> None:
    """Helm reads numbers of values as floats: 21474836480 would become 2.147483648e+10."""
    arguments = container(objects(), "operator")["args"]
    assert "--cache-bytes=8589934592" in arguments
    assert "--max-artifact-bytes=21474836480" in arguments
    pod = find(objects(), "Deployment", "dippm-operator")["spec"]["template"]["spec"]
    assert pod["volumes"][0]["emptyDir"]["sizeLimit"] == "28Gi"


@pytest.mark.parametrize("name", ["dippm-operator", "dippm-webhook"])
def test_no_folder_of_a_pod_grows_without_end(name: str) -> None:
    volumes = find(objects(), "Deployment", name)["spec"]["template"]["spec"]["volumes"]
    folders = [volume["emptyDir"] for volume in volumes if "emptyDir" in volume]
    assert folders
    assert all(folder.get("sizeLimit") for folder in folders)


def test_many_replicas_change_nothing_but_their_number() -> None:
    few, many = objects({"webhook": {"replicas": 2}}), objects({"webhook": {"replicas": 40}})
    assert [(o["kind"], o["metadata"]["name"]) for o in few] == [(o["kind"], o["metadata"]["name"]) for o in many]
