"""What a Keras file or a SavedModel says of itself, read and refused before TensorFlow is imported.

A Keras file is a configuration: classes by name, from which Keras builds the model. Some of those classes hold Python
code (`Lambda`: marshalled bytecode), load files (`TFSMLayer`, `StringLookup`) or pickles (`TorchModuleWrapper`), and
any module may be named. So only Keras's own modules are let through, less the classes that do more than compute. A
SavedModel is a graph: it is never run here as a whole, and an operator that is not on a list of those that inference
needs is refused by name.

Only the standard library is imported; `h5py` is handed in where a file needs it.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dippm.errors import ModelFormatError, UnsafeModel
from dippm.frontend.protobuf_wire import tag, varint
from dippm.tensorflow_files import HDF5, KERAS_CONFIG, SAVED_MODEL, saved_model_member

MAX_CONFIG_BYTES = 64 << 20
"""Largest configuration that is read; that of a model of 1,000 layers has under 1 MB."""
MAX_GRAPH_BYTES = 1 << 30
"""Largest SavedModel graph; TensorFlow itself reads none over 2 GiB."""
MAX_DEPTH = 200
"""Deepest nesting of a configuration."""
_CODE = frozenset({"Lambda", "__lambda__"})
_LOADS = frozenset({"TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"})
_LOOKUPS = frozenset({"StringLookup", "IntegerLookup", "TextVectorization", "IndexLookup"})
_TYPES = ("keras.layers", "keras.models", "keras.src.models", "keras.src.layers", "keras.src.ops", "keras.ops",
          "keras.initializers", "keras.src.initializers", "keras.regularizers", "keras.src.regularizers",
          "keras.constraints", "keras.src.constraints", "keras.activations", "keras.src.activations",
          "keras.src.dtype_policies", "keras.dtype_policies", "keras.src.backend.common.keras_tensor",
          "keras.engine", "keras.src.engine", "keras.src.applications", "keras.src.random.seed_generator",
          "keras.random")  # fmt: skip
_PYTHON_OPS = frozenset({"PyFunc", "PyFuncStateless", "EagerPyFunc"})
OPERATORS = frozenset(
    line
    for line in Path(__file__).with_name("tensorflow_operators.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)
"""Operators that a graph may have, those of its functions that nobody calls included. TensorFlow's own optimizer runs
what has constant inputs, so even a graph that nobody runs may reach out by its operators (`DebugIdentity` writes to a
file that the model names). `SaveV2`, `RestoreV2` and `MergeV2Checkpoints`, which every SavedModel has, are stateful: it
leaves them be.
The list is a file of this package and not what the installed tf2onnx knows: it holds before TensorFlow is imported, and
another version of tf2onnx opens nothing."""
_SHOWN_OPERATORS = 5


@dataclass(frozen=True, slots=True)
class KerasConfig:
    """What Keras builds a model from."""

    model: Mapping[str, Any]
    """`class_name`, `config` and, where Keras 3 wrote it, `module`."""
    legacy: bool
    """Whether it is an `.h5` file's, which Keras reads by its older rules."""


def refuse(path: Path, shown: str) -> None:
    """Raise for a file that must not be loaded, as far as the standard library can tell.

    Raises UnsafeModel, UnsupportedOperator or ModelFormatError.
    """
    file = path / SAVED_MODEL if path.is_dir() else path
    with file.open("rb") as opened:
        head = opened.read(8)
    if head.startswith(b"PK") and not is_zipped_saved_model(file):
        keras_config_of(file, shown)
    elif head != HDF5:
        check_operators(operators_of(saved_model_of(file, shown), shown), shown)


def is_zipped_saved_model(path: Path) -> bool:
    """Whether an archive holds a SavedModel."""
    with zipfile.ZipFile(path) as archive:
        return KERAS_CONFIG not in archive.namelist() and saved_model_member(archive.namelist()) is not None


