"""The InferenceJob: the generated CRD, the defaults, and the one sentence that a wrong manifest gets."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dippm.errors import ManifestError
from dippm_operator.resource import OnUnknown, PolicyMode, TargetReference, is_inference_job, parse_inference_job
from dippm_operator.resource.crd import FILE, custom_resource_definition, render

ROOT = Path(__file__).resolve().parents[2]

MANIFEST: dict[str, Any] = {
    "apiVersion": "dippm.dev/v1alpha1",
    "kind": "InferenceJob",
    "metadata": {"name": "resnet50", "namespace": "vision"},
    "spec": {
        "model": {"uri": "https://models.example/resnet50.onnx"},
        "batchSize": 32,
        "template": {"spec": {"containers": [{"name": "server", "image": "example/server:1"}]}},
    },
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The manifest with one field set; `...` removes it."""
    manifest = copy.deepcopy(MANIFEST)
    *above, last = path.split(".")
    node = manifest
    for key in above:
        node = node.setdefault(key, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return manifest


def test_crd_file_is_what_the_models_generate() -> None:
    assert (ROOT / "crds" / FILE).read_text() == render(), "run `make crds`"


def test_manifest_gets_the_defaults_of_the_schema() -> None:
    job = parse_inference_job(MANIFEST)
    assert job.key == ("vision", "resnet50")
    assert job.spec.policy.mode is PolicyMode.AUTO
    assert job.spec.policy.on_unknown is OnUnknown.ALLOW
    assert job.spec.run_id == "1"
    assert job.status.recommendation is None


def test_defaults_of_the_schema_are_those_of_the_models() -> None:
    spec = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    defaulted = copy.deepcopy(MANIFEST)
    _apply_defaults(defaulted["spec"], spec)
    assert defaulted["spec"]["policy"]["oomRiskPercent"] == 1
    assert parse_inference_job(defaulted) == parse_inference_job(MANIFEST)


def _apply_defaults(value: Any, schema: dict[str, Any]) -> None:
    """Defaulting as the API server does it: from the outside in."""
    for name, part in schema.get("properties", {}).items():
        if name not in value and "default" in part:
            value[name] = copy.deepcopy(part["default"])
        if isinstance(value.get(name), dict):
            _apply_defaults(value[name], part)


def _nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from _nodes(part, f"{path}.{name}")
    if "items" in schema:
        yield from _nodes(schema["items"], f"{path}[]")


def test_schema_is_structural_and_has_no_floats() -> None:
    schema = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in _nodes(schema):
        assert node.get("type") in {"object", "array", "string", "integer", "boolean"}, path
        assert not set(node) & {"$ref", "anyOf", "allOf", "oneOf", "title", "$defs", "exclusiveMinimum", "const"}, path
        assert node.get("default", ...) is not None, path
        if path.startswith((".spec", ".status")):
            assert node.get("description") or path.endswith("[]"), f"kubectl explain has nothing to say on {path}"


def test_every_policy_field_has_a_default_or_is_optional() -> None:
    schema = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    policy = schema["properties"]["spec"]["properties"]["policy"]
    assert "required" not in policy
    without = {name for name, part in policy["properties"].items() if "default" not in part}
    assert without == {"maxLatencyMilliseconds", "allowedProfiles", "fallbackProfile"}


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("spec.model.uri", ..., ["spec.model.uri", "missing"]),
        ("spec.model.uri", "ftp://host/x", ["spec.model.uri", "'ftp://host/x'", "https://"]),
        ("spec.model.digest", "md5:1", ["spec.model.digest", "sha256:"]),
        ("spec.batchSize", ..., ["spec.batchSize", "missing"]),
        ("spec.batchSize", 0, ["spec.batchSize is 0", "greater than or equal to 1"]),
        ("spec.batchSize", "32", ["spec.batchSize is '32'", "integer"]),
        ("spec.batchSize", 32.0, ["spec.batchSize is 32.0", "integer"]),
        ("spec.precision", "fp8", ["spec.precision is 'fp8'", "'fp32'", "'bf16'"]),
        ("spec.polciy", {}, ["spec.polciy", "not a field"]),
        ("spec.runID", 2, ["spec.runID is 2", "string"]),
        ("spec.template", ..., ["exactly one of template", "targetRef"]),
        ("spec.targetRef", {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, ["exactly one"]),
        ("spec.template", {"spec": {"containers": []}}, ["spec.template", "spec.containers"]),
        ("spec.policy", {"onUnknown": "Fallback"}, ["spec.policy", "fallbackProfile"]),
        ("spec.policy", {"allowedProfiles": ["small"]}, ["spec.policy.allowedProfiles[0]", "1g.5gb"]),
        ("spec.generation", {"maxContextTokens": 1, "maxNewTokens": 2}, ["maxNewTokens", "maxContextTokens"]),
        ("spec.model.inputs", [{"shape": [3, -1]}], ["spec.model.inputs[0].shape[1] is -1"]),
        ("metadata.name", "x" * 53, ["metadata.name", "53", "52"]),
        ("metadata.name", ..., ["metadata.name is missing"]),
        ("apiVersion", "dippm.dev/v2", ["dippm.dev/v2", "dippm.dev/v1alpha1"]),
        ("spec", ..., ["spec is missing"]),
    ],
)
def test_wrong_manifest_is_one_sentence_that_names_the_field(path: str, value: Any, words: list[str]) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_inference_job(changed(path, value))
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert sentence.startswith("InferenceJob ")
    for word in words:
        assert word in sentence


def test_objects_of_a_newer_schema_are_read_leniently() -> None:
    manifest = changed("spec.newField", 1) | {"status": {"newStatus": 2}}
    assert parse_inference_job(manifest, strict=False).spec.batch_size == 32


def test_only_documents_of_our_group_and_kind_are_ours() -> None:
    assert is_inference_job(MANIFEST)
    assert not is_inference_job({"apiVersion": "other.dev/v1", "kind": "InferenceJob"})
    assert not is_inference_job(None)
    assert not is_inference_job(["InferenceJob"])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("apps/v1", "Deployment", "web"), ("apps/v1beta2", "Deployment", "web"), True),
        (("apps/v1", "Deployment", "web"), ("argoproj.io/v1", "Deployment", "web"), False),
        (("v1", "Pod", "web"), ("v2", "Pod", "web"), True),
        (("apps/v1", "Deployment", "web"), ("apps/v1", "Deployment", "api"), False),
    ],
)
def test_a_workload_is_the_same_by_whatever_version_of_its_api(
    one: tuple[str, str, str], other: tuple[str, str, str], same: bool
) -> None:
    first, second = (TargetReference(api_version=a, kind=k, name=n).workload for a, k, n in (one, other))
    assert (first == second) is same
