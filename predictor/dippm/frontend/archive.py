"""Zip archives that are not what they say: refused by name before anything unpacks them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from dippm.errors import ModelFormatError

MAX_MEMBERS = 200_000
MAX_RATIO = 200
"""Times that a member may grow when it is unpacked; the JSON and code of real models grow 5 to 20 times."""
MAX_UNPACKED_BYTES = 1 << 30
"""Bytes that all compressed members may have together; tensors are stored as they are."""
_SMALL = 1 << 20


def check_archive(path: Path, shown: str) -> None:
    """Look through the directory of an archive of PyTorch; nothing is unpacked.

    Raises ModelFormatError for a zip bomb (a member that grows too much, members that lie over each other, too many of
    them) and for an archive that is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            end = archive.start_dir
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelFormatError(f"{shown} is a damaged archive: {error}") from None
    if len(members) > MAX_MEMBERS:
        raise ModelFormatError(f"{shown} has {len(members)} members, a zip bomb: an archive has at most {MAX_MEMBERS}")
    unpacked, position = 0, 0
    for member in sorted(members, key=lambda m: m.header_offset):
        name = member.filename[:80]
        if member.header_offset < position or member.header_offset + member.compress_size > end:
            raise ModelFormatError(
                f"{shown} is no sound archive: its member {name!r} lies over another one, or past the end of the file"
            )
        position = member.header_offset + member.compress_size
        if member.compress_type == zipfile.ZIP_STORED:
            if member.file_size != member.compress_size:
                raise ModelFormatError(f"{shown} is no sound archive: its member {name!r} has two sizes")
            continue
        unpacked += member.file_size
        if member.file_size > max(_SMALL, MAX_RATIO * member.compress_size):
            raise ModelFormatError(
                f"{shown} is a zip bomb: its member {name!r} unpacks from {member.compress_size >> 10} KiB to "
                f"{member.file_size >> 20} MiB"
            )
    if unpacked > MAX_UNPACKED_BYTES:
        raise ModelFormatError(
            f"{shown} unpacks to {unpacked >> 20} MiB beside its weights: the limit is {MAX_UNPACKED_BYTES >> 20} MiB"
        )
