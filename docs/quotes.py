"""What README quotes of the commands' output.

Each block that follows `<!-- quoted -->` is a console session; what stands between `<!-- printed by: COMMAND -->` and
`<!-- end -->` is what that command prints, as Markdown.

    python docs/quotes.py            # run the commands again and write what they print
    python docs/quotes.py --check    # exit 1 where they print something else

A session is `$ command` lines with their output below. Commands run in the repository, with this interpreter's scripts
first on the PATH. Text must be the same; numbers may differ by 2 % (a prediction's last digits depend on the machine),
and a line that is only a time (`0.31 s`) may differ as it likes.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
PAGES = ("README.md", "docs/accuracy.md")
BLOCK = re.compile(r"(<!-- quoted -->\n```[a-z]*\n)(.*?)(?=```)", re.DOTALL)
PRINTED = re.compile(r"(<!-- printed by: (.*?) -->\n\n)(.*?\n)(?=<!-- end -->)", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?![\w]|\.\d)")
ONLY_A_TIME = re.compile(r"[\d.,]+ m?s")
TOLERANCE = 0.02


@dataclass(frozen=True)
class Quote:
    """One command and what it is said to print."""

    command: str
    output: str


def quotes(block: str) -> list[Quote]:
    """The commands of a block, in order."""
    parts = re.split(r"^\$ (.*)\n", block, flags=re.MULTILINE)
    return [Quote(command, output) for command, output in zip(parts[1::2], parts[2::2], strict=True)]


def run(command: str) -> str:
    """What a command prints on both streams, as a terminal of 120 columns would show it."""
    # Beside the interpreter as it was called: `dippm` may not be installed under another name.
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "120",
        "NO_COLOR": "1",
    }
    answer = subprocess.run(
        ["bash", "-c", command],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    if answer.returncode:
        raise RuntimeError(f"`{command}` exited with {answer.returncode}: {answer.stdout}")
    return "\n".join(line.rstrip() for line in answer.stdout.splitlines()) + "\n"


def same(quoted: str, printed: str) -> bool:
    """Whether a quote is still true: the same words, numbers within the tolerance, times aside."""
    left, right = quoted.strip().splitlines(), printed.strip().splitlines()
    return len(left) == len(right) and all(map(_same_line, left, right))


def _same_line(quoted: str, printed: str) -> bool:
    if ONLY_A_TIME.fullmatch(quoted.strip()) and ONLY_A_TIME.fullmatch(printed.strip()):
        return True
    words = [" ".join(NUMBER.sub("#", line).split()) for line in (quoted, printed)]
    numbers = [[float(n.replace(",", "")) for n in NUMBER.findall(line)] for line in (quoted, printed)]
    return words[0] == words[1] and all(
        abs(a - b) <= TOLERANCE * max(abs(a), abs(b)) + 0.011 for a, b in zip(*numbers, strict=True)
    )


def written_anew(page: str, *, exact: bool = False) -> str:
    """The page with every quoted command run again; what is still true stays, `exact` tables only to the digit."""

    def block(match: re.Match[str]) -> str:
        parts = []
        for quote in quotes(match[2]):
            printed = run(quote.command)
            kept = quote.output.strip("\n") if same(quote.output, printed) else printed.strip("\n")
            parts.append(f"$ {quote.command}\n{kept}\n")
        return match[1] + "\n".join(parts)

    def printed(match: re.Match[str]) -> str:
        text = run(match[2])
        return match[1] + (match[3] if same(match[3], text) and not exact else text)

    return PRINTED.sub(printed, BLOCK.sub(block, page))


def main() -> int:
    """Write the pages, or with --check say which would change."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page would change")
    check = parser.parse_args().check
    stale = []
    for name in PAGES:
        path = REPOSITORY / name
        text = path.read_text()
        anew = written_anew(text, exact=not check)
        if anew != text:
            stale.append(name)
            if not check:
                path.write_text(anew)
    for name in stale:
        print(f"{name} {'quotes what is no longer printed: run make generate' if check else 'written'}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
