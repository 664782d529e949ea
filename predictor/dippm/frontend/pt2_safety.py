"""What is checked in a `.pt2` before PyTorch sees any of it, and what PyTorch then gets to see.

`torch.export.load` runs code that a file carries: expressions go through sympify (which evaluates Python), sample
inputs and some payloads are pickles, guards are source text, tree specs import classes. So the file's JSON is checked
against what an exporter writes, and everything that could be run is left out of what is handed on.
"""

from __future__ import annotations

import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dippm.errors import ModelFormatError, UnsafeModel, UnsupportedOperator
from dippm.frontend.inputs import MAX_DIM, MAX_NUMEL

MAX_JSON_BYTES = 256 << 20
"""Most bytes (uncompressed) of the program and of each payload list; ResNet-18 takes 165 kB."""
MAX_ENTRIES = 200_000
_TOKEN = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_][A-Za-z0-9_]*)|\d+(?:\.\d+)?|'(?:[suz]\d{1,9}|zu?f\d{1,9})'|\*\*|//|[-+*/%(),]|[<>=!]=?)"
)
_NAMES = re.compile(r"[suz]\d{1,9}|zu?f\d{1,9}")
_FUNCTIONS = frozenset({
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "Mod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv",
    "LShift", "RShift", "PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt",
    "RoundToInt", "RoundDecimal", "ToFloat", "Identity", "Max", "Min", "Abs", "Eq", "Ne", "Lt", "Le", "Gt", "Ge",
    "And", "Or", "Not", "True", "False", "floor", "ceiling", "Symbol", "Integer", "Float", "Rational",
    "Add", "Mul", "Pow",
    "Equality", "Unequality", "StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan", "integer", "positive",
    "nonnegative", "negative", "nonpositive", "real", "finite", "precision",
})  # fmt: skip
_TARGET = re.compile(r"torch\.ops\.(aten|prims|prim)\.[A-Za-z0-9_]+\.[A-Za-z0-9_]+|(_operator|math)\.[a-z_0-9]+")
_SYM_TARGET = re.compile(r"torch\.sym_[a-z]+")


@dataclass(frozen=True)
class Pt2Content:
    """The parts of a `.pt2` that say what the model is; no weight and no pickle among them."""

    program: dict[str, Any]
    """`models/model.json`, without guards, tree specs and expressions; symbolic sizes are those of the example."""
    dynamic: dict[str, tuple[bool, ...]]
    """For each graph input: which of its dimensions were exported as dynamic."""
    weights: dict[str, dict[str, Any]]
    constants: dict[str, dict[str, Any]]
    """Payload descriptions by name: path, tensor meta."""


