"""A model file, known by its content: what it is, how large it is, and whether it is the one that was asked for.

Nothing is loaded here: a few kilobytes are looked at (all of them only where a digest is to be verified).
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dippm import hf_files, paddle_files, tensorflow_files
from dippm.detection import HEAD_BYTES, MODEL_SUFFIXES, OPEN_DOORS, detect
from dippm.errors import ArtifactUnreachable, DigestMismatch, ModelFormatError

FORMATS = (
    "onnx", "pt2", "torchscript", "huggingface", "safetensors", "savedmodel", "keras", "tflite", "paddle", "pickle",
)  # fmt: skip
"""Formats that `open_artifact` gives; a `pickle` is only loaded when it is trusted explicitly."""

FRAMEWORKS = {
    "auto": FORMATS,
    "pytorch": ("pt2", "torchscript", "huggingface", "safetensors", "pickle"),
    "onnx": ("onnx",),
    "torchscript": ("torchscript",),
    "pt2": ("pt2",),
    "huggingface": ("huggingface", "safetensors"),
    "tensorflow": tensorflow_files.FORMATS,
    "paddle": ("paddle",),
    **{name: (name,) for name in ("safetensors", *tensorflow_files.FORMATS)},
}
"""What a user may call a file, and the formats that answer to it: a framework, or a format itself."""

_SPOKEN = {
    "onnx": "an ONNX model",
    "pt2": "a torch.export program (.pt2)",
    "torchscript": "a TorchScript model",
    "huggingface": "a Hugging Face folder",
    "safetensors": "weights of a named constructor (safetensors)",
    "pickle": "a pickled PyTorch object",
    "paddle": "a PaddlePaddle inference model",
    "savedmodel": "a TensorFlow SavedModel",
    "keras": "a Keras model",
    "tflite": "a TensorFlow Lite model",
}
SAVE_WEIGHTS = "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"
"""The line that makes weights without code of pickled ones."""
_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model file on disk whose kind is known."""

    path: Path
    """The file, or the folder of a Hugging Face model or a SavedModel."""
    format: str
    """One of FORMATS."""
    size_bytes: int
    digest: str = ""
    """`sha256:...` of the content where it was verified, else empty."""
    uri: str = ""
    """Where it came from; its path where it always was a file."""
    constructor: str = ""
    """What `safetensors` are the weights of, as `timm:resnet50`; empty for formats that say it themselves."""

    @property
    def spoken(self) -> str:
        """What it is, in words."""
        return spoken(self.format)


def spoken(format: str) -> str:
    """One of FORMATS in words."""
    return _SPOKEN[format]


def open_artifact(
    path: str | PathLike[str],
    *,
    framework: str = "auto",
    digest: str | None = None,
    uri: str = "",
    constructor: str = "",
) -> Artifact:
    """Look at a file (a path, or a `file:` URI) and say what model it is.

    `framework` is the user's word for it (`auto`, `pytorch`, `onnx`, ..., one of FRAMEWORKS), held against the content.
    `digest` (`sha256:` and 64 hex digits, or the digits alone) is verified over the whole file, streamed; that of a
    Hugging Face folder (or of the `config.json` in it) is over `config.json` and the headers of the weight files, that
    of a SavedModel folder over its `saved_model.pb`. A folder with a PaddlePaddle program is that program.
    `constructor` says what weights alone are of, as `timm:resnet50` or `torchvision:resnet50`, where neither a
    `config.json` of timm beside them nor their own metadata does.

    Raises ArtifactUnreachable, DigestMismatch or ModelFormatError.
    """
    path = _local(path)
    shown = uri or str(path)
    try:
        if tensorflow_files.is_saved_model_folder(path):
            if constructor:
                raise _says_itself(shown, "savedmodel")
            return _open_saved_model(path, framework, digest, shown)
        if path.is_dir() and (program := paddle_files.program_in(path, shown)):
            path, shown, uri = program, f"{shown}/{program.name}", uri and f"{uri}/{program.name}"
        if path.is_dir() and not (path / hf_files.CONFIG).is_file():
            raise ModelFormatError(f"{shown} is a directory: name the model file in it{_such_as(path)}")
        if path.is_dir():
            return _open_folder(path, framework, digest, uri or str(path), constructor)
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device has no end
            raise ArtifactUnreachable(f"{shown} is not a regular file: save the model to one, and name that")
        size = status.st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise ArtifactUnreachable(f"{shown} cannot be read: {error.strerror or error}") from None
    if hf_files.is_config(path, head):
        return _open_folder(path.parent, framework, digest, uri or str(path), constructor)
    verified = _verify(lambda: sha256_of(path), digest, shown) if digest else ""
    detected = detect(path, head)
    if detected not in FORMATS:
        raise ModelFormatError(f"{shown} {detected}")
    if detected == "safetensors":
        constructor = _constructor_of(path, constructor, shown)
    elif constructor:
        raise _says_itself(shown, detected)
    _check_framework(framework, detected, shown)
    return Artifact(path, detected, size, verified, uri or str(path), constructor)


