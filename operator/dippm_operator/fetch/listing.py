"""What stores answer when they are asked what they have: read, counted, and not believed further than that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from dippm.errors import ArtifactTooLarge, ArtifactUnreachable
from dippm_operator.fetch.folder import MAX_FILES, Listed


def check_count(name: str, listed: Sequence[Listed]) -> None:
    """Raise ArtifactTooLarge for more files than are looked through."""
    if len(listed) > MAX_FILES:
        raise ArtifactTooLarge(f"{name} holds more than {MAX_FILES} files; name the model's own file or folder.")


def json_of(name: str, body: bytes) -> object:
    """A JSON answer. Raises ArtifactUnreachable for what is none, and for one that is nested without end."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ArtifactUnreachable(f"{name} does not answer with sound JSON; is that the store?") from None


def object_of(value: object) -> Mapping[str, Any]:
    """A JSON object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def text(value: object) -> str:
    """A JSON string; an empty one for anything else."""
    return value if isinstance(value, str) else ""


def objects_of(name: str, body: object) -> Iterator[Mapping[str, Any]]:
    """The objects of a JSON list."""
    if not isinstance(body, list):
        raise ArtifactUnreachable(f"{name} does not answer with a list of files; is that the store?")
    yield from (entry for entry in body if isinstance(entry, dict))


def whole_number(value: object) -> int:
    """A size as stores write it; 0 where it is none."""
    digits = str(value) if isinstance(value, str | int) else ""
    return int(digits) if digits.isdecimal() and len(digits) < 20 else 0


def xml_of(name: str, body: bytes) -> ElementTree.Element:
    """An XML answer whose names are without their namespaces (expat itself bounds what entities grow to)."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        raise ArtifactUnreachable(f"{name} does not answer with a list of files; is that the store?") from None
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
    return root


def text_of(element: ElementTree.Element, path: str) -> str:
    """The text at a path below an element; empty where there is none."""
    return element.findtext(path) or ""
