"""A model of several files: which of the files that a store lists belong to it. Pure, but for what a store must do."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from dippm import hf_files
from dippm.detection import MODEL_SUFFIXES
from dippm.errors import ArtifactUnreachable
from dippm.tensorflow_files import SAVED_MODEL
from dippm_operator.fetch.source import Source

_FILE_SUFFIXES = frozenset(
    (
        *MODEL_SUFFIXES,
        ".pdmodel",
        ".pdiparams",
        ".pth",
        ".bin",
        ".safetensors",
        ".gguf",
        ".pb",
        ".h5",
        ".json",
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
    )
)
"""What a path ends with that means a file; any other may be a folder, and the store is asked."""
MAX_FILES = 20_000
"""Most files of a folder that are looked through."""
LONGEST_LISTING = 4 << 20
"""Bytes of one answer to "what is there"; a thousand files take about 0.4 MB."""
_MAX_ASSET_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Listed:
    """A file as a store lists it."""

    path: str
    """Below the folder; with slashes."""
    size_bytes: int
    etag: str
    """What the store has for its content: another content, another one."""


class Folder(Protocol):
    """Where several files may be. Every call raises ArtifactUnreachable where the store does not do as asked."""

    name: str
    """How messages call it: its URI without credentials."""
    path: str
    """As the URI spells it; ends with a slash where it says that it means a folder."""

    async def list(self) -> tuple[Listed, ...]:
        """All files below it; nothing where there is no such folder."""

    def source(self, path: str) -> Source:
        """The file at a path below it; with an empty path the URI itself names the file."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The files of one model."""

    files: tuple[Listed, ...]
    """The one that says what it is comes first."""
    is_folder: bool
    """False: it is that one file."""
    root: str = ""
    """What comes before the model's own paths: `1/` for the version of a served model."""
    unread: frozenset[str] = frozenset()
    """Paths of files that hold weights alone: they are there, with their size and nothing in them."""

    @property
    def etag(self) -> str:
        """Another one as soon as one of the files is another."""
        rows = sorted(f"{file.path}\0{file.size_bytes}\0{file.etag}\n" for file in self.files)
        return hashlib.sha256("".join(rows).encode()).hexdigest()


def names_file(path: str) -> bool:
    """Whether a path means a file by how it ends."""
    return PurePosixPath(path).suffix.lower() in _FILE_SUFFIXES and not path.endswith("/")


def choose(name: str, listing: Sequence[Listed]) -> Chosen:
    """The model among the files that a folder holds.

    1. `config.json` and safetensors beside it: a Hugging Face folder.
    2. `saved_model.pb`: a SavedModel; of several versions (`1/`, `2/`, as TensorFlow Serving has them) the newest.
    3. The one file that may be a model by its name, or by PaddlePaddle's weights beside it, which are not fetched.
    4. `config.json` alone: a Hugging Face folder whose weights are not looked at.
    Raises ArtifactUnreachable where there is none, or several, or a file has the name of a folder.
    """
    inside = {file.path: file for file in listing if _is_plain(file.path)}
    inside = _without_markers(inside)
    beside = {path: file for path, file in inside.items() if "/" not in path}
    has_weights = any(path.endswith(".safetensors") for path in beside)
    if hf_files.CONFIG in beside and has_weights:  # 1
        return _hugging_face(beside)
    if root := _newest(name, [path for path in inside if PurePosixPath(path).name == SAVED_MODEL]):  # 2
        return _saved_model(root.removesuffix(SAVED_MODEL), inside)
    models = sorted({path for path in inside if path.endswith(MODEL_SUFFIXES)} | _paddle_programs(inside))
    if len(models) == 1:  # 3
        return Chosen((inside[models[0]],), is_folder=False)
    if models:
        some = ", ".join(models[:5]) + (", ..." if len(models) > 5 else "")
        shown = name.rstrip("/")
        raise ArtifactUnreachable(f"{shown} holds several models ({some}); name one: {shown}/{models[0]}.")
    if hf_files.CONFIG in beside:  # 4
        return _hugging_face(beside)
    weights = " beside its weights" if has_weights else ""
    raise ArtifactUnreachable(
        f"{name} holds no model: neither a file with a model's operators ({', '.join(MODEL_SUFFIXES)}), nor a "
        f"{SAVED_MODEL}, nor a {hf_files.CONFIG}{weights}; name another folder, or export the model."
    )


def _without_markers(inside: Mapping[str, Listed]) -> dict[str, Listed]:
    """Less the empty objects that stand for folders, which stores without folders are given by their clients.

    What has content and a folder's name is kept: `check_paths` says so where the model needs it.
    """
    folders = {str(parent) for path in inside for parent in PurePosixPath(path).parents}
    return {path: file for path, file in inside.items() if file.size_bytes or path not in folders}


def check_paths(name: str, chosen: Chosen) -> None:
    """Raise ArtifactUnreachable where a file of a model has the name of a folder that another one is in."""
    paths = {file.path for file in chosen.files}
    for path in sorted(paths):
        if twice := paths.intersection(map(str, PurePosixPath(path).parents)):
            raise ArtifactUnreachable(
                f"{name.rstrip('/')} has {min(twice)} both as a file and as the folder of {path}, which cannot be read "
                "as files; name the model's own file, or take one of the two away."
            )


def _paddle_programs(inside: Collection[str]) -> set[str]:
    """What PaddlePaddle saves as `NAME.json` or `NAME.pdmodel` with `NAME.pdiparams`; of both forms the newer."""
    stems = [path.removesuffix(".pdiparams") for path in inside if path.endswith(".pdiparams")]
    found = [next((stem + end for end in (".json", ".pdmodel") if stem + end in inside), "") for stem in stems]
    return set(filter(None, found))


def _hugging_face(beside: dict[str, Listed]) -> Chosen:
    pickles = {path for path in beside if path.startswith("pytorch_model") and path.endswith(".bin")}
    own = {path for path in beside if path == hf_files.INDEX or path.endswith(".safetensors")} | pickles
    files = (beside[hf_files.CONFIG], *(beside[path] for path in sorted(own)))
    return Chosen(files, is_folder=True, unread=frozenset(pickles))


def _saved_model(root: str, inside: dict[str, Listed]) -> Chosen:
    own = {path: file for path, file in inside.items() if path.startswith(root) and path != root + SAVED_MODEL}
    weights = {path for path in own if path.startswith(f"{root}variables/variables.data")}
    small = {path for path, file in own.items() if file.size_bytes <= _MAX_ASSET_BYTES or path.endswith(".index")}
    files = (inside[root + SAVED_MODEL], *(own[path] for path in sorted(weights | small)))
    return Chosen(files, is_folder=True, root=root, unread=frozenset(weights))


def _newest(name: str, paths: list[str]) -> str:
    """The path itself where there is one; of numbered versions the one with the highest number."""
    if len(paths) < 2:
        return "".join(paths)
    if SAVED_MODEL in paths:
        return SAVED_MODEL
    folders = [str(PurePosixPath(path).parent) for path in paths]
    if all(folder.isdecimal() for folder in folders):
        return f"{max(folders, key=int)}/{SAVED_MODEL}"
    raise ArtifactUnreachable(
        f"{name.rstrip('/')} holds several SavedModels ({', '.join(sorted(folders)[:5])}); name one of these folders."
    )


def _is_plain(path: str) -> bool:
    """Whether a path leads to a file below the folder and nowhere else."""
    parts = path.split("/")
    return not path.startswith("/") and "\0" not in path and all(part not in ("", ".", "..") for part in parts)
