"""`dippm frameworks`: it says what the doors themselves go by."""

from __future__ import annotations

import json
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
    """With the packages that the extra really names."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for one in frameworks():
        if one.install:
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
