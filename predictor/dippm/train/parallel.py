"""The same function over many arguments, in some processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
_AHEAD = 2
"""Arguments handed out beyond those in work, a process: more would only fill the memory."""


def default_jobs() -> int:
    """Processes that this one may keep busy."""
    return len(os.sched_getaffinity(0))


def spread(function: Callable[[T], R], arguments: Iterable[T], jobs: int) -> Iterator[R]:
    """The results in the order of the arguments; with one job in this very process, without pickling anything."""
    if jobs <= 1:
        yield from map(function, arguments)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_one_thread) as pool:
        waiting: list[Future[R]] = []
        try:
            for argument in arguments:
                waiting.append(pool.submit(function, argument))
                if len(waiting) >= jobs * _AHEAD:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
