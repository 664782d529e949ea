"""Formats that their own framework turns into ONNX first, in a process of its own.

Neither TensorFlow nor PaddlePaddle is ever imported beside PyTorch and TVM: each brings its own protobuf, LLVM and
thread pools. The converter runs in a fresh interpreter under limits, cut off from the network (`isolation`), and writes
an ONNX model that then goes through the ONNX door. That interpreter is this one, where the extra is installed, or the
one that a setting names, for frameworks whose pins do not suit ours.

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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import dippm
from dippm import errors
from dippm.artifact import Artifact
from dippm.errors import ModelFormatError, ParseLimitExceeded
from dippm.frontend.convert_child import versions
from dippm.frontend.limits import Limits, how_it_ended
from dippm.kept import Kept
from dippm.version import VERSION

LIMITS = Limits(
    wall_seconds=300.0,
    cpu_seconds=240,
    address_space_bytes=24 << 30,
    file_size_bytes=512 << 20,
    open_files=1024,
    processes=512,
    result_bytes=256 << 20,
)
"""Frameworks reserve more address space than they use, start threads by the dozen and write files between steps. An
answer has no weights but those of loops, and lies twice in the temporary folder, of which a pod has 1 GiB."""
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL")
_QUIET = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    **dict.fromkeys(("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"),
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "CUDA_VISIBLE_DEVICES": "",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_PACKAGE = str(Path(dippm.__file__).parent)
_AS_DIPPM = (
    "import sys, types; package = types.ModuleType('dippm'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['dippm'] = package; from dippm.frontend import convert_child; "
)
_BOOTSTRAP = _AS_DIPPM + "convert_child.main()"
_VERSIONS = _AS_DIPPM + "import json; print(json.dumps(convert_child.versions(sys.argv[2:])))"
_SAID_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Converter:
    """How one format becomes ONNX."""

    name: str
    """Of the framework, as it writes itself."""
    module: str
    """Run in the child: `convert(path: Path, shown: str) -> Converted`; importing it imports the framework."""
    packages: tuple[str, ...]
    """Distributions that the interpreter must have; `a|b` where either will do."""
    extra: str
    """The extra of this distribution that installs them."""
    setting: str
    """Environment variable that names another interpreter which has them."""
    refusals: str = ""
    """Run in the child before the framework is looked for: `refuse(path, shown)` raises for what must not be loaded."""
    limits: Limits = LIMITS

    @property
    def needs(self) -> str:
        """The packages, in words."""
        return _in_words(self.packages)

    @property
    def install(self) -> str:
        """The command that installs what is missing."""
        return f"pip install 'dippm[{self.extra}]'"

    def interpreter(self) -> str:
        """The Python that converts: the one that the setting names, else this one."""
        return os.environ.get(self.setting) or sys.executable

    def installed(self) -> Mapping[str, str | None]:
        """Version of each of its packages in that interpreter, None where it is missing; nothing is imported.

        Raises ModelFormatError where the interpreter cannot be run.
        """
        if self.interpreter() == sys.executable:
            return _by_first_name(versions(self.packages))
        try:
            asked = subprocess.run(
                [self.interpreter(), "-I", "-c", _VERSIONS, _PACKAGE, *self.packages],
                capture_output=True, check=True, timeout=60, env=_environment(),
            )  # fmt: skip
        except OSError as error:
            raise self.not_run(error.strerror) from None
        except subprocess.SubprocessError:
            raise self.not_run("it does not answer") from None
        return _by_first_name(json.loads(asked.stdout))

    def not_run(self, reason: str | None) -> ModelFormatError:
        """The interpreter that the setting names cannot be run."""
        return ModelFormatError(
            f"{self.setting} names {self.interpreter()}, which cannot be run ({reason}): name a Python that has "
            f"{self.needs}"
        )


PADDLE = Converter(
    name="PaddlePaddle",
    module="dippm.frontend.paddle_convert",
    packages=("paddlepaddle", "paddle2onnx"),
    extra="paddle",
    setting="DIPPM_PADDLE_PYTHON",
)
TENSORFLOW = Converter(
    name="TensorFlow",
    module="dippm.frontend.tensorflow_convert",
    packages=("tensorflow|tensorflow-cpu", "tf2onnx"),
    extra="tensorflow",
    setting="DIPPM_TENSORFLOW_PYTHON",
    refusals="dippm.frontend.tensorflow_safety",
    # tf2onnx took minutes for NASNet's 356 convolutions on a busy machine. With the parsing of its answer it stays
    # below what the operator waits for a prediction, so that the limit that is told is this one.
    limits=replace(LIMITS, wall_seconds=420.0, cpu_seconds=360),
)
CONVERTERS: Mapping[str, Converter] = {"paddle": PADDLE, "savedmodel": TENSORFLOW, "keras": TENSORFLOW}
"""By `Artifact.format`. Every other format has a door of its own."""


def _by_first_name(versions: Mapping[str, str | None]) -> dict[str, str | None]:
    return {names.partition("|")[0]: version for names, version in versions.items()}


def _in_words(packages: Iterable[str]) -> str:
    return " and ".join(names.partition("|")[0] for names in packages)


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
        yield replace(artifact, path=path, uri=artifact.uri or str(artifact.path)), notes


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
        "refusals": converter.refusals,
        "packages": converter.packages,
        "path": str(artifact.path.absolute()),
        "shown": shown,
        "limits": asdict(converter.limits),
    }
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as said:
        status = _run(converter, json.dumps(request).encode(), answer, said, work, shown)
        most = converter.limits.result_bytes
        if os.fstat(answer.fileno()).st_size > most:
            raise ParseLimitExceeded(f"converting {shown} gave an ONNX model of more than {most >> 20} MiB")
        answer.seek(0)
        head = _head(answer)
        if status == 0 and "notes" in head:
            with to.open("wb") as file:
                shutil.copyfileobj(answer, file, 1 << 20)
            return tuple(head["notes"])
        if missing := head.get("missing"):
            where = "" if converter.interpreter() == sys.executable else f" in {converter.interpreter()}"
            raise ModelFormatError(
                f"{shown} is {artifact.spoken}, which needs {_in_words(missing)}{where}: {converter.install}"
            )
        if "error" in head:
            raise getattr(errors, head["error"], ModelFormatError)(head["message"])
        sentence = how_it_ended(status, shown, converter.limits)
        raise ParseLimitExceeded(sentence + _last_words(said))


def _run(converter: Converter, request: bytes, answer: IO[bytes], said: IO[bytes], work: Path, shown: str) -> int:
    """Exit status of the child that had this request. Raises ModelFormatError or ParseLimitExceeded."""
    try:
        with subprocess.Popen(
            [converter.interpreter(), "-I", "-c", _BOOTSTRAP, _PACKAGE],
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=said,
            cwd=work,
            env={**_environment(), **_QUIET, "TMPDIR": str(work)},
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
        raise converter.not_run(error.strerror) from None


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}


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
