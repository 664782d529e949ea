"""TensorFlow's model files, known by their content.

SavedModel (a folder, its `saved_model.pb`, or a zip archive of it), Keras archives and HDF5 files, TensorFlow Lite.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

FORMATS = ("savedmodel", "keras", "tflite")
SAVED_MODEL = "saved_model.pb"
HDF5 = b"\x89HDF\r\n\x1a\n"
"""First bytes of an HDF5 file (https://docs.hdfgroup.org/hdf5/develop/_f_m_t3.html)."""
TFLITE = b"TFL3"
"""File identifier of a TensorFlow Lite flatbuffer, from its fifth byte on (schema.fbs)."""
KERAS_CONFIG = "config.json"
_KERAS_OTHERS = frozenset({"metadata.json", "model.weights.h5"})


def format_of(head: bytes) -> str | None:
    """One of FORMATS by a file's first bytes, or None. Archives are known by their members."""
    if head.startswith(HDF5):
        return "keras"
    if head[4:8] == TFLITE:
        return "tflite"
    return "savedmodel" if is_saved_model(head) else None


def is_saved_model(head: bytes) -> bool:
    """Whether a file begins as a SavedModel message does: schema version 1, then a graph, which begins with its own
    description (saved_model.proto, meta_graph.proto)."""
    if head[:3] != b"\x08\x01\x12":
        return False
    position = 3
    while position < len(head) and head[position] >= 0x80:
        position += 1
    return head[position + 1 : position + 2] == b"\x0a"


def format_of_members(names: Iterable[str]) -> str | None:
    """One of FORMATS by what an archive holds, or None."""
    held = frozenset(names)
    if KERAS_CONFIG in held and held & _KERAS_OTHERS:
        return "keras"
    return "savedmodel" if saved_model_member(held) else None


def saved_model_member(names: Iterable[str]) -> str | None:
    """The member of an archive that is a SavedModel's graph: in the archive itself, or in its one folder."""
    found = [n for n in names if n.rpartition("/")[2] == SAVED_MODEL and n.count("/") <= 1]
    return found[0] if len(found) == 1 else None


def is_saved_model_folder(path: Path) -> bool:
    """Whether a folder is a SavedModel."""
    return path.is_dir() and (path / SAVED_MODEL).is_file()


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a SavedModel's folder that make its size: the graph and its variables."""
    yield folder / SAVED_MODEL
    yield from (f for f in (folder / "variables").glob("*") if f.is_file())
