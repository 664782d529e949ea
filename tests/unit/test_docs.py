"""What is generated is current, what is quoted is what the commands print, and links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = [*REPOSITORY.glob("*.md")] + [
    path for folder in ("docs", "datasets") for path in sorted((REPOSITORY / folder).rglob("*.md"))
]


def test_the_reference_is_current() -> None:
    command = [sys.executable, "docs/generate.py", "--check"]
    report = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert report.returncode == 0, report.stdout + report.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_each_record_is_listed() -> None:
    folder = REPOSITORY / "docs" / "adr"
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text())
    assert listed == sorted(path.name for path in folder.glob("[0-9]*.md"))


def reasons() -> set[str]:
    """Every reason that a condition or an admission answer can have, as the sources name them."""
    from dippm.errors import DippmError
    from dippm.network.bundle import NoWeightsError
    from dippm.policy import Reason

    def below(error: type[DippmError]) -> set[str]:
        own = [one for one in error.__subclasses__() if not one.__module__.startswith(("dippm.cli", "dippm.measure"))]
        return {error.reason}.union(*(below(one) for one in own))

    sources = {path: path.read_text() for path in (REPOSITORY / "operator" / "dippm_operator").rglob("*.py")}
    verdicts = re.findall(r"Verdict\(\s*[^,()]+,\s*\"(\w+)\"", "\n".join(sources.values()))
    (patch,) = [text for path, text in sources.items() if path.parts[-2:] == ("sizing", "patch.py")]
    patches = re.findall(r"(?:leave\(|return \()\s*\"(\w+)\"", patch)
    choice = {reason.value for reason in Reason if reason not in (Reason.FITS, Reason.PAPER_RULE)}
    quiet = {DippmError.reason, "ArtifactResolved", "Predicted"}  # a base class, and two that say that all is well
    return (below(DippmError) | {NoWeightsError.reason} | choice | set(verdicts) | set(patches)) - quiet


def test_the_troubleshooting_guide_knows_every_reason() -> None:
    text = (REPOSITORY / "docs" / "guide" / "troubleshooting.md").read_text()
    found = reasons()
    assert {"UnsafeModel", "NoSlicesAdvertised", "QuotaUncovered", "NoContainer"} <= found
    assert [reason for reason in sorted(found) if f"`{reason}`" not in text] == []


def test_readme_quotes_what_the_commands_print() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "$ dippm predict examples/models/resnet50.onnx" in readme
    assert "$ dippm size -f examples/resnet50.yaml" in readme
    assert readme.count("<!-- printed by: dippm evaluate") == readme.count("<!-- end -->") > 0
    command = [sys.executable, "docs/quotes.py", "--check"]
    report = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert report.returncode == 0, report.stdout + report.stderr


@pytest.mark.parametrize(
    ("quoted", "printed", "true"),
    [
        ("memory 1,790 MiB\n", "memory  1,788 MiB\n", True),
        ("memory 1,790 MiB\n", "memory 1,690 MiB\n", False),
        ("MIG profile 1g.5gb\n", "MIG profile 2g.10gb\n", False),
        ("all well\n\n0.31 s\n", "all well\n\n4.20 s\n", True),
        ("one line\n", "one line\nand another\n", False),
        ("nvidia.com/mig-1g.5gb: 1\n", "nvidia.com/mig-1g.10gb: 1\n", False),
    ],
)
def test_a_quote_is_true_while_words_are_the_same_and_numbers_close(quoted: str, printed: str, true: bool) -> None:
    from docs.quotes import same

    assert same(quoted, printed) is true


@pytest.mark.parametrize("component", ["operator", "webhook"])
def test_the_reference_lists_every_metric(component: str) -> None:
    if component == "operator":
        from dippm_operator.controller.metrics import JobsByReadiness, Metrics
        from dippm_operator.controller.state import ClusterState

        metrics = Metrics()
        metrics.registry.register(JobsByReadiness(ClusterState()))
        registry = metrics.registry
    else:
        from dippm_operator.webhook.metrics import Metrics as WebhookMetrics

        registry = WebhookMetrics().registry
    text = (REPOSITORY / "docs" / "reference" / f"{component}.md").read_text()
    families = [family for family in registry.collect() if family.name.startswith("dippm_")]
    assert families
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in text, name
