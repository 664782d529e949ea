"""The command line without a model: commands, plugins, the catalogue, and mistakes answered in one sentence."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
import yaml

from dippm.cli import main, registry
from dippm.cli.registry import LazyModule, Plugin, commands


def test_profiles_as_json_and_yaml_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "--device", "A100", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert main(["profiles", "--device", "A100", "--yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == body
    assert [d["device"] for d in body] == ["A100-SXM4-40GB"]
    assert body[0]["profiles"][0] == {
        "profile": "1g.5gb",
        "resource": "nvidia.com/mig-1g.5gb",
        "usable_mib": 4864,
        "compute_slices": 1,
        "memory_eighths": 1,
    }


def test_the_table_of_profiles_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert any("H200" in line and "16,384" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "COMMAND"),
        (["fly"], "no command 'fly': there are predict, profiles"),
        (["profiles", "--device", "B9000"], "unknown device 'B9000'"),
        (["profiles", "--colour"], "--colour"),
        (["predict"], "MODEL"),
        (["predict", "m.onnx"], "m.onnx cannot be read"),
        (["predict", "m.onnx", "--batch", "many"], "--batch"),
        (["predict", "m.onnx", "--batch", "0"], "--batch: must be a whole number from 1 on"),
        (["predict", "m.onnx", "--batch", "1", "--device", "A10"], "unknown device 'A10'"),
        (["predict", "m.onnx", "--batch", "1", "--allow", "1g.7gb"], "A100-SXM4-40GB has no MIG profile '1g.7gb'"),
        (["predict", "m.onnx", "--batch", "1", "--processes", "0"], "--processes"),
        (["predict", "m.onnx", "--batch", "1", "--headroom", "-3"], "--headroom"),
        (["predict", "m.onnx", "--batch", "1", "--risk", "100"], "--risk: must be a percentage"),
        (["predict", "m.onnx", "--batch", "1", "--max-latency", "nan"], "--max-latency: must be a number above 0"),
        (["predict", "m.onnx", "--batch", "1", "--precision", "int3"], "--precision"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(arguments)
    except SystemExit as exit_:
        code = exit_.code  # type: ignore[assignment]
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["profiles", "--help"]])
def test_help_shows_examples(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 0
    assert "examples:\n  dippm" in capsys.readouterr().out


HELPS = (["predict"], ["size"], ["profiles"], ["frameworks"], ["measure"], ["train"], ["evaluate"])


@pytest.mark.parametrize(
    "arguments", [[], *HELPS, ["graph"], ["graph", "list"], ["graph", "extract"], ["graph", "pack"]], ids=" ".join
)
def test_help_fits_on_a_hundred_columns_and_each_name_has_its_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*arguments, "--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 100
    if not arguments:
        assert all(f"\n    {name}  " in said for name in commands()), "and what it does stands on the same line"


class Hello:
    """A plugin's command."""

    name = "hello"
    help = "says it"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--to", default="you")

    def run(self, args: argparse.Namespace) -> int:
        print(f"hello {args.to}")
        return 3


HELLO = Hello()


def test_a_plugin_is_a_command_and_its_exit_code_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "a_plugin", sys.modules[__name__])
    entry = EntryPoint("hello", "a_plugin:HELLO", registry.PLUGIN_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    assert main(["hello", "--to", "mig"]) == 3
    assert capsys.readouterr().out == "hello mig\n"


def test_a_missing_package_is_named_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lazy = LazyModule("measure", "", "dippm_no_such_module", "train")
    monkeypatch.setattr(registry, "BUILT_IN", (lazy,))
    broken = EntryPoint("size", "dippm_no_such_plugin:SIZE", registry.PLUGIN_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [broken])
    assert main(["measure"]) == 2
    assert "dippm[train]" in capsys.readouterr().err
    assert "dippm[operator]" in Plugin(broken).help


def test_a_reader_who_leaves_early_is_no_error() -> None:
    code = f"'{sys.executable}' -m dippm profiles | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_listing_profiles_loads_neither_torch_nor_tvm_nor_numpy() -> None:
    code = (
        "import sys; from dippm.cli import main; main(['profiles']);"
        "print(sorted({'torch', 'tvm', 'numpy', 'onnx', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_process_ends_without_waiting_for_threads() -> None:
    code = (
        "import sys, threading, time; from dippm.cli import command_line;"
        "threading.Thread(target=time.sleep, args=(600,)).start();"
        "sys.argv = ['dippm', 'profiles', '--device', 'V1', '--json']; command_line()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("dippm: unknown device 'V1'")
    code = code.replace("'V1'", "'A100'")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert json.loads(done.stdout)


def undescribed(parser: argparse.ArgumentParser) -> list[str]:
    """Arguments without a word of help, those of its steps too."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [f"{name} {one}" for name, step in action.choices.items() for one in undescribed(step)]
        elif not action.help:
            found.append(" ".join(action.option_strings) or action.dest)
    return found


@pytest.mark.parametrize("name", ["evaluate", "frameworks", "graph", "measure", "predict", "profiles", "size", "train"])
def test_every_argument_is_described(name: str) -> None:
    parser = argparse.ArgumentParser()
    commands()[name].add_arguments(parser)
    assert undescribed(parser) == []


def test_the_cases_of_a_list_are_counted_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["graph", "list", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "--timed, --memory and --caps cases together, behind up to 20 anchors" in said
