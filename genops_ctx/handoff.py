"""What may wait for a server is done by a thread where an event loop is running: the loop goes on.

One implementation of stores and books serves both kinds of code. Threads cost an admitted call some
50 µs, so only stores, ledgers and guards on a server are asked that way; a file of this machine and
memory are asked directly.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from .core.effects import Enter, Hold, Judge, Leave, LookUp, Pause, PutBack, Release, Take, Undo

if TYPE_CHECKING:
    from .core.effects import Effect

__all__ = ["HandOff", "in_event_loop", "is_remote"]

T = TypeVar("T")

THREADS = 8

_ASKS = (Hold, LookUp, Release, Judge, Undo, Take, PutBack, Enter, Leave)
"""Effects that may ask a store, a ledger or a guard."""


def is_remote(back_end: object) -> bool:
    """Whether it is on a server, so that asking it waits for a network."""
    return bool(getattr(back_end, "remote", False))


def in_event_loop() -> bool:
    """Whether this thread runs an event loop that must not wait."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


class HandOff:
    """The threads of one runtime. Without anything remote there are none, and all is done on the spot."""

    def __init__(self, *back_ends: object) -> None:
        self.needed = any(map(is_remote, back_ends))
        self._lock = threading.Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                pool = ThreadPoolExecutor(THREADS, thread_name_prefix="genops_ctx-handoff")
                self._pool = (os.getpid(), pool)
            return self._pool[1]

    def run(self, function: Callable[[], object]) -> None:
        """Do something that nobody waits for: by a thread, where an event loop would have to wait."""
        if self.needed and in_event_loop():
            try:
                self._threads().submit(function)
            except RuntimeError:  # the interpreter ends, or there are no more threads
                function()
        else:
            function()

    async def perform(self, effect: Effect, perform: Callable[[Any], T]) -> T | None:
        """Perform an effect of a story for an event loop.

        A cancellation is told once the thread is done, which the store's bound keeps short: only then
        is it known what there is to give back.
        """
        pause = isinstance(effect, Pause)
        if not (pause or (self.needed and isinstance(effect, _ASKS))) or not in_event_loop():
            return perform(effect)
        import asyncio

        if isinstance(effect, Pause):
            await asyncio.sleep(effect.seconds)
            return None
        done = asyncio.get_running_loop().run_in_executor(self._threads(), perform, effect)
        cancelled: BaseException | None = None
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            done.exception()  # so that it counts as looked at
            raise cancelled
        return done.result()

    def close(self) -> None:
        """End the threads once they are done."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown()
