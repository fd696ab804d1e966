"""What may wait for a server is done by a thread where an event loop is running: the loop goes on.

One implementation of stores and books serves both kinds of code. Threads cost an admitted call some
50 µs, so only stores, ledgers, guards and caches on a server are asked that way; a file of this machine and
memory are asked directly.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from .core.effects import Enter, Hold, Judge, Leave, LookUp, Pause, PutBack, Release, Standing, Take, Undo

if TYPE_CHECKING:
    from .core.effects import Effect

__all__ = ["HandOff", "in_event_loop", "is_remote", "nobody_waits"]

E = TypeVar("E")
T = TypeVar("T")

THREADS = 4
"""of each kind: those that somebody waits for, and those that nobody waits for. What is booked meanwhile
keeps no call from being admitted."""

_ASKS = (Hold, LookUp, Standing, Release, Judge, Undo, Take, PutBack, Enter, Leave)
"""Effects that may ask a store, a ledger or a guard."""
_GUARDS = (Take, PutBack, Enter, Leave)
"""Those whose guard may have a server of its own."""


def is_remote(back_end: object) -> bool:
    """Whether it is on a server, so that asking it waits for a network."""
    return bool(getattr(back_end, "remote", False))


def in_event_loop() -> bool:
    """Whether this thread runs an event loop that must not wait."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


_here = threading.local()


def nobody_waits() -> bool:
    """Whether this thread only does what was handed off to it."""
    return getattr(_here, "nobody_waits", False)


def _begin_booking() -> None:
    _here.nobody_waits = True


class _Threads:
    """Threads of this process, begun where they are first needed."""

    def __init__(self, name: str, begin: Callable[[], None] | None = None) -> None:
        self._name = f"genops_ctx-{name}"
        self._begin = begin
        self._lock = threading.Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def __call__(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pool[0] != os.getpid():
                pool = ThreadPoolExecutor(THREADS, thread_name_prefix=self._name, initializer=self._begin)
                self._pool = (os.getpid(), pool)
            return self._pool[1]

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown()


class HandOff:
    """The threads of one runtime. Without anything remote there are none, and all is done on the spot."""

    def __init__(self, *back_ends: object) -> None:
        self.needed = any(map(is_remote, back_ends))
        self._asking = _Threads("asking")
        self._booking = _Threads("booking", _begin_booking)

    def run(self, function: Callable[[], object]) -> None:
        """Do something that nobody waits for: by a thread, where an event loop would have to wait."""
        self._run(function, self.needed)

    def aside(self, function: Callable[[], object], guard: object) -> None:
        """As :meth:`run`, of something that asks a guard."""
        self._run(function, is_remote(guard))

    def _run(self, function: Callable[[], object], waits: bool) -> None:
        if waits and in_event_loop():
            try:
                self._booking().submit(function)
            except RuntimeError:  # the interpreter ends, or there are no more threads
                function()
        else:
            function()

    def submit(self, function: Callable[[], T]) -> Future[T]:
        """Begin to do something by a thread."""
        return self._asking().submit(function)

    async def perform(self, effect: Effect, perform: Callable[[Any], T]) -> T | None:
        """Perform an effect of a story for an event loop.

        A cancellation is told once the thread is done, which the store's bound keeps short: only then
        is it known what there is to give back.
        """
        pause = isinstance(effect, Pause)
        asks = self.needed and isinstance(effect, _ASKS)
        if not (pause or asks or (isinstance(effect, _GUARDS) and effect.remote)) or not in_event_loop():
            return perform(effect)
        if isinstance(effect, Pause):
            import asyncio

            await asyncio.sleep(effect.seconds)
            return None
        return await self.ask(effect, perform)

    async def ask(self, effect: E, perform: Callable[[E], T]) -> T:
        """Perform an effect by a thread. What is answered to nobody is undone, where the effect can."""
        import asyncio

        done = asyncio.get_running_loop().run_in_executor(self._asking(), perform, effect)
        cancelled: BaseException | None = None
        while not done.done():
            try:
                await asyncio.wait([done])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            undo = getattr(effect, "undo", None)
            if done.exception() is None and undo is not None:
                self._run(partial(undo, done.result()), True)
            raise cancelled
        return done.result()

    def close(self) -> None:
        """End the threads once they are done."""
        self._asking.close()
        self._booking.close()
