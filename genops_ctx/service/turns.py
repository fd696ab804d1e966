"""One run at a time: whoever comes while one runs shares the next, which sees all that was there by then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["Turns"]

T = TypeVar("T")


class Turns(Generic[T]):
    """Runs some work for any number of callers of one event loop, at most twice while they wait.

    A run that began before a caller came could miss what the caller knows of, so each is given one that
    begins later. The work should raise nothing: there may be nobody left to hear of it.
    """

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    def next(self) -> asyncio.Task[T]:
        """A run that has not begun yet. Shield it where its waiter may be cancelled."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running))
        return self._next

    async def _after(self, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await self._work()
