"""The CustomResourceDefinition, generated from the typed models: `python -m dippm_operator.resource.crd > crds/...`.

Structural schema (https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/
#specifying-a-structural-schema): no $ref, no null, no additionalProperties beside properties; a `default` per field.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import yaml

from dippm_operator.resource.base import Part
from dippm_operator.resource.names import GROUP, KIND, NAME_LIMIT, PLURAL, SHORT_NAME, SINGULAR, VERSION
from dippm_operator.resource.policy import FALLBACK_MESSAGE
from dippm_operator.resource.spec import (
    GENERATION_MESSAGE,
    JOB_NEEDS_TEMPLATE_MESSAGE,
    ONE_WORKLOAD_MESSAGE,
    InferenceJobSpec,
)
from dippm_operator.resource.status import InferenceJobStatus

FILE = f"{PLURAL}.{GROUP}.yaml"
"""Name of the generated file under `crds/`."""

_DROPPED = frozenset({"title", "$defs", "additionalProperties"})

_RULES: Mapping[str, list[dict[str, str]]] = {
    "": [
        {
            "rule": f"self.metadata.name.size() <= {NAME_LIMIT}",
            "message": f"metadata.name has more than {NAME_LIMIT} characters: it becomes a label and the name of a Job",
        },
    ],
    "spec": [
        {"rule": "has(self.template) != has(self.targetRef)", "message": ONE_WORKLOAD_MESSAGE},
        {"rule": "!has(self.job) || has(self.template)", "message": JOB_NEEDS_TEMPLATE_MESSAGE},
        {
            "rule": "has(self.targetRef) == has(oldSelf.targetRef)",
            "message": "template and targetRef cannot be exchanged; make a new InferenceJob",
        },
        {
            "rule": "!has(self.targetRef) || !has(oldSelf.targetRef) || self.targetRef == oldSelf.targetRef",
            "message": "targetRef cannot be changed; make a new InferenceJob for the other workload",
        },
    ],
    "spec.policy": [
        {  # has(): the API server checks the default `{}` before it fills the fields' own defaults in
            "rule": "!has(self.onUnknown) || self.onUnknown != 'Fallback' || has(self.fallbackProfile)",
            "message": FALLBACK_MESSAGE,
        },
    ],
    "spec.generation": [
        {"rule": "self.maxNewTokens <= self.maxContextTokens", "message": GENERATION_MESSAGE},
    ],
}
"""CEL rules by the path of the schema that they stand on."""

_COLUMNS = (
    ("Profile", "string", ".status.recommendation.profile", "MIG profile that pods get"),
    ("Memory", "integer", ".status.prediction.memoryMiB", "Predicted footprint on the device, MiB"),
    ("Latency", "integer", ".status.prediction.latencyMicroseconds", "Predicted forward pass, microseconds"),
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status', "Whether the workload carries its size"),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', "Why it is ready, or why not"),
    ("Age", "date", ".metadata.creationTimestamp", ""),
)


def custom_resource_definition() -> dict[str, Any]:
    """The CRD as `kubectl apply` takes it."""
    schema = {
        "type": "object",
        "description": "A model and how it is run: what it needs is predicted, and its pods get that MIG slice.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": _schema_of(InferenceJobSpec, "spec"),
            "status": _schema_of(InferenceJobStatus, "status"),
        },
        "x-kubernetes-validations": _RULES[""],
    }
    columns = [
        {"name": name, "type": kind, "jsonPath": path} | ({"description": description} if description else {})
        for name, kind, path, description in _COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                }
            ],
        },
    }


def render() -> str:
    """The generated file."""
    head = (
        "# Generated from the typed models by `make generate` (python -m dippm_operator.resource.crd). Do not edit.\n"
    )
    return head + yaml.safe_dump(custom_resource_definition(), sort_keys=False, width=120)


def _schema_of(part: type[Part], path: str) -> dict[str, Any]:
    schema = part.model_json_schema(by_alias=True, mode="validation")
    return _structural(schema, schema.get("$defs", {}), path)


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any], path: str) -> dict[str, Any]:
    """One node of pydantic's JSON schema as a node of a structural schema."""
    node = dict(schema)
    if reference := node.pop("$ref", None):
        node = dict(definitions[reference.rpartition("/")[2]]) | node
    if alternatives := node.pop("anyOf", None):
        (given,) = (a for a in alternatives if a.get("type") != "null")  # `X | None`: absent instead of null
        node = dict(given) | node
        return _structural(node, definitions, path)
    if node.get("default", ...) is None or node.get("default", ...) == [] or node.get("default", ...) == "":
        del node["default"]
    if rules := _RULES.get(path):
        node["x-kubernetes-validations"] = rules
    if any("pattern" not in rule and "matches" in rule["rule"] for rule in node.get("x-kubernetes-validations", [])):
        node.pop("pattern", None)  # the CEL rule says the same with a better message
    if "properties" in node:
        node["properties"] = {
            name: _structural(value, definitions, f"{path}.{name}") for name, value in node["properties"].items()
        }
    if "items" in node:
        node["items"] = _structural(node["items"], definitions, f"{path}[]")
    node.pop("uniqueItems", None)
    return {key: node[key] for key in _ordered(node)}


def _ordered(node: Mapping[str, Any]) -> list[str]:
    """Keys in the order in which people read them: type, description, required, then the rest."""
    first = [key for key in ("type", "description", "required", "default") if key in node]
    return first + [key for key in node if key not in first and key not in _DROPPED]


if __name__ == "__main__":
    sys.stdout.write(render())
