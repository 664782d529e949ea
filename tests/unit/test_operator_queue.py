"""The work queue, and conditions and events as values."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dippm_operator.controller import queue as queue_module
from dippm_operator.controller.conditions import ready, timestamp, verdict_of, with_verdicts
from dippm_operator.controller.events import changes
from dippm_operator.controller.queue import WorkQueue
from dippm_operator.resource import Condition, ConditionType
from dippm_operator.sizing.decision import Verdict

NOW = datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)


async def taken(queue: WorkQueue[str]) -> str:
    return await asyncio.wait_for(queue.get(), 30)


async def test_key_that_is_added_twice_is_worked_on_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")
    queue.add("b")
    assert len(queue) == 2
    assert [await taken(queue), await taken(queue)] == ["a", "b"]
    assert len(queue) == 0


async def test_key_that_changes_while_it_is_worked_on_comes_again_but_not_at_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await taken(queue) == "a"
    queue.add("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.05)
    queue.done("a")
    assert await taken(queue) == "a"


async def test_later_is_brought_forward_but_never_put_off() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.02)
    queue.add_after("a", 60)
    assert await taken(queue) == "a"
    queue.done("a")
    queue.add_after("a", 60)
    queue.add("a")
    assert await taken(queue) == "a"
    queue.close()


async def test_retries_come_later_each_time_until_one_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: WorkQueue[str] = WorkQueue()
    monkeypatch.setattr(queue_module, "LAST_RETRY_SECONDS", 5.0)
    assert [queue.retry("a") for _ in range(5)] == [1, 2, 4, 5, 5]
    queue.forget("a")
    assert queue.retry("a") == 1
    queue.close()


def test_timestamp_is_rfc3339_in_whole_seconds() -> None:
    assert timestamp(NOW) == "2026-01-02T03:04:05Z"


verdicts = st.builds(
    Verdict, st.sampled_from([True, False, None]), st.sampled_from(["One", "Two"]), st.sampled_from(["", "a sentence."])
)
some = st.dictionaries(st.sampled_from(list(ConditionType)), verdicts)


@given(some, some)
def test_transition_time_moves_exactly_with_the_status(
    first: dict[ConditionType, Verdict], second: dict[ConditionType, Verdict]
) -> None:
    before = with_verdicts((), first, generation=1, now=NOW)
    after = with_verdicts(before, second, generation=2, now=NOW + timedelta(hours=1))
    old = {c.type: c for c in before}
    for condition in after:
        previous = old.get(condition.type)
        unchanged = previous is not None and previous.status == condition.status
        assert (condition.last_transition_time == timestamp(NOW)) == unchanged
        if condition.type in second:
            assert verdict_of(condition) == second[ConditionType(condition.type)]
            assert condition.observed_generation == 2
    assert {c.type for c in after} == {str(t) for t in {*first, *second}}
    assert with_verdicts(after, second, generation=2, now=NOW + timedelta(hours=2)) == after


def test_condition_that_no_longer_applies_goes_and_foreign_ones_stay() -> None:
    foreign = Condition(type="acme.dev/Audited", status="True", last_transition_time=timestamp(NOW), reason="Ok")
    stale = with_verdicts((foreign,), {ConditionType.STALE: Verdict(True, "JobOutdated", "")}, generation=1, now=NOW)
    assert {c.type for c in stale} == {"Stale", "acme.dev/Audited"}
    assert with_verdicts(stale, {ConditionType.STALE: None}, generation=1, now=NOW) == (foreign,)


@given(verdicts, verdicts, verdicts, verdicts)
def test_ready_follows_the_workload_and_is_explained_by_the_first_failure(
    resolved: Verdict, predicted: Verdict, placeable: Verdict, workload: Verdict
) -> None:
    result = ready(resolved, predicted, placeable, workload)
    assert (result.status is True) == (workload.status is True)
    failed = [v for v in (resolved, predicted, placeable) if v.status is False]
    if workload.status is not True and failed:
        assert result is failed[0]


@given(some, some)
def test_news_only_of_what_changed(first: dict[ConditionType, Verdict], second: dict[ConditionType, Verdict]) -> None:
    before = with_verdicts((), first, generation=1, now=NOW)
    after = with_verdicts(before, second, generation=1, now=NOW)
    assert changes(after, after) == []
    old = {c.type: (c.status, c.reason) for c in before}
    new = {
        (c.reason, c.message)
        for c in after
        if c.type != "Ready" and c.status != "Unknown" and old.get(c.type) != (c.status, c.reason)
        if c.type not in ("Stale", "OutOfMemory") or c.status != "False"
    }
    assert {(news.reason, news.message) for news in changes(before, after)} == new
