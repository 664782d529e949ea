"""`file:` URIs: a path below one folder, used where it lies."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dippm import hf_files
from dippm.artifact import sha256_of
from dippm.errors import ArtifactTooLarge, ArtifactUnreachable, DigestMismatch
from dippm.tensorflow_files import SAVED_MODEL
from dippm_operator.fetch.http import shown
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.result import Fetched

_CHUNK = 1024 * 1024


def path_of(uri: str) -> Path:
    """The path in a `file:` URI: `file:///a/b`, `file://localhost/a/b`, `file:/a/b`, `file:a/b`."""
    parts = urlsplit(uri)
    if parts.netloc not in ("", "localhost"):
        path = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ArtifactUnreachable(
            f"{shown(uri)}: a file URI names no host; write file:///{path} for an absolute path "
            f"or file:{path} for a relative one."
        )
    return Path(unquote(parts.path))


def fetch_file(uri: str, *, limits: FetchLimits, digest: str | None) -> Fetched:
    """Check a file and use it in place. Blocking: reads the whole file when a digest is given.

    Raises ArtifactUnreachable, ArtifactTooLarge, DigestMismatch.
    """
    path, name = path_of(uri), shown(uri)
    if not limits.file_roots:
        raise ArtifactUnreachable(f"{name}: file URIs are switched off here; serve the model over https instead.")
    roots = [root.resolve() for root in limits.file_roots]
    resolved = (roots[0] / path).resolve()
    if not any(resolved.is_relative_to(root) for root in roots):
        places = " and ".join(str(root) for root in roots)
        raise ArtifactUnreachable(f"{name}: files outside {places} are not read; move the model there or serve it.")
    try:
        stat = resolved.stat()
    except OSError as error:
        raise ArtifactUnreachable(f"{name}: {resolved} cannot be read ({error.strerror}); check the path.") from None
    size = stat.st_size
    if resolved.is_file():
        if size > limits.max_bytes:
            raise ArtifactTooLarge(f"{name} has {size} bytes; at most {limits.max_bytes} are read.")
    elif not resolved.is_dir():
        raise ArtifactUnreachable(f"{name}: {resolved} is neither a file nor a folder; name the model's file.")
    content = ""
    if digest is not None:
        content = _digest(name, resolved)
        check_digest(name, content, digest)
    return Fetched(uri, resolved, size, 0, f"{stat.st_mtime_ns:x}-{size:x}", content)


def check_digest(name: str, actual: str, wanted: str) -> None:
    """Raise DigestMismatch unless they are the same."""
    if actual != wanted:
        raise DigestMismatch(
            f"{name} has the digest {actual}, not {wanted}; the file has changed, or spec.model.digest is of another."
        )


def folder_digest(name: str, path: Path) -> str:
    """That of a Hugging Face folder, over config and headers of its weights, or of a SavedModel's graph. Blocking.

    Raises DigestMismatch for any other folder.
    """
    if (path / SAVED_MODEL).is_file():
        return sha256_of(path / SAVED_MODEL)
    if not (path / hf_files.CONFIG).is_file():
        raise DigestMismatch(f"{name} is a folder, which has no digest; name a file or leave spec.model.digest out.")
    return hf_files.folder_digest(path, hf_files.read_weight_files(path, name))


def _digest(name: str, path: Path) -> str:
    if path.is_dir():
        return folder_digest(name, path)
    state = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                state.update(chunk)
    except OSError as error:
        raise ArtifactUnreachable(f"{name}: {path} cannot be read ({error.strerror}); check its mode.") from None
    return "sha256:" + state.hexdigest()