def saved_model_of(path: Path, shown: str) -> bytes:
    """The bytes of a `saved_model.pb`, or of the one in an archive. Raises UnsafeModel or ModelFormatError."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            member = saved_model_member(archive.namelist()) or SAVED_MODEL
        return _member(path, member, MAX_GRAPH_BYTES, shown)
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise ModelFormatError(f"{shown} has a graph of {path.stat().st_size >> 20} MiB: the limit is 1,024 MiB")
    return path.read_bytes()


def keras_config_of(path: Path, shown: str, h5py: Any = None) -> KerasConfig:
    """The configuration of a `.keras` archive or, with `h5py`, of an `.h5` file, checked.

    Raises UnsafeModel (it has code, or names what is not Keras's) or ModelFormatError.
    """
    with path.open("rb") as file:
        legacy = file.read(8) == HDF5
    text = _from_h5(path, shown, h5py) if legacy else _member(path, KERAS_CONFIG, MAX_CONFIG_BYTES, shown)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise ModelFormatError(f"{shown} is a damaged Keras file: its configuration is no JSON") from None
    if not isinstance(config, dict) or "class_name" not in config:
        raise ModelFormatError(f"{shown} is a damaged Keras file: its configuration names no class of model")
    kept = {
        k: v for k, v in config.items() if k in ("module", "class_name", "config", "registered_name", "build_config")
    }
    check_config(kept, shown)
    return KerasConfig(kept, legacy)


def _member(path: Path, name: str, most: int, shown: str) -> bytes:
    """One member of an archive, unpacked up to a limit. Raises UnsafeModel or ModelFormatError."""
    try:
        with zipfile.ZipFile(path) as archive:
            for other in archive.namelist():
                if other.startswith(("/", "\\")) or ".." in other.replace("\\", "/").split("/"):
                    raise UnsafeModel(
                        f"{shown} has a member {other!r} that points out of the archive: it is not opened"
                    )
            with archive.open(name) as file:
                data = file.read(most + 1)
    except (zipfile.BadZipFile, zlib.error, KeyError, OSError, EOFError, NotImplementedError, RuntimeError, ValueError):
        raise ModelFormatError(f"{shown} is a damaged archive: its {name} cannot be read") from None
    if len(data) > most:
        raise ModelFormatError(f"{shown} has a {name} that unpacks to more than {most >> 20} MiB: it is not read")
    return data


def _from_h5(path: Path, shown: str, h5py: Any) -> bytes:
    try:
        with h5py.File(path, "r") as file:
            text = file.attrs.get("model_config")
    except OSError:
        raise ModelFormatError(f"{shown} is a damaged HDF5 file: is the download complete?") from None
    if text is None:
        raise ModelFormatError(
            f"{shown} holds weights only, no model: save the model with model.save('model.keras'), or with "
            "model.export('folder')"
        )
    data = text.encode() if isinstance(text, str) else bytes(text)
    if len(data) > MAX_CONFIG_BYTES:
        raise ModelFormatError(f"{shown} has a configuration of more than {MAX_CONFIG_BYTES >> 20} MiB")
    return data


def check_config(config: Any, shown: str) -> None:
    """Raise UnsafeModel where a configuration names code, or a class or function that is not one of Keras's own."""
    for entry in _entries(config, shown):
        name = entry.get("class_name")
        inner = entry.get("config")
        label = inner.get("name", "") if isinstance(inner, dict) else ""
        called = f"{name} ({label!r})" if label else str(name)
        if not isinstance(name, str):
            raise ModelFormatError(f"{shown} is a damaged Keras file: a class is named by {name!r}")
        if name in _CODE:
            raise UnsafeModel(
                f"{shown} has a layer {called}, which is Python code in the file and is never run: write it with Keras "
                "operations, or export the model where it was made with model.export('folder') and name the folder"
            )
        if name in _LOADS:
            raise UnsafeModel(f"{shown} has a layer {called}, which loads another program or pickle: it is not built")
        if name in _LOOKUPS:
            raise UnsafeModel(
                f"{shown} has a layer {called}, which may read files and runs on the CPU: take preprocessing out of "
                "the model"
            )
        module = entry.get("module")
        registered = entry.get("registered_name")
        foreign = module is not None and not _is_keras(module)
        custom = isinstance(registered, str) and ">" in registered
        if foreign or custom or (name == "function" and not _is_keras(module)):
            what = registered if custom else f"{module}.{name}" if name != "function" else f"function {inner!r}"
            raise UnsafeModel(
                f"{shown} has a custom object {what}, code that is not in Keras and is never imported: export the "
                "model where it was made with model.export('folder') and name the folder"
            )
        if not name.replace("_", "").isalnum():
            raise UnsafeModel(f"{shown} names a class {name!r}, which is not one of Keras's own: it is not built")


def _is_keras(module: Any) -> bool:
    return isinstance(module, str) and (
        module == "keras" or any(module == t or module.startswith(f"{t}.") for t in _TYPES)
    )


def _entries(config: Any, shown: str) -> Iterator[dict[str, Any]]:
    """Every object of a configuration that names a class."""
    waiting: list[tuple[Any, int]] = [(config, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ModelFormatError(f"{shown} has a configuration nested more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            if "class_name" in value:
                yield value
            waiting.extend((v, depth + 1) for v in value.values())
        elif isinstance(value, list):
            waiting.extend((v, depth + 1) for v in value)


def check_operators(names: frozenset[str], shown: str) -> None:
    """Raise UnsafeModel for operators that call Python, and for all that are not among OPERATORS."""
    if python := sorted(names & _PYTHON_OPS):
        raise UnsafeModel(
            f"{shown} calls Python ({', '.join(python)}: tf.py_function or tf.numpy_function), code that is not in the "
            "file and is never run: write it with TensorFlow operations"
        )
    if foreign := sorted(names - OPERATORS):
        named = ", ".join(name[:80] for name in foreign[:_SHOWN_OPERATORS])
        named += f" and {len(foreign) - _SHOWN_OPERATORS} more" if len(foreign) > _SHOWN_OPERATORS else ""
        raise UnsafeModel(
            f"{shown} has operators that no inference graph needs ({named}): it is not loaded; export the model for "
            "inference alone, with model.export('folder')"
        )


_SAVED_MODEL = {"saved": {2: "meta"}, "meta": {2: "graph"}, "graph": {1: "node", 2: "library"},
                "library": {1: "function"}, "function": {3: "node"}}  # fmt: skip
"""Where nodes lie: message, field number, message (saved_model, meta_graph, graph and function.proto)."""
_OP_FIELD = 2


def operators_of(saved_model: bytes, shown: str) -> frozenset[str]:
    """Names of the operators in a `saved_model.pb`, those of its functions too. Raises ModelFormatError."""
    names: set[bytes] = set()
    _walk(memoryview(saved_model), "saved", names, shown)
    return frozenset(name.decode(errors="replace") for name in names)


def _walk(view: memoryview, message: str, names: set[bytes], shown: str) -> None:
    """Wire format: https://protobuf.dev/programming-guides/encoding (a tag, then a varint or some bytes)."""
    position, end = 0, len(view)
    while position < end:
        number, wire, position = tag(view, position, shown, "SavedModel")
        length = {1: 8, 5: 4}.get(wire, 0)
        if wire == 0:
            _, position = varint(view, position, shown, "SavedModel")
        elif wire == 2:
            length, position = varint(view, position, shown, "SavedModel")
        elif wire not in (1, 5):
            raise ModelFormatError(f"{shown} is a damaged SavedModel: unknown wire type {wire}")
        if position + length > end:
            raise ModelFormatError(f"{shown} is a truncated SavedModel: is the download complete?")
        if wire == 2 and message == "node" and number == _OP_FIELD:
            names.add(bytes(view[position : position + length]))
        elif wire == 2 and (child := _SAVED_MODEL.get(message, {}).get(number)):
            _walk(view[position : position + length], child, names, shown)
        position += length
