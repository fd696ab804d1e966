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
from typing import TYPE_CHECKING, Any, TypeVar, cast

from .core.effects import Enter, Hold, Judge, Leave, LookUp, Pause, PutBack, Release, Standing, Take, Undo
from .gathering import Asked, Gathering

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        """Until nothing is left, what the last ones have begun included."""
        while True:
            with self._lock:
                pool, self._pool = self._pool, None
            if pool is None or pool[0] != os.getpid():
                return
            pool[1].shutdown()


class HandOff:
    """The threads of one runtime. Without anything remote there are none, and all is done on the spot.

    ``hold_all`` reserves for several calls in one exchange with their store, where that can.
    """

    def __init__(
        self,
        *back_ends: object,
        hold_all: Callable[[Sequence[Hold]], Sequence[object]] | None = None,
    ) -> None:
        self.needed = any(map(is_remote, back_ends))
        self._asking = _Threads("asking")
        self._booking = _Threads("booking", _begin_booking)
        self._holds = None if hold_all is None else Gathering(self._asking, hold_all)

    @property
    def leaves(self) -> bool:
        """Whether :meth:`run` would leave it to a thread here."""
        return self.needed and in_event_loop()

    def run(self, function: Callable[[], object]) -> None:
        """Do something that nobody waits for: by a thread, where an event loop would have to wait."""
        self._run(function, self.needed)

    def aside(self, function: Callable[[], object], guard: object) -> None:
        """As :meth:`run`, of something that asks a guard."""
        self._run(function, is_remote(guard))

    def _run(self, function: Callable[[], object], waits: bool) -> None:
        if waits and in_event_loop():
            self.later(function)
        else:
            function()

    def later(self, function: Callable[[], object]) -> None:
        """Have a thread do something that nobody waits for."""
        try:
            self._booking().submit(function)
        except RuntimeError:  # the interpreter ends, or there are no more threads
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
        if self._holds is not None and isinstance(effect, Hold):
            return cast("T", await self._answer_to(self._holds.ask(effect)))
        return await self.ask(effect, perform)

    async def ask(self, effect: E, perform: Callable[[E], T]) -> T:
        """Perform an effect by a thread. What is answered to nobody is undone, where the effect can."""
        import asyncio

        asked: Asked[E, T] = Asked(effect, asyncio.get_running_loop())
        self._asking().submit(_perform, asked, perform)
        return await self._answer_to(asked)

    async def _answer_to(self, asked: Asked[Any, T]) -> T:
        cancelled = await asked.wait()
        if cancelled is not None:
            undo = getattr(asked.question, "undo", None)
            if asked.error is None and undo is not None:
                self._run(partial(undo, asked.answer), True)
            raise cancelled
        if asked.error is not None:
            raise asked.error
        return cast("T", asked.answer)

    def close(self) -> None:
        """End the threads once they are done."""
        self._asking.close()
        self._booking.close()


def _perform(asked: Asked[E, T], perform: Callable[[E], T]) -> None:
    try:
        told: tuple[T | None, BaseException | None] = perform(asked.question), None
    except BaseException as error:
        told = None, error
    asked.loop.call_soon_threadsafe(asked.tell, *told)
