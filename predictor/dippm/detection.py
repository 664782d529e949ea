"""What a file is, told by its first bytes and, of an archive, by the names of its members."""

from __future__ import annotations

import zipfile
from pathlib import Path

from dippm import paddle_files, tensorflow_files

OPEN_DOORS = "export it to ONNX, or to a .pt2 with torch.export"
HEAD_BYTES = 4096
"""What `detect` is given of a file."""
MODEL_SUFFIXES = (".onnx", ".pt2", ".pt", ".ts", ".tflite", ".keras")
"""How files are called, as a rule, that may be a model with its operators."""


def detect(path: Path, head: bytes) -> str:
    """One of artifact.FORMATS, or a clause that says what the file is instead and what to do about it."""
    if not head:
        return "is empty: is the download complete?"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _detect_zip(path)
    if paddle_files.is_program(head):
        return "paddle"
    if paddle_files.is_weights(head):
        return (
            "holds weights only (PaddlePaddle): name the program that belongs to it (.json or .pdmodel), or the folder"
        )
    for signature, offset, clause in _CLOSED:
        if head[offset : offset + len(signature)] == signature:
            return clause
    if _is_safetensors(head):
        return "safetensors"
    if head[:1] == b"\x80" and len(head) > 1 and head[1] in (2, 3, 4, 5):
        return "pickle"
    if found := tensorflow_files.format_of(head):
        return found
    if _looks_like_onnx(head):
        return "onnx"
    return (
        "is no model that is known here: ONNX, .pt2, TorchScript, safetensors, Keras, TFLite and PaddlePaddle files "
        "are, and folders of Hugging Face and SavedModel"
    )


_CLOSED: tuple[tuple[bytes, int, str], ...] = (
    (b"GGUF", 0, f"is a GGUF file, a format that is not read: {OPEN_DOORS}"),
    (b"version https://git-lfs", 0, "is a Git LFS pointer, not the model: fetch it with `git lfs pull`"),
    (b"\x1f\x8b", 0, "is a gzip archive: unpack it first"),
    (
        b"<",
        0,
        "looks like a web page, not a model: check the URI and the credentials, and name the file itself (folders of a "
        "web server are not read)",
    ),
    (b"{", 0, "is a JSON text, not a model"),
)


def _detect_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "is a truncated or damaged zip archive: is the download complete?"
    inner = {name.partition("/")[2] or name for name in names}
    if "archive_format" in inner and any(_is_program(n) for n in inner):
        return "pt2"
    if "serialized_exported_program.json" in names:
        return "is a .pt2 of an older PyTorch: load it there and save it again with torch 2.8 or later"
    if "constants.pkl" in inner and any(n.startswith("code/") for n in inner):
        return "torchscript"
    if "data.pkl" in inner:
        return "pickle"
    if found := tensorflow_files.format_of_members(names):
        return found
    return "is a zip archive without a model in it: a .pt2 has models/model.json, a TorchScript file code/"


def _is_program(name: str) -> bool:
    return name.startswith("models/") and name.endswith(".json")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _looks_like_onnx(head: bytes) -> bool:
    """A ModelProto starts with its small fields: `ir_version` (field 1, varint), producer strings, opset, graph."""
    position, fields = 0, 0
    while position < len(head) - 1 and fields < 6:
        tag = head[position]
        number, wire = tag >> 3, tag & 7
        if number == 7 and wire == 2:
            return fields > 0
        if number not in _MODEL_FIELDS or wire != _MODEL_FIELDS[number]:
            return False
        length, position = _varint(head, position + 1)
        if length < 0:
            return False
        if wire == 2:
            position += length
        fields += 1
    return fields > 1


_MODEL_FIELDS = {1: 0, 2: 2, 3: 2, 4: 2, 5: 0, 6: 2, 7: 2, 8: 2, 14: 2, 20: 2, 25: 2}
"""Field numbers of onnx.ModelProto below 16 and their wire types (onnx.proto3)."""


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            return -1, position
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    return -1, position
