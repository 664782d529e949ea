"""Writes what the chart derives from elsewhere: its copy of the CRD, and the schema of its values.

    python charts/generate.py            # write
    python charts/generate.py --check    # exit 1 if a file would change (the tests run this)

The CRD is a template of the chart, not a file of its crds/ folder, so that `helm upgrade` upgrades it; the policy
`keep` makes `helm uninstall` leave it, and with it what users made (https://helm.sh/docs/chart_best_practices/custom_resource_definitions/).
The schema says of each value its type and, as description, the comment above it in values.yaml.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
CRD_SOURCE = HERE.parent / "crds" / "inferencejobs.dippm.dev.yaml"
CRD_TEMPLATE = HERE / "dippm" / "templates" / "crd.yaml"
VALUES = HERE / "dippm" / "values.yaml"
VALUES_SCHEMA = HERE / "dippm" / "values.schema.json"

OPEN_OBJECTS = frozenset(
    {
        "nodeSelector",
        "affinity",
        "podAnnotations",
        "annotations",
        "resources",
        "issuerRef",
        "declaredProfiles",
        "labels",
    }
)
"""Values whose keys are the user's own; everywhere else an unknown key is a spelling mistake and refused."""
ENUMS = {
    "pullPolicy": ["Always", "IfNotPresent", "Never"],
    "logLevel": ["debug", "info", "warning", "error"],
}


def crd_template() -> str:
    """The CRD as a Helm template: kept at uninstall, with its own braces escaped."""
    crd = yaml.safe_load(CRD_SOURCE.read_text())
    crd["metadata"].setdefault("annotations", {})["helm.sh/resource-policy"] = "keep"
    text = yaml.safe_dump(crd, sort_keys=False, width=120)
    text = text.replace("{{", "{{ `{{` }}")
    head = "# Generated from crds/ by charts/generate.py; change it there.\n"
    return head + "{{- if .Values.crds.enabled }}\n" + text + "{{- end }}\n"


def comments(text: str) -> dict[tuple[str, ...], str]:
    """The comment block directly above each key of a values file, by the key's path."""
    found: dict[tuple[str, ...], str] = {}
    path: list[tuple[int, str]] = []
    block: list[str] = []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            block.append(stripped.lstrip("# "))
            continue
        if ":" in stripped and not stripped.startswith("-"):
            indent = len(line) - len(line.lstrip())
            path = [(i, k) for i, k in path if i < indent]
            path.append((indent, stripped.split(":", 1)[0]))
            if block:
                found[tuple(k for _, k in path)] = " ".join(block)
        block = []
    return found


def schema_of(value: Any, path: tuple[str, ...], notes: dict[tuple[str, ...], str]) -> dict[str, Any]:
    """JSON schema (draft 7) of one value of values.yaml, by the type of its default."""
    schema: dict[str, Any]
    if isinstance(value, dict):
        schema = {"type": "object"}
        if not (path and path[-1] in OPEN_OBJECTS):
            schema["properties"] = {k: schema_of(v, (*path, k), notes) for k, v in value.items()}
            schema["additionalProperties"] = False
    elif isinstance(value, list):
        schema = {"type": "array"}
    elif isinstance(value, bool):
        schema = {"type": "boolean"}
    elif isinstance(value, int):
        schema = {"type": "integer", "minimum": 0}
    else:
        schema = {"type": "string"}
    if path and path[-1] in ENUMS:
        schema["enum"] = ENUMS[path[-1]]
    if note := notes.get(path):
        schema["description"] = note
    return schema


def values_schema() -> str:
    """The whole schema as JSON text. `global` is allowed, since Helm passes it to every subchart."""
    text = VALUES.read_text()
    schema = schema_of(yaml.safe_load(text), (), comments(text))
    schema["properties"]["global"] = {"type": "object"}
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **schema}, indent=2) + "\n"


def main() -> int:
    """Write the files, or with --check say which would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file would change")
    check = parser.parse_args().check
    stale = []
    for path, text in ((CRD_TEMPLATE, crd_template()), (VALUES_SCHEMA, values_schema())):
        if not path.exists() or path.read_text() != text:
            stale.append(path)
            if not check:
                path.write_text(text)
    for path in stale:
        print(f"{path.relative_to(HERE.parent)} {'is stale: run make generate' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
