"""`file:` URIs: a path below one folder, used where it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dippm import hf_files
from dippm.artifact import path_of_uri, sha256_of
from dippm.errors import ArtifactTooLarge, ArtifactUnreachable, DigestMismatch
from dippm.paddle_files import program_in
from dippm.tensorflow_files import SAVED_MODEL
from dippm_operator.fetch.disk import DiskFolder
from dippm_operator.fetch.folder import Chosen, choose
from dippm_operator.fetch.http import shown
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.result import Fetched

_CHUNK = 1024 * 1024


def fetch_file(uri: str, *, limits: FetchLimits, digest: str | None) -> Fetched:
    """Check a file, or find the model in a folder by the rules of every store, and use it in place.

    Blocking: a digest is of the whole file. Raises ArtifactUnreachable, ArtifactTooLarge, DigestMismatch.
    """
    path, name = path_of_uri(uri), shown(uri)
    if not limits.file_roots:
        raise ArtifactUnreachable(f"{name}: file URIs are switched off here; serve the model over https instead.")
    roots = [root.resolve() for root in limits.file_roots]
    chosen: Chosen | None = None
    try:
        resolved = _below((roots[0] / path).resolve(), roots, name)
        if resolved.is_dir() and program_in(resolved, name) is None:  # that is known by its content, in the folder
            chosen = choose(name, DiskFolder(resolved, "", name).files())
            for file in chosen.files:
                _below((resolved / file.path).resolve(), roots, name)
            resolved /= chosen.root if chosen.is_folder else chosen.files[0].path
        stat = resolved.stat()
    except OSError as error:
        where = error.filename or roots[0] / path
        raise ArtifactUnreachable(f"{name}: {where} cannot be read ({error.strerror}); check the path.") from None
    size, etag = stat.st_size, f"{stat.st_mtime_ns:x}-{stat.st_size:x}"
    if chosen is not None and chosen.is_folder:  # its own time says nothing of a file that is written anew
        size, etag = sum(file.size_bytes for file in chosen.files), chosen.etag
    if resolved.is_file():
        if size > limits.max_bytes:
            raise ArtifactTooLarge(f"{name} has {size} bytes; at most {limits.max_bytes} are read.")
    elif not resolved.is_dir():
        raise ArtifactUnreachable(f"{name}: {resolved} is not a regular file; save the model to one, and name that.")
    content = ""
    if digest is not None:
        content = _digest(name, resolved)
        check_digest(name, content, digest)
    return Fetched(uri, resolved, size, 0, etag, content)


def _below(path: Path, roots: Sequence[Path], name: str) -> Path:
    """The path, which must lie in one of the folders that may be read."""
    if not any(path.is_relative_to(root) for root in roots):
        places = " and ".join(str(root) for root in roots)
        raise ArtifactUnreachable(f"{name}: files outside {places} are not read; move the model there or serve it.")
    return path


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