def read_pt2(path: Path, shown: str) -> Pt2Content:
    """Read and check the JSON parts of a `.pt2`.

    Raises UnsafeModel (it carries code), ModelFormatError (damaged, another version) or UnsupportedOperator.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise ModelFormatError(f"{shown} has {len(entries)} entries: a .pt2 has at most {MAX_ENTRIES}")
            by_name = {e.filename.partition("/")[2]: e for e in entries}
            name = next((n for n in by_name if n.startswith("models/") and n.endswith(".json")), "")
            if not name:
                raise ModelFormatError(f"{shown} is a .pt2 without models/model.json")
            model = name.removeprefix("models/").removesuffix(".json")
            program = _json(archive, by_name, name, shown)
            weights = _payloads(archive, by_name, f"data/weights/{model}_weights_config.json", shown)
            constants = _payloads(archive, by_name, f"data/constants/{model}_constants_config.json", shown)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise ModelFormatError(f"{shown} is a damaged .pt2: {error}") from None
    try:
        return Pt2Content(_checked(program, shown), _dynamic_dims(program), weights, constants)
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelFormatError(f"{shown} is not a .pt2 of this PyTorch: {error!r} is missing or misplaced") from None


def check_expression(text: str, shown: str) -> None:
    """A symbolic size as exporters write it: symbols, numbers, arithmetic, known functions of shapes.

    Exporters write `2*s77` or, as sympy represents it, `Mul(Integer(2), Symbol('s77', integer=True))`.

    Raises UnsafeModel for anything else: sympy would run it.
    """
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        name = match["name"] if match else None
        if match is None or (name is not None and name not in _FUNCTIONS and not _NAMES.fullmatch(name)):
            raise UnsafeModel(
                f"{shown} has a symbolic size that is no arithmetic ({text[:60]!r}) and would be run on loading: "
                "it was not loaded; export the model again from its source"
            )
        position = match.end()


def _json(archive: zipfile.ZipFile, by_name: dict[str, zipfile.ZipInfo], name: str, shown: str) -> dict[str, Any]:
    entry = by_name[name]
    if entry.file_size > MAX_JSON_BYTES:
        raise ModelFormatError(f"{shown} has a {name} of {entry.file_size >> 20} MiB: the limit is 256 MiB")
    with archive.open(entry) as file:
        text = file.read(MAX_JSON_BYTES + 1)
    if len(text) > MAX_JSON_BYTES:
        raise ModelFormatError(f"{shown} has a {name} larger than it says: it was not read")
    try:
        body = json.loads(text)
    except ValueError:
        raise ModelFormatError(f"{shown} is a damaged .pt2: its {name} is not JSON") from None
    except RecursionError:
        raise ModelFormatError(f"{shown} is no sound .pt2: its {name} is nested too deeply to be read") from None
    if not isinstance(body, dict):
        raise ModelFormatError(f"{shown} is a damaged .pt2: its {name} is not an object")
    return body


def _payloads(
    archive: zipfile.ZipFile, by_name: dict[str, zipfile.ZipInfo], name: str, shown: str
) -> dict[str, dict[str, Any]]:
    if name not in by_name:
        raise ModelFormatError(f"{shown} keeps its weights in an older form: save it again with torch 2.9 or later")
    config: dict[str, dict[str, Any]] = _json(archive, by_name, name, shown)["config"]
    for key, payload in config.items():
        if payload.get("use_pickle") or payload.get("tensor_meta") is None:
            raise UnsafeModel(
                f"{shown} keeps {key!r} as a pickled object, and loading it would run code: export the model with "
                "plain tensors (no tensor subclasses, no custom objects)"
            )
    return config


def _checked(program: dict[str, Any], shown: str) -> dict[str, Any]:
    for node in program["graph_module"]["graph"]["nodes"]:
        target = node["target"]
        if not (_TARGET.fullmatch(target) or _SYM_TARGET.fullmatch(target)):
            raise UnsupportedOperator(f"operator {target.removeprefix('torch.ops.')} is not supported")
        kept = node["metadata"]
        node["metadata"] = {k: kept[k] for k in ("stack_trace", "nn_module_stack") if k in kept}
    checked: dict[str, Any] = _without_expressions(program, shown)
    for name, meta in checked["graph_module"]["graph"]["tensor_values"].items():
        _check_sizes(name, meta["sizes"], shown)
    checked["range_constraints"] = {}
    checked["guards_code"] = []
    checked["verifiers"] = []
    checked["graph_module"]["module_call_graph"] = []
    checked["graph_module"]["metadata"] = {}
    checked["graph_module"]["treespec_namedtuple_fields"] = {}
    return checked


def _check_sizes(name: str, sizes: list[dict[str, Any]], shown: str) -> None:
    elements = 1
    for size in (size.get("as_int", 1) for size in sizes):
        elements *= size
        if not 0 <= size <= MAX_DIM or elements > MAX_NUMEL:
            raise ModelFormatError(f"{shown} is not valid: tensor {name[:80]!r} has a dimension of {size}")


def _without_expressions(body: Any, shown: str) -> Any:
    """The same JSON with each symbolic size replaced by its value in the example that the model was exported with."""
    if isinstance(body, list):
        return [_without_expressions(item, shown) for item in body]
    if not isinstance(body, dict):
        return body
    expression = body.get("as_expr")
    if isinstance(expression, dict) and "expr_str" in expression:
        check_expression(str(expression["expr_str"]), shown)
        hint = expression.get("hint")
        if hint is None:
            text = str(expression["expr_str"])
            if text in ("True", "False"):
                return {"as_bool": text == "True"}
            raise UnsupportedOperator(
                f"{shown} has a size that depends on the input's data ({text}), which is not supported"
            )
        if not isinstance(hint, dict):
            return {"as_bool": hint}
        return {k: v for k, v in hint.items() if k in ("as_int", "as_float", "as_bool")}
    if isinstance(body.get("expr_str"), str):
        check_expression(body["expr_str"], shown)
    return {key: _without_expressions(value, shown) for key, value in body.items()}


def _dynamic_dims(program: dict[str, Any]) -> dict[str, tuple[bool, ...]]:
    graph = program["graph_module"]["graph"]
    inputs = [i["as_tensor"]["name"] for i in graph["inputs"] if "as_tensor" in i]
    return {n: tuple("as_expr" in size for size in graph["tensor_values"][n]["sizes"]) for n in inputs}
