"""Conditions as metav1.Condition wants them: lastTransitionTime moves only with the status. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from dippm_operator.resource import Condition, ConditionType
from dippm_operator.sizing.decision import Verdict

MESSAGE_LIMIT = 1024
"""A condition may hold 32 KiB; an Event 1 KiB, and both say the same."""

WAITING = Verdict(None, "Waiting", "")
"""Nothing has been tried yet."""


def timestamp(moment: datetime) -> str:
    """A metav1.Time: RFC 3339, whole seconds, UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def with_verdicts(
    previous: Sequence[Condition],
    verdicts: Mapping[ConditionType, Verdict | None],
    *,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions after these verdicts; a type whose verdict is None is taken away, others stay."""
    old = {condition.type: condition for condition in previous}
    new = dict(old)
    for type_, verdict in verdicts.items():
        if verdict is None:
            new.pop(type_, None)
            continue
        status = {True: "True", False: "False", None: "Unknown"}[verdict.status]
        before = old.get(type_)
        since = before.last_transition_time if before is not None and before.status == status else timestamp(now)
        new[type_] = Condition(
            type=type_.value,
            status=status,
            observed_generation=generation,
            last_transition_time=since,
            reason=verdict.reason,
            message=verdict.message[:MESSAGE_LIMIT],
        )
    order = {type_.value: index for index, type_ in enumerate(ConditionType)}
    return tuple(sorted(new.values(), key=lambda c: (order.get(c.type, len(order)), c.type)))


def verdict_of(condition: Condition | None) -> Verdict:
    """The verdict that a condition was made from; `WAITING` without one."""
    if condition is None:
        return WAITING
    status = {"True": True, "False": False}.get(condition.status)
    return Verdict(status, condition.reason, condition.message)


def ready(resolved: Verdict, predicted: Verdict, placeable: Verdict, workload: Verdict) -> Verdict:
    """Ready: the workload carries its size.

    A workload that does is ready whatever became of a later prediction: the last good one stays in force. One that
    does not is explained by the first stage that failed.
    """
    if workload.status is True:
        return workload
    for stage in (resolved, predicted, placeable):
        if stage.status is False:
            return stage
    return workload
