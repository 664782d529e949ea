"""Which parts of a model file say what the model is. The weights are jumped over where they lie.

Each reader asks for exactly what the frontend will look at, so that a file with holes reads as the whole one does.
A file that is damaged is read up to there: the frontend meets the same damage and says it to the user.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from dataclasses import dataclass

from dippm.frontend.onnx.wire import CHILDREN, STRIP_BYTES, TENSOR_DATA
from dippm_operator.fetch.sparse import Reader

HEAD_BYTES = 4096
"""What is read of every file, to know its kind."""
MAX_DEPTH = 100
"""Most messages inside each other in an ONNX file (graphs of If and Loop nest)."""
MAX_HEADER_BYTES = 100_000_000
"""Largest safetensors header (https://github.com/huggingface/safetensors#format)."""

_TENSOR_MEMBER = re.compile(
    r"[^/]+/(data/weights/(?!.*\.json$).+|data/constants/(?!.*\.json$).+|data/sample_inputs/.+|data/\d+|constants/\d+)"
    r"|model\.weights\.h5|([^/]+/)?variables/variables\.data-.+"
)
"""Members of a `.pt2`, a TorchScript, a Keras or a SavedModel archive that hold elements of tensors, or a pickle that
is never read."""
_REFUSED_HEADS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"GGUF", b"\x1f\x8b", b"version https://git-lfs")
"""Files that are refused by their first bytes: pickles and kinds that are no model here."""


def kind_of(head: bytes) -> str:
    """`zip`, `safetensors`, `onnx`, `refused` or `other`, by the first bytes."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(_REFUSED_HEADS):
        return "refused"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < MAX_HEADER_BYTES:
        return "safetensors"
    if head[:1] == b"\x08" and b"\x3a" in head and not head[1:2].isalpha():
        return "onnx"  # field 1 of ModelProto, ir_version, a varint; field 7, the graph, further on
    return "other"


def skim(reader: Reader, kind: str) -> None:
    """Ask for what the frontend needs of a file of this kind; all of it where that is not known (zip: see below)."""
    if kind == "onnx":
        _walk(reader, 0, None, "model", 0)
    elif kind == "safetensors":
        reader.keep(0, 8 + int.from_bytes(reader.read(0, 8), "little"))
    elif kind == "other":
        position = 0
        while piece := len(reader.read(position, 1 << 20)):
            position += piece


def _walk(reader: Reader, position: int, end: int | None, message: str, depth: int) -> int:
    """Follow the wire format (https://protobuf.dev/programming-guides/encoding) to the end of a message."""
    while end is None or position < end:
        head = reader.read(position, 20)
        tag, used = _varint(head, 0)
        if used == 0:
            break
        number, wire, length = tag >> 3, tag & 7, 0
        if wire in (0, 2):
            value, more = _varint(head, used)
            if more == 0:
                break
            used, length = used + more, value if wire == 2 else 0
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            break
        body = position + used
        position = body + length
        if message == "tensor" and number in TENSOR_DATA:
            continue
        child = CHILDREN.get(message, {}).get(number) if wire == 2 and length >= STRIP_BYTES else None
        if child is not None and depth < MAX_DEPTH:
            _walk(reader, body, position, child, depth + 1)
        else:
            reader.keep(body, position)
    return position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Value and length; length 0 where the data ends before."""
    value = 0
    for count, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return value, count + 1
    return 0, 0


class Tail(io.RawIOBase):
    """A file of which `read_at` gives the parts that are asked for, as zipfile wants it."""

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader = reader
        self._size = size
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"no place before the start of the file: {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(self._size - self._position, 0)
        data = self._reader.read(self._position, left if size is None or size < 0 else min(size, left))
        self._position += len(data)
        return data


@dataclass(frozen=True, slots=True)
class Members:
    """What to have of an archive."""

    kept: tuple[tuple[int, int], ...]
    """Start and end of members that are read."""
    headers: tuple[tuple[int, bytes], ...]
    """Offset and content of local headers for members that are left out."""
    directory: int
    """Where the directory begins, which goes to the end of the file."""


def zip_members(tail: Tail, size: int) -> Members:
    """From an archive's directory: the ranges of members to keep, and local headers for those that are left out.

    Archives of PyTorch end with their directory; what lies between the start of a member and that of the next is its
    local header and data. A left out member gets a header without data behind it, so that a reader which only asks
    where it lies (PyTorch on the meta device) finds it.
    """
    try:
        with zipfile.ZipFile(tail) as archive:
            members = sorted(archive.infolist(), key=lambda m: m.header_offset)
            directory = archive.start_dir
        if members and members[0].header_offset < 0:
            raise zipfile.BadZipFile("a member begins before the file")
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError):
        return Members((), (), max(0, size - 65_557))  # the frontend says what is wrong with it
    ends = [m.header_offset for m in members[1:]] + [directory]
    kept: list[tuple[int, int]] = []
    headers: list[tuple[int, bytes]] = []
    for member, end in zip(members, ends, strict=True):
        name = member.orig_filename.encode("utf-8", "replace")
        if member.compress_type != zipfile.ZIP_STORED or not _TENSOR_MEMBER.fullmatch(member.filename):
            kept.append((member.header_offset, end))
        elif member.header_offset + 30 + len(name) <= end:
            sizes = (min(member.compress_size, 0xFFFFFFFF), min(member.file_size, 0xFFFFFFFF))
            fields = (20, member.flag_bits & ~8, 0, 0, 0, member.CRC, *sizes, len(name), 0)
            headers.append((member.header_offset, struct.pack("<4s5H3I2H", b"PK\x03\x04", *fields) + name))
    return Members(tuple(kept), tuple(headers), directory)
