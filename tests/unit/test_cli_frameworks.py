"""`dippm frameworks`: it says what the doors themselves go by."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dippm import runtimes
from dippm.artifact import FORMATS
from dippm.case import Runtime
from dippm.cli.entry import main
from dippm.frameworks import frameworks
from dippm.frontend import isolation
from dippm.frontend.converter import CONVERTERS, PADDLE

REPOSITORY = Path(__file__).parents[2]


def test_every_format_is_said_with_its_runtime(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frameworks", "--json"]) == 0
    said = {one["format"]: one for one in json.loads(capsys.readouterr().out)}
    assert set(said) == set(FORMATS) - {"pickle"}
    for name, one in said.items():
        resolved = runtimes.resolve(Runtime.AUTO, name)
        assert (one["runtime"], one["predicted_as"]) == (resolved.asked, resolved.predicted)
    assert main(["frameworks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["FORMAT", "WHAT", "IT", "IS", "READ", "RUNTIME", "HAS", "NEEDS"]
    assert {line.split()[0] for line in lines[1 : 1 + len(said)]} == set(said)


def test_how_readers_are_kept_off_the_network_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["frameworks"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == isolation.spoken(isolation.walls_here())
    assert "Native code could connect" in isolation.spoken(())
    assert "have no network: a seccomp filter of its own. " in isolation.spoken(("filter",))


def test_what_a_format_needs_is_an_extra_of_this_distribution() -> None:
    """With the packages that the extra really names; a TFLite file needs one of TensorFlow's, and not TensorFlow."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for one in frameworks():
        if one.format == "tflite":
            assert one.install == "pip install tflite"
            assert extras["tflite"] == [needed for needed in extras["tensorflow"] if needed.startswith("tflite>=")]
        elif one.install and not one.problem:
            extra = one.install.partition("[")[2].partition("]")[0]
            wanted = " ".join(extras[extra])
            named = [n for packages in one.packages for n in packages.split("|")[:1] if n != "torchvision"]
            assert all(name in wanted for name in named), (one.format, named)
        else:
            assert one.is_ready


def test_what_is_missing_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(PADDLE.setting, "/nowhere/python")
    paddle = next(one for one in frameworks() if one.format == "paddle")
    assert not paddle.is_ready
    assert set(paddle.packages) == set(CONVERTERS["paddle"].packages)
    assert main(["frameworks"]) == 0
    out = capsys.readouterr().out
    assert "pip install 'dippm[paddle]'" in out
    assert out.count("DIPPM_PADDLE_PYTHON names /nowhere/python, which cannot be run") == 1


def test_nothing_is_imported_to_say_it() -> None:
    code = (
        "import sys\n"
        "from dippm.cli.entry import main\n"
        "main(['frameworks'])\n"
        "print(sorted({'torch', 'tvm', 'onnx', 'transformers', 'timm', 'paddle', 'tensorflow'} & set(sys.modules)))\n"
    )
    path = {"PYTHONPATH": ":".join(p for p in sys.path if p), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def installed(folder: Path, name: str, version: str, code: str = "") -> None:
    """A package as pip leaves it: its code and its metadata."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    metadata = folder / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def dippm(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`dippm` where these packages come first."""
    path = {"PYTHONPATH": ":".join(p for p in (str(folder), *sys.path) if p), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "dippm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=path, check=False)


@pytest.mark.parametrize("torch", ["2.13.0+cpu", "2.13.0"])
def test_a_torchvision_of_another_torch_is_told_by_trying(tmp_path: Path, torch: str) -> None:
    """It is installed, and cannot be imported: as one with CUDA beside a torch without."""
    installed(tmp_path, "timm", "1.0.20", "import torchvision")
    installed(tmp_path, "torchvision", "0.28.0", "raise RuntimeError('operator torchvision::nms does not exist')")
    installed(tmp_path / "torch", "torch", torch)
    shutil.copytree(tmp_path / "torch" / f"torch-{torch}.dist-info", tmp_path / f"torch-{torch}.dist-info")
    shutil.rmtree(tmp_path / "torch")
    done = dippm(tmp_path, "frameworks", "--json")
    one = next(one for one in json.loads(done.stdout) if one["format"] == "safetensors")
    assert not one["ready"]
    index = " --index-url https://download.pytorch.org/whl/cpu" if torch.endswith("+cpu") else ""
    assert one["install"] == f"pip install --force-reinstall --no-deps torchvision{index}"
    assert one["problem"] == (
        f"timm 1.0.20 and torchvision 0.28.0 cannot be imported beside torch {torch} (RuntimeError: operator "
        f"torchvision::nms does not exist): {one['install']}"
    )
    assert done.stderr == ""


def test_packages_that_can_be_imported_are_there(tmp_path: Path) -> None:
    installed(tmp_path, "timm", "1.0.20")
    installed(tmp_path, "torchvision", "0.28.0")
    installed(tmp_path, "transformers", "4.57.1")
    said = {one["format"]: one for one in json.loads(dippm(tmp_path, "frameworks", "--json").stdout)}
    assert said["safetensors"]["ready"]
    assert said["huggingface"]["problem"].startswith(
        "transformers 4.57.1 is too old, 5 is needed: pip install --upgrade"
    )


def test_weights_beside_such_a_torchvision_name_the_command(tmp_path: Path) -> None:
    installed(tmp_path, "timm", "1.0.20", "import torchvision")
    installed(tmp_path, "torchvision", "0.28.0", "raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "w.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    done = dippm(tmp_path, "predict", str(tmp_path / "w.safetensors"), "--constructor", "timm:resnet18", "--batch", "1")
    assert done.returncode == 2
    assert (
        "(operator torchvision::nms does not exist): pip install --force-reinstall --no-deps torchvision" in done.stderr
    )
    assert len(done.stderr.splitlines()) == 1
