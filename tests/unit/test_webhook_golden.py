"""Reviews and the answers to them, as files: `tests/golden/webhook/*.yaml`, each with what it shows in its first line.

`stored` is the InferenceJob in the cache, `facts` what would have been looked up, `review` what the API server sends,
`response` what it is answered (the patch decoded). When an answer is meant to change,
`PYTHONPATH=predictor:operator python -m tests.unit.test_webhook_golden` writes the responses anew: read the difference.
"""

from __future__ import annotations

import asyncio
import copy
from pathlib import Path
from typing import Any

import jsonpatch
import pytest
import yaml
from tests.unit.webhook_stand_ins import answer_of

GOLDEN = sorted((Path(__file__).parents[1] / "golden" / "webhook").glob("*.yaml"))


def test_there_are_golden_files() -> None:
    assert {"pod-sized", "pod-unknown-denied", "job-unknown-device"} <= {path.stem for path in GOLDEN}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
async def test_review_is_answered_as_on_file(path: Path) -> None:
    case = yaml.safe_load(path.read_text())
    assert await answer_of(case["stored"], case["facts"], case["review"]) == case["response"]


@pytest.mark.parametrize("path", [p for p in GOLDEN if p.stem.startswith("pod-")], ids=lambda path: path.stem)
async def test_reinvocation_changes_nothing(path: Path) -> None:
    """`reinvocationPolicy: IfNeeded`: the API server may ask again about the pod that it patched."""
    case: dict[str, Any] = yaml.safe_load(path.read_text())
    patch = case["response"].get("patch", [])
    again = copy.deepcopy(case["review"])
    again["request"]["object"] = jsonpatch.apply_patch(case["review"]["request"]["object"], patch)
    answer = await answer_of(case["stored"], case["facts"], again)
    assert "patch" not in answer
    assert answer["allowed"] == case["response"]["allowed"]


def rewrite(path: Path) -> None:
    """Write a file's response anew, its first line kept."""
    text = path.read_text()
    case = yaml.safe_load(text)
    case["response"] = asyncio.run(answer_of(case["stored"], case["facts"], case["review"]))
    path.write_text(text.partition("\n")[0] + "\n" + yaml.safe_dump(case, sort_keys=False, width=118))


if __name__ == "__main__":
    for golden in GOLDEN:
        rewrite(golden)
