"""What a fresh machine gets: the standard library's `operator`, a wheel with its data, pins, two commands."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).parents[2]


def project() -> dict[str, Any]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = (REPOSITORY / "constraints.txt").read_text().split()
    return {str(canonicalize_name(line.split("==")[0])): line.split("==")[1] for line in lines}


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True)
    return [name for name in listing.stdout.split("\0") if name]


def test_operator_is_the_standard_librarys_in_the_repository() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import operator; print(operator.__file__, operator.itemgetter(0)('a'))"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    path, item = found.stdout.split()
    assert Path(path).is_relative_to(Path(operator_of_standard_library()).parent)
    assert item == "a"


def operator_of_standard_library() -> str:
    found = subprocess.run(
        [sys.executable, "-I", "-c", "import operator; print(operator.__file__)"],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.strip()


@pytest.mark.parametrize("folder", ["operator", "predictor"])
def test_the_source_folders_are_no_packages_themselves(folder: str) -> None:
    assert not (REPOSITORY / folder / "__init__.py").exists()


def test_dippm_is_light_until_it_is_used() -> None:
    code = "import sys, dippm; print([m for m in ('torch', 'tvm', 'numpy', 'pydantic', 'kopf') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the tracked files by the build backend alone: no network, no isolation."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in tracked_files():
        if name.split("/")[0] in ("pyproject.toml", "README.md", "LICENSE", "predictor", "operator"):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((REPOSITORY / name).read_bytes())
    build = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    (path,) = folder.glob("dippm-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_has_every_tracked_file_of_both_packages(wheel: zipfile.ZipFile) -> None:
    inside = set(wheel.namelist())
    wanted = {
        name.split("/", 1)[1] for name in tracked_files() if name.startswith(("predictor/dippm/", "operator/dippm_"))
    }
    assert wanted - inside == set()


def test_the_wheel_brings_nothing_but_the_two_packages(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info" not in name} == {"dippm", "dippm_operator"}


def test_one_version_everywhere() -> None:
    from dippm.version import VERSION

    chart = yaml.safe_load((REPOSITORY / "charts/dippm/Chart.yaml").read_text())
    assert project()["project"]["version"] == VERSION == chart["appVersion"]


def test_the_wheel_carries_weights_and_catalogue(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith(".safetensors") for name in names)
    assert "dippm/catalogue/mig_profiles.yaml" in names


def test_each_command_resolves_to_a_callable() -> None:
    for target in project()["project"]["scripts"].values():
        module, name = target.split(":")
        assert callable(getattr(importlib.import_module(module), name)), target


OPERATOR_PACKAGES = ("kopf", "kubernetes", "prometheus_client", "cryptography", "botocore", "google")
WITHOUT_OPERATOR = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OPERATOR_PACKAGES}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name.partition(".")[0])

sys.meta_path.insert(0, Missing())
"""
"""As after `pip install dippm`, without the extra."""


@pytest.mark.parametrize("command", ["dippm-operator", "dippm-webhook"])
def test_without_the_extra_its_commands_say_so_and_help_works(command: str) -> None:
    module, name = project()["project"]["scripts"][command].split(":")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = f"{WITHOUT_OPERATOR}sys.argv = {[command, *arguments]}\nfrom {module} import {name}\nsys.exit({name}())"
        path = {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "PATH": "/usr/bin:/bin"}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=path, check=False)

    told = run("--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"usage: {command} ")
    done = run()
    assert done.returncode == 2
    said = rf"{command} needs the package \w+, which is not installed: pip install 'dippm\[operator\]'\n"
    assert re.fullmatch(said, done.stderr)


def test_each_entry_point_resolves() -> None:
    for target in project()["project"]["entry-points"]["dippm.commands"].values():
        module, name = target.split(":")
        assert hasattr(importlib.import_module(module), name), target


@pytest.mark.parametrize("group", ["", "operator", "dev"])
def test_constraints_pin_what_is_required(group: str) -> None:
    """`train` is left out: it is for a GPU machine whose torch and drivers decide the versions.

    `docs` too: pictures are drawn by hand.
    """
    extras = project()["project"]["optional-dependencies"]
    wanted = extras[group] if group else project()["project"]["dependencies"]
    for line in wanted:
        requirement = Requirement(line)
        if requirement.name == "dippm":
            continue
        pinned = pins().get(str(canonicalize_name(requirement.name)))
        assert pinned is not None, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pinned), f"{line} does not allow the pinned {pinned}"


def test_constraints_pin_what_the_requirements_require_in_turn() -> None:
    """As installed here: every distribution that the operator and dev extras lead to."""
    project_ = project()["project"]
    todo = [
        Requirement(line)
        for lines in (project_["dependencies"], *map(project_["optional-dependencies"].get, ("operator", "dev")))
        for line in lines
    ]
    seen: set[str] = set()
    while todo:
        requirement = todo.pop()
        name = str(canonicalize_name(requirement.name))
        extras = requirement.extras or {""}
        if name in seen or name == "dippm" or not _applies(requirement, {""}):
            continue
        seen.add(name)
        lines = importlib.metadata.distribution(name).requires or []
        todo += [needed for needed in map(Requirement, lines) if _applies(needed, extras)]
    assert sorted(seen - set(pins())) == []


def _applies(requirement: Requirement, extras: set[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def test_every_pin_is_exact() -> None:
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][\w.]*", line), line


def test_torch_is_the_same_in_pyproject_and_constraints() -> None:
    (required,) = [line for line in project()["project"]["dependencies"] if line.startswith("torch==")]
    assert required == f"torch=={pins()['torch']}"


def test_what_the_image_copies_exists_and_is_let_through_by_dockerignore() -> None:
    text = (REPOSITORY / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().split() if line.startswith("!")}
    assert sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert source in allowed, f"{source} is not let through by .dockerignore"


def test_the_image_runs_both_commands_of_the_chart() -> None:
    """The chart's Deployments name the console scripts; pip puts them into the image's PATH."""
    scripts = set(project()["project"]["scripts"])
    for name in ("operator", "webhook"):
        text = (REPOSITORY / "charts/dippm/templates" / f"{name}-deployment.yaml").read_text()
        (command,) = re.findall(r"command: \[([\w-]+)\]", text)
        assert command in scripts


def test_all_that_is_committed_stays_under_40_mib() -> None:
    total = sum((REPOSITORY / name).stat().st_size for name in tracked_files() if (REPOSITORY / name).exists())
    assert total < 40 * 2**20


def test_the_top_level_holds_what_the_layout_says() -> None:
    """A note or a result left behind would be committed by the next `git add`."""
    folders = {".ci", "bench", "charts", "crds", "datasets", "docs", "examples", "operator", "predictor", "tests"}
    files = {
        *(".dockerignore", ".gitignore", ".importlinter", "CHANGELOG.md", "CONTRIBUTING.md", "Dockerfile", "LICENSE"),
        *("Makefile", "README.md", "constraints.txt", "pyproject.toml"),
    }
    assert {name.split("/")[0] for name in tracked_files()} - folders - files == set()