def path_of_uri(uri: str) -> Path:
    """The path in a `file:` URI: `file:///a/b`, `file://localhost/a/b`, `file:/a/b`, `file:a/b`.

    Raises ArtifactUnreachable where it names another host, or what can be none.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise ArtifactUnreachable(f"{uri}: {error}; write file:///PATH for an absolute path") from error
    if parts.netloc not in ("", "localhost"):
        path = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
        raise ArtifactUnreachable(
            f"file://{path}: a file URI names no host; write file:///{path} for an absolute path or file:{path} for a "
            "relative one"
        )
    return Path(unquote(parts.path))


def _local(path: str | PathLike[str]) -> Path:
    """A path, or what a `file:` URI names. Raises ArtifactUnreachable for every other URI."""
    if str(path).startswith("file:"):
        return path_of_uri(str(path))
    if str(path).startswith("pvc:"):
        raise ArtifactUnreachable(
            f"{path} is a claim, which only pods of its cluster can read: give a local copy of the model, or let the "
            "operator in that cluster size the job"
        )
    if _URI.match(str(path)):
        raise ArtifactUnreachable(
            f"{path} is a URI, and only files on this machine are read here: give a local path "
            "(dippm size and the operator fetch URIs)"
        )
    return Path(path)


def _such_as(folder: Path) -> str:
    """Up to three of the files in a folder that may be models by their names, for a sentence."""
    found = sorted(file.name for file in folder.iterdir() if file.name.endswith(MODEL_SUFFIXES))
    return f" ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})" if found else ""


def _open_folder(folder: Path, framework: str, digest: str | None, shown: str, constructor: str) -> Artifact:
    """A Hugging Face folder: its `config.json` and the headers of its weight files are read."""
    architecture = hf_files.timm_architecture(hf_files.read_config(folder, shown))
    weights = hf_files.read_weight_files(folder, shown)
    detected = "safetensors" if architecture else "huggingface"
    if constructor and not architecture:
        raise _says_itself(shown, detected)
    _check_framework(framework, detected, shown)
    verified = _verify(lambda: hf_files.folder_digest(folder, weights), digest, shown) if digest else ""
    size = weights.size_bytes + (folder / hf_files.CONFIG).stat().st_size
    named = constructor or (f"timm:{architecture}" if architecture else "")
    return Artifact(folder, detected, size, verified, shown, named)


def _constructor_of(path: Path, asked: str, shown: str) -> str:
    """What the weights in a safetensors file are of: what is asked for, what timm saved beside them, what they say."""
    if asked:
        return asked
    if (path.parent / hf_files.CONFIG).is_file():
        architecture = hf_files.timm_architecture(hf_files.read_config(path.parent, shown))
        if not architecture:
            raise ModelFormatError(
                f"{shown} holds weights only: name the folder, which has the {hf_files.CONFIG} that says what model it "
                "is"
            )
        return f"timm:{architecture}"
    said = hf_files.read_headers((path,), shown).metadata.get("architecture", "")
    if not said:
        raise ModelFormatError(
            f"{shown} holds weights only (safetensors), no operators: say what they are of (--constructor "
            f"timm:NAME or torchvision:NAME, or the key architecture of the file's metadata), or {OPEN_DOORS}"
        )
    return said if ":" in said else f"timm:{said}"


def _says_itself(shown: str, detected: str) -> ModelFormatError:
    if detected == "pickle":
        return ModelFormatError(
            f"{shown} is {_SPOKEN[detected]}, which is not opened, and a constructor is for safetensors: save its "
            f"weights with `{SAVE_WEIGHTS}`"
        )
    return ModelFormatError(
        f"{shown} is {_SPOKEN[detected]}, which says itself what it is: a constructor is for weights alone "
        "(safetensors)"
    )


def _open_saved_model(folder: Path, framework: str, digest: str | None, shown: str) -> Artifact:
    """A SavedModel's folder, of which `saved_model.pb` alone is read."""
    graph = folder / tensorflow_files.SAVED_MODEL
    with graph.open("rb") as file:
        if not tensorflow_files.is_saved_model(file.read(HEAD_BYTES)):
            raise ModelFormatError(
                f"{shown} is no SavedModel: its {graph.name} is damaged or empty; is the download complete?"
            )
    _check_framework(framework, "savedmodel", shown)
    verified = _verify(lambda: sha256_of(graph), digest, shown) if digest else ""
    size = sum(file.stat().st_size for file in tensorflow_files.files_of(folder))
    return Artifact(path=folder, format="savedmodel", size_bytes=size, digest=verified, uri=shown)


def sha256_of(path: Path) -> str:
    """`sha256:...` of a file, read in pieces."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _check_framework(framework: str, detected: str, shown: str) -> None:
    allowed = FRAMEWORKS.get(framework)
    if allowed is None:
        raise ModelFormatError(f"framework {framework!r} is not known: use one of {', '.join(FRAMEWORKS)}")
    if detected not in allowed:
        raise ModelFormatError(f"{shown} is {_SPOKEN[detected]}, not {framework}: use --framework auto")


def _verify(actual: Callable[[], str], digest: str, shown: str) -> str:
    algorithm, colon, wanted = digest.rpartition(":")
    if (
        (colon and algorithm != "sha256")
        or len(wanted) != 64
        or not all(c in "0123456789abcdef" for c in wanted.lower())
    ):
        raise DigestMismatch(f"digest {digest!r} is not sha256: followed by 64 hexadecimal digits")
    found = actual()
    if found != f"sha256:{wanted.lower()}":
        raise DigestMismatch(f"{shown} has digest {found}, not sha256:{wanted.lower()}: was it replaced?")
    return found
