"""Formats that their own framework turns into ONNX first, in a process of its own.

Neither TensorFlow nor PaddlePaddle is ever imported beside PyTorch and TVM: each brings its own protobuf, LLVM and
thread pools. The converter runs in a fresh interpreter under limits, cut off from the network, and writes an ONNX model
that then goes through the ONNX door. That interpreter is this one, where the extra is installed, or the one that a
setting names, for frameworks whose pins do not suit ours.

1. `as_onnx` starts `interpreter -I -c BOOTSTRAP`, which sees this package's folder as `dippm` and nothing else of ours.
2. `convert_child` limits itself, imports the converter's module and calls its `convert(path, shown)`.
3. The answer is one line of JSON, then the ONNX bytes; they go to a temporary file, for as long as it is read.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import dippm
from dippm import errors
from dippm.artifact import Artifact
from dippm.errors import ModelFormatError, ParseLimitExceeded
from dippm.frontend.limits import Limits, how_it_ended
from dippm.kept import Kept
from dippm.version import VERSION

LIMITS = Limits(
    wall_seconds=300.0,
    cpu_seconds=240,
    address_space_bytes=24 << 30,
    file_size_bytes=2 << 30,
    open_files=1024,
    processes=512,
    result_bytes=2 << 30,
)
"""Frameworks reserve more address space than they use, start threads by the dozen and write files between steps."""
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL")
_QUIET = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    **dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_BOOTSTRAP = (
    "import sys, types; package = types.ModuleType('dippm'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['dippm'] = package; from dippm.frontend.convert_child import main; main()"
)
_SAID_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Converter:
    """How one format becomes ONNX."""

    name: str
    """Of the framework, as it writes itself."""
    module: str
    """Run in the child: `convert(path: Path, shown: str) -> Converted`; importing it imports the framework."""
    packages: tuple[str, ...]
    """Distributions that the interpreter must have."""
    extra: str
    """The extra of this distribution that installs them."""
    setting: str
    """Environment variable that names another interpreter which has them."""
    limits: Limits = LIMITS

    @property
    def install(self) -> str:
        """The command that installs what is missing."""
        return f"pip install 'dippm[{self.extra}]'"

    def interpreter(self) -> str:
        """The Python that converts: the one that the setting names, else this one."""
        return os.environ.get(self.setting) or sys.executable


PADDLE = Converter(
    name="PaddlePaddle",
    module="dippm.frontend.paddle_convert",
    packages=("paddlepaddle", "paddle2onnx"),
    extra="paddle",
    setting="DIPPM_PADDLE_PYTHON",
)
CONVERTERS: Mapping[str, Converter] = {"paddle": PADDLE}
"""By `Artifact.format`. Every other format has a door of its own."""


@contextlib.contextmanager
def as_onnx(artifact: Artifact, kept: tuple[Kept, str] | None = None) -> Iterator[tuple[Artifact, tuple[str, ...]]]:
    """The same artifact with its path at an ONNX file, where its format is one that is converted, and what to know.

    The format stays what it was; the file is gone when the block ends. `kept` is where conversions are kept, and the
    name of the artifact's content there. Raises ModelFormatError (the converter is not installed, or refuses the
    model), UnsupportedOperator, UnsafeModel or ParseLimitExceeded.
    """
    converter = CONVERTERS.get(artifact.format)
    if converter is None:
        yield artifact, ()
        return
    with tempfile.TemporaryDirectory(prefix="dippm-") as folder:
        path = Path(folder) / "model.onnx"
        work = Path(folder) / "work"
        work.mkdir()
        notes = _recalled(converter, artifact, path, kept)
        if notes is None:
            notes = _convert(converter, artifact, path, work)
            _remember(converter, artifact, path, notes, kept)
        yield replace(artifact, path=path), notes


def _recalled(
    converter: Converter, artifact: Artifact, to: Path, kept: tuple[Kept, str] | None
) -> tuple[str, ...] | None:
    """Write what was converted earlier, and give its notes; None where nothing was kept."""
    value = kept[0].get(_key(converter, artifact, kept[1])) if kept is not None else None
    if value is None:
        return None
    head, _, onnx = value.partition(b"\n")
    to.write_bytes(onnx)
    return tuple(json.loads(head))


def _remember(
    converter: Converter, artifact: Artifact, path: Path, notes: tuple[str, ...], kept: tuple[Kept, str] | None
) -> None:
    if kept is not None:
        kept[0].put(_key(converter, artifact, kept[1]), json.dumps(notes).encode() + b"\n" + path.read_bytes())


def _key(converter: Converter, artifact: Artifact, content: str) -> str:
    return json.dumps(["onnx", VERSION, converter.name, converter.interpreter(), content, artifact.uri])


def _convert(converter: Converter, artifact: Artifact, to: Path, work: Path) -> tuple[str, ...]:
    """Write the ONNX model to a file; what the converter has to say of it."""
    shown = artifact.uri or str(artifact.path)
    request = {
        "module": converter.module,
        "packages": converter.packages,
        "path": str(artifact.path.absolute()),
        "shown": shown,
        "limits": asdict(converter.limits),
    }
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as said:
        status = _run(converter, json.dumps(request).encode(), answer, said, work, shown)
        answer.seek(0)
        head = _head(answer)
        if status == 0 and "notes" in head:
            with to.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            return tuple(head["notes"])
        if missing := head.get("missing"):
            where = "" if converter.interpreter() == sys.executable else f" in {converter.interpreter()}"
            raise ModelFormatError(
                f"{shown} is {artifact.spoken}, which needs {' and '.join(missing)}{where}: {converter.install}"
            )
        if "error" in head:
            raise getattr(errors, head["error"], ModelFormatError)(head["message"])
        sentence = how_it_ended(status, shown, converter.limits)
        raise ParseLimitExceeded(sentence + _last_words(said))


def _run(converter: Converter, request: bytes, answer: IO[bytes], said: IO[bytes], work: Path, shown: str) -> int:
    """Exit status of the child that had this request. Raises ModelFormatError or ParseLimitExceeded."""
    environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
    try:
        with subprocess.Popen(
            [converter.interpreter(), "-I", "-c", _BOOTSTRAP, str(Path(dippm.__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=said,
            cwd=work,
            env={**environment, **_QUIET, "TMPDIR": str(work)},
            start_new_session=True,
        ) as process:
            try:
                process.communicate(request, timeout=converter.limits.wall_seconds)
            except subprocess.TimeoutExpired:
                raise ParseLimitExceeded(
                    f"converting {shown} took longer than {converter.limits.wall_seconds:g} s (wall clock) and was "
                    "stopped"
                ) from None
            finally:
                with contextlib.suppress(ProcessLookupError):  # it ended, as it should
                    os.killpg(process.pid, signal.SIGKILL)
            return process.returncode
    except OSError as error:
        raise ModelFormatError(
            f"{converter.setting} names {converter.interpreter()}, which cannot be run ({error.strerror}): name a "
            f"Python that has {' and '.join(converter.packages)}"
        ) from None


def _head(answer: IO[bytes]) -> dict[str, Any]:
    try:
        head = json.loads(answer.readline(1 << 20))
    except ValueError:
        return {}  # it died while it wrote, or before
    return head if isinstance(head, dict) else {}


def _last_words(said: IO[bytes]) -> str:
    """The last line that a framework wrote before it gave up, which names the cause as a rule."""
    said.seek(0, os.SEEK_END)
    said.seek(max(0, said.tell() - _SAID_BYTES))
    lines = [line.strip() for line in said.read().decode(errors="replace").splitlines() if line.strip()]
    return f" (its last words: {lines[-1][:200]})" if lines else ""
