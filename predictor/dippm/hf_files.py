"""What the files of a Hugging Face folder say, without their weights: `config.json` and the safetensors headers.

A safetensors file is 8 bytes (length, little-endian), a JSON header of so many bytes, then the data
(https://github.com/huggingface/safetensors#format); only the first two are read. Several files are named by
`model.safetensors.index.json`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dippm.errors import ArtifactUnreachable, ModelFormatError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 32 << 20
"""Largest `config.json` or index that is read; the index of a model of 600 B parameters has about 9 MB."""
MAX_HEADER_BYTES = 100_000_000
"""Largest header that the safetensors library itself reads."""
MAX_FILES = 2048
"""Most weight files of one model."""

_DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "BOOL": ("bool", 1),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U64": ("uint64", 8), "U32": ("uint32", 4), "U16": ("uint16", 2), "U8": ("uint8", 1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The weight files of a folder, by their headers."""

    files: tuple[Path, ...]
    size_bytes: int
    """Of the files, headers included."""
    bytes_by_dtype: Mapping[str, int]
    """Bytes of tensors by dtype, as Relax spells it; one that has no such name keeps its own."""
    elements: int
    """Of all tensors together."""
    header_digest: bytes
    """SHA-256 over the headers with their lengths, in the order of the file names."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of each tensor, by name."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What whoever saved the first file wrote into its header (`__metadata__`)."""

    @property
    def main_dtype(self) -> str:
        """The dtype of most bytes; empty without weights."""
        return max(self.bytes_by_dtype, key=lambda d: self.bytes_by_dtype[d], default="")


def is_config(path: Path, head: bytes) -> bool:
    """Whether a file is the `config.json` of a Hugging Face folder."""
    return path.name == CONFIG and head.lstrip()[:1] == b"{"


def read_config(folder: Path, shown: str) -> dict[str, Any]:
    """`config.json` as it is.

    Raises ModelFormatError where it is no JSON object or names neither a `model_type` nor an architecture of timm.
    """
    config = _json_object(folder / CONFIG, shown)
    if not isinstance(config.get("model_type"), str) and not timm_architecture(config):
        raise ModelFormatError(
            f"{shown}: {CONFIG} names no model_type, so it is not a model of transformers: export the model to ONNX, "
            "or to a .pt2 with torch.export"
        )
    return config


def timm_architecture(config: Mapping[str, Any]) -> str:
    """The model of timm that a `config.json` is of, as timm and transformers' wrapper of it save it; else empty.

    timm names what it loads as `resnet50` or, with the tag of its weights, `resnet50.a1_in1k`.
    """
    name = config.get("architecture")
    if config.get("model_type", "timm_wrapper") != "timm_wrapper" or not isinstance(name, str):
        return ""
    return name.partition(".")[0]


def read_weight_files(folder: Path, shown: str) -> WeightFiles:
    """The headers of the folder's safetensors files; a folder without any gives no files.

    Raises ModelFormatError for a file that is missing, truncated or not what its header says.
    """
    return read_headers(weight_files(folder, shown), shown)


def read_headers(files: Sequence[Path], shown: str) -> WeightFiles:
    """What the headers of these safetensors files say; raises as `read_weight_files` does."""
    size, elements = 0, 0
    by_dtype: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    metadata: dict[str, str] = {}
    state = hashlib.sha256()
    for path in files:
        length, header = _header(path, shown)
        state.update(header)
        size += length
        entries = _parsed(header[8:], path, shown)
        said = entries.pop("__metadata__", None)
        if isinstance(said, dict) and not metadata:
            metadata = {str(key): str(value) for key, value in said.items()}
        for name, dtype, shape, nbytes in _tensors(path, entries, length - len(header), shown):
            by_dtype[dtype] = by_dtype.get(dtype, 0) + nbytes
            elements += math.prod(shape)
            shapes[name] = shape
    return WeightFiles(tuple(files), size, by_dtype, elements, state.digest(), shapes, metadata)


def folder_digest(folder: Path, weights: WeightFiles) -> str:
    """`sha256:...` over `config.json` and the digest of the headers: what the model is, whatever its weights."""
    return "sha256:" + hashlib.sha256((folder / CONFIG).read_bytes() + weights.header_digest).hexdigest()


def pickles_in(folder: Path) -> tuple[str, ...]:
    """Names of pickled weight files; they are never opened."""
    return tuple(sorted(p.name for p in folder.iterdir() if p.name.startswith("pytorch_model") and p.suffix == ".bin"))


def weight_files(folder: Path, shown: str, *, names: Collection[str] = ()) -> tuple[Path, ...]:
    """Where a folder's weights lie: in one file, or in those that its index names. `names`: files that it has besides.

    Raises ModelFormatError for an index that is none.
    """
    if WEIGHTS in names or (folder / WEIGHTS).exists():
        return (folder / WEIGHTS,)
    if not (folder / INDEX).exists():
        return ()
    placed = _json_object(folder / INDEX, shown).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(n, str) for n in placed.values()):
        raise ModelFormatError(f"{shown}: {INDEX} has no weight_map of tensors to files: download it again")
    files = sorted(set(placed.values()))
    for name in files:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ModelFormatError(f"{shown}: {INDEX} names {name[:80]!r}, no safetensors file in the folder itself")
    if len(files) > MAX_FILES:
        raise ModelFormatError(f"{shown}: {INDEX} names {len(files)} files, more than the {MAX_FILES} that are read")
    return tuple(folder / name for name in files)


def _header(path: Path, shown: str) -> tuple[int, bytes]:
    """Size of the file, and its length field with the header."""
    try:
        if not path.is_file():
            raise ModelFormatError(f"{shown}: {path.name} is missing: is the download complete?")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start == b"version ":
                raise ModelFormatError(f"{shown}: {path.name} is a Git LFS pointer: fetch it with `git lfs pull`")
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise ModelFormatError(f"{shown}: {path.name} is no safetensors file, or truncated: download it again")
            return size, start + file.read(length)
    except OSError as error:
        raise ArtifactUnreachable(f"{shown}: {path.name} cannot be read: {error.strerror or error}") from None


def _tensors(
    path: Path, entries: Mapping[str, Any], room: int, shown: str
) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Name, dtype, shape and bytes of each tensor; its place must be inside the file and of its size."""
    for name, entry in entries.items():
        try:
            dtype, nbytes_each = _DTYPES.get(entry["dtype"], (str(entry["dtype"]), 0))
            shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
            sound = all(type(d) is int and d >= 0 for d in (*shape, begin, end)) and begin <= end <= room
        except (TypeError, KeyError, ValueError):
            sound = False
        if not sound or (nbytes_each and math.prod(shape) * nbytes_each != end - begin):
            raise ModelFormatError(
                f"{shown}: {path.name} does not hold tensor {name[:80]!r} as its header says: is the download complete?"
            )
        yield name, dtype, shape, end - begin


def _json_object(path: Path, shown: str) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise ModelFormatError(f"{shown}: {path.name} is missing: is the download complete?")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelFormatError(f"{shown}: {path.name} has more than {MAX_JSON_BYTES >> 20} MiB, which is not read")
        return _parsed(path.read_bytes(), path, shown)
    except OSError as error:
        raise ArtifactUnreachable(f"{shown}: {path.name} cannot be read: {error.strerror or error}") from None


def _parsed(text: bytes, path: Path, shown: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    except RecursionError:
        raise ModelFormatError(f"{shown}: {path.name} is nested too deeply to be read") from None
    if not isinstance(body, dict):
        raise ModelFormatError(f"{shown}: {path.name} is not the JSON object that it should be: download it again")
    return body
