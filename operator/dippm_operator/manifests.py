"""YAML and JSON manifests: read into documents that remember their own text, and written again."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dippm.errors import ManifestError

STDIN = "-"
_SUFFIXES = (".yaml", ".yml", ".json")


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: a date is a string."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """YAML that kubectl reads as it was meant: `1e3`, `0o17`, `y` are strings there only when quoted."""


_LOOKS_TYPED = re.compile(
    r"[yYnN]|[-+]?(0[bo]?[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*"
)


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "'" if _LOOKS_TYPED.fullmatch(text) else "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_string)


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a manifest stream."""

    body: Any
    """As parsed."""
    text: str
    """As written, comments included, without the `---` before it."""
    source: str
    """File name, or `standard input`."""
    folder: Path
    """Folder that relative paths in it start from."""


def read_documents(names: Sequence[str]) -> list[Document]:
    """All documents of files, folders (their *.yaml, *.yml and *.json) and `-` (standard input), in order.

    Raises ManifestError: one sentence that names the file, and the line where YAML is broken.
    """
    documents: list[Document] = []
    for name in names:
        if name == STDIN:
            documents += _documents(sys.stdin.read(), "standard input", Path.cwd())
            continue
        path = Path(name)
        files = [path]
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES)
            if not files:
                raise ManifestError(f"{name} has no file that ends in {', '.join(_SUFFIXES)}; name the manifests.")
        for file in files:
            try:
                text = file.read_text(encoding="utf-8")
            except OSError as error:
                raise ManifestError(f"{file} cannot be read ({error.strerror}); check the path.") from None
            except UnicodeDecodeError:
                raise ManifestError(f"{file} is not text in UTF-8, so it is no manifest.") from None
            documents += _documents(text, str(file), file.parent)
    return documents


def write_document(body: Any) -> str:
    """One document as YAML, keys in the order that they are in."""
    return yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _documents(text: str, source: str, folder: Path) -> Iterator[Document]:
    try:
        events = yaml.parse(text, _Loader)
        ends = [e.end_mark.index for e in events if isinstance(e, yaml.DocumentEndEvent) and e.end_mark]
        bodies = list(yaml.load_all(text, _Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{source}, line {mark.line + 1}" if mark is not None else source
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ManifestError(f"{where} is not YAML: {problem}.") from None
    start = 0
    for body, end in zip(bodies, ends, strict=True):
        own = _own_text(text[start:end], body)
        start = end
        if body is not None:
            yield Document(body, own, source, folder)


def _own_text(text: str, body: Any) -> str:
    """The document's text; rewritten where it cannot stand by itself (directives, several `---`)."""
    lines = text.splitlines(keepends=True)
    kept = "".join(line for line in lines if line.strip() not in ("---", "...")).strip("\n") + "\n"
    try:
        same = yaml.load(kept, _Loader) == body
    except yaml.YAMLError:
        same = False
    return kept if same else write_document(body)
