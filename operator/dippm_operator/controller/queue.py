"""A work queue by key, as client-go has it: a key is worked on once at a time, and once more if it changed meanwhile.

(https://pkg.go.dev/k8s.io/client-go/util/workqueue) Handlers only add keys; what is to be done is read from the state
of the world when the key's turn comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0


class WorkQueue(Generic[K]):
    """Keys that want to be looked at. For one event loop."""

    def __init__(self) -> None:
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._dirty: set[K] = set()
        self._busy: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}

    def __len__(self) -> int:
        """Keys that wait for a worker."""
        return len(self._dirty)

    def add(self, key: K) -> None:
        """Look at the key soon."""
        if (timer := self._timers.pop(key, None)) is not None:
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._busy:
            self._ready.put_nowait(key)

    def add_after(self, key: K, seconds: float) -> None:
        """Look at the key in so many seconds, or earlier if somebody asks for it earlier."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= loop.time() + seconds:
            return
        if timer is not None:
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self.add, key)

    def retry(self, key: K) -> float:
        """Look at the key again, later each time that it fails in a row; the seconds until then."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = min(FIRST_RETRY_SECONDS * 2.0 ** min(failures, 20), LAST_RETRY_SECONDS)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: K) -> None:
        """The key was worked on with success: its next failure is a first one."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Wait for a key; nobody else gets it until `done`."""
        key = await self._ready.get()
        self._dirty.discard(key)
        self._busy.add(key)
        return key

    def done(self, key: K) -> None:
        """The key has been worked on."""
        self._busy.discard(key)
        if key in self._dirty:
            self._ready.put_nowait(key)

    def close(self) -> None:
        """Cancel what is planned for later."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
