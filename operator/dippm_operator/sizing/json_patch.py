"""RFC 6902 patches built while a copy of the document is changed: what is already so gives no operation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Operation = dict[str, Any]


def pointer(*keys: str | int) -> str:
    """The RFC 6901 pointer to a place: `pointer("spec", "a/b", 0)` is `/spec/a~1b/0`."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


class PatchBuilder:
    """Changes a copy of a JSON document and records the patch that does the same to the original."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document: dict[str, Any] = copy.deepcopy(dict(document))
        self.operations: list[Operation] = []

    def get(self, *keys: str | int) -> Any:
        """The value at a place, None if there is none."""
        node: Any = self.document
        for key in keys:
            if isinstance(node, dict):
                node = node.get(key)
            elif isinstance(node, list) and isinstance(key, int) and key < len(node):
                node = node[key]
            else:
                return None
        return node

    def put(self, value: Any, *keys: str | int) -> None:
        """Set an object's member, making the objects above it where they are missing or null."""
        for depth in range(1, len(keys)):
            if self.get(*keys[:depth]) is None:
                self._add({}, keys[:depth])
        if self.get(*keys) != value:
            self._add(value, keys)

    def append(self, value: Any, *keys: str | int) -> None:
        """Append to an array, making it where it is missing or null."""
        array = self.get(*keys)
        if array is None:
            self._add([value], keys)
        else:
            array.append(copy.deepcopy(value))
            self.operations.append({"op": "add", "path": pointer(*keys, "-"), "value": copy.deepcopy(value)})

    def remove(self, *keys: str | int) -> None:
        """Remove an object's member if it is there."""
        parent = self.get(*keys[:-1])
        if isinstance(parent, dict) and keys[-1] in parent:
            del parent[keys[-1]]
            self.operations.append({"op": "remove", "path": pointer(*keys)})

    def _add(self, value: Any, keys: tuple[str | int, ...]) -> None:
        parent = self.get(*keys[:-1])
        existed = keys[-1] in parent if isinstance(parent, dict) else True
        parent[keys[-1]] = copy.deepcopy(value)
        operation = "replace" if existed else "add"
        self.operations.append({"op": operation, "path": pointer(*keys), "value": copy.deepcopy(value)})
