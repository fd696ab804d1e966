"""Calls in flight: counted from admission to booking, so that a program that ends can wait for them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from .core.errors import ShuttingDown
from .core.process import renewed_at_fork

if TYPE_CHECKING:
    from .core.booking import Report
    from .core.call import Admitted
    from .core.records import Charge

__all__ = ["InFlight"]


class InFlight:
    """How many calls are between admission and their end; closed, it lets no more begin."""

    def __init__(self) -> None:
        self.ended: list[Callable[[Admitted, Report, Charge | None, BaseException | None], object]] = []
        """told of the end of every attempt, also of one that was never sent; must not raise"""
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._none = threading.Condition(self._lock)
        self._waiting = 0
        self._count = 0
        self._closed = False

    @property
    def count(self) -> int:
        return self._count

    @property
    def closed(self) -> bool:
        return self._closed

    def enter(self, *, made_already: bool = False) -> None:
        """A call begins. Raises :class:`ShuttingDown` once closed, but not for what was paid already."""
        with self._lock:
            if self._closed and not made_already:
                raise ShuttingDown(
                    "the program is shutting down, so the call was refused before it was sent; send it "
                    "to another worker, or after the restart"
                )
            self._count += 1

    def leave(self) -> None:
        """A call has ended, or was refused."""
        with self._lock:
            self._count -= 1
            if self._waiting and self._count <= 0:
                self._none.notify_all()

    def close(self) -> None:
        """Let no more calls begin. Takes no lock: a signal handler may do it in the middle of anything."""
        self._closed = True

    def reopen(self) -> None:
        """Let calls begin again."""
        self._closed = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until none is in flight; False where some are after ``timeout`` seconds."""
        with self._lock:
            self._waiting += 1
            try:
                return self._none.wait_for(lambda: self._count <= 0, timeout)
            finally:
                self._waiting -= 1


_all: weakref.WeakSet[InFlight] = weakref.WeakSet()


@renewed_at_fork
def _begin_all() -> None:
    """A fork's child has none of its parent's calls."""
    for each in _all:
        each._begin()
