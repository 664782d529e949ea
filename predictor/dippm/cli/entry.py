"""Entry point: finds the command, hands it its arguments, and turns what users can put right into one sentence."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from dippm.cli.command import Command
from dippm.cli.registry import commands
from dippm.errors import DippmError
from dippm.version import VERSION

BAD_INPUT = 2
INTERRUPTED = 130
COLUMNS = 100

EPILOG = """\
examples:
  dippm predict resnet50.onnx --batch 32
  dippm predict vgg16.pt --batch 32 --input 3,224,224 --device A100 --json
  dippm profiles --device H200
  dippm size -f job.yaml | kubectl apply -f -

`dippm COMMAND --help` says what a command takes.
"""


class Parser(argparse.ArgumentParser):
    """Answers a mistake in one sentence instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2 after `prog: message (see prog --help)` on stderr."""
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and gives its exit code: 0, 2 for bad input, whatever the command says otherwise."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = commands()
    try:
        args, command = parse(arguments, known)
        code = command.run(args)
        sys.stdout.flush()
    except DippmError as error:
        print(f"dippm: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("dippm: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left (`dippm ... | head`): nothing is wrong, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        print(f"dippm: {error.filename} cannot be read or written ({error.strerror}): check the path", file=sys.stderr)
        return BAD_INPUT
    return code


def command_line() -> NoReturn:
    """The process `dippm`: `main`, and the end of the process as soon as all is said.

    PyTorch and TVM keep native threads, and an interpreter that shuts down around them may wait or crash.
    """
    from dippm.frontend.pool import PARENT

    code = main()
    PARENT.close()
    with suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def parse(arguments: Sequence[str], known: Mapping[str, Command]) -> tuple[argparse.Namespace, Command]:
    """Parses the command line. Only the command that is named declares its arguments, so only its module loads."""
    name = next((a for a in arguments if not a.startswith("-")), None)
    if name is not None and name in known:
        command = known[name]
        parser = Parser(prog=f"dippm {name}", description=_sentence(command.help), formatter_class=_Formatter)
        command.add_arguments(parser)
        parser.description = _wrapped(parser.description)
        position = list(arguments).index(name)
        return parser.parse_args([*arguments[:position], *arguments[position + 1 :]]), command
    top = Parser(prog="dippm", description="What a deep-learning model needs, without running it.", epilog=EPILOG)
    top.formatter_class = _Formatter
    top.add_argument("-V", "--version", action="version", version=f"dippm {VERSION}")
    if name is not None:
        top.error(f"no command {name!r}: there are {', '.join(known)}")
    listed = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    if any(a in ("-h", "--help") for a in arguments):
        for command in known.values():
            listed.add_parser(command.name, help=command.help)
    top.parse_args(arguments)
    raise AssertionError("argparse exits where no command is named")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Leaves examples as they are; descriptions are wrapped before."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=COLUMNS)


def _wrapped(description: str | None) -> str:
    return "\n\n".join(textwrap.fill(part, COLUMNS) for part in (description or "").split("\n\n"))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."
