"""What the files of a Hugging Face folder say, without their weights: `config.json` and the safetensors headers.

A safetensors file is 8 bytes (length, little-endian), a JSON header of so many bytes, then the data
(https://github.com/huggingface/safetensors#format); only the first two are read. Several files are named by
`model.safetensors.index.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
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

    @property
    def main_dtype(self) -> str:
        """The dtype of most bytes; empty without weights."""
        return max(self.bytes_by_dtype, key=lambda d: self.bytes_by_dtype[d], default="")


def is_config(path: Path, head: bytes) -> bool:
    """Whether a file is the `config.json` of a Hugging Face folder."""
    return path.name == CONFIG and head.lstrip()[:1] == b"{"


def read_config(folder: Path, shown: str) -> dict[str, Any]:
    """`config.json` as it is. Raises ModelFormatError where it is no JSON object or names no `model_type`."""
    config = _json_object(folder / CONFIG, shown)
    if not isinstance(config.get("model_type"), str):
        raise ModelFormatError(
            f"{shown}: {CONFIG} names no model_type, so it is not a model of transformers: export the model to ONNX, "
            "or to a .pt2 with torch.export"
        )
    return config


def read_weight_files(folder: Path, shown: str) -> WeightFiles:
    """The headers of the folder's safetensors files; a folder without any gives no files.

    Raises ModelFormatError for a file that is missing, truncated or not what its header says.
    """
    files = weight_files(folder, shown)
    size, elements = 0, 0
    by_dtype: dict[str, int] = {}
    state = hashlib.sha256()
    for path in files:
        length, header = _header(path, shown)
        state.update(header)
        size += length
        for dtype, count, nbytes in _tensors(path, header[8:], length, shown):
            by_dtype[dtype] = by_dtype.get(dtype, 0) + nbytes
            elements += count
    return WeightFiles(files, size, by_dtype, elements, state.digest())


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


def _tensors(path: Path, header: bytes, size: int, shown: str) -> Iterator[tuple[str, int, int]]:
    """Dtype, elements and bytes of each tensor; its place must be inside the file and of its size."""
    room = size - 8 - len(header)
    for name, entry in _parsed(header, path, shown).items():
        if name == "__metadata__":
            continue
        try:
            dtype, nbytes_each = _DTYPES.get(entry["dtype"], (str(entry["dtype"]), 0))
            shape, (begin, end) = entry["shape"], entry["data_offsets"]
            sound = all(type(d) is int and d >= 0 for d in (*shape, begin, end)) and begin <= end <= room
        except (TypeError, KeyError, ValueError):
            sound = False
        count = 1
        for dimension in shape if sound else ():
            count *= dimension
        if not sound or (nbytes_each and count * nbytes_each != end - begin):
            raise ModelFormatError(
                f"{shown}: {path.name} does not hold tensor {name[:80]!r} as its header says: is the download complete?"
            )
        yield dtype, count, end - begin


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
