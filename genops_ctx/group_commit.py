"""Charges of calls that end at about the same time are written to a ledger on a server by one transaction.

One thread of the process writes. What comes while it waits for the server is its next batch, so an idle
ledger is asked at once for each charge, and a busy one rarely for many. A call waits until its own is there,
but for no longer than a moment: a ledger that does not answer breaks no call. What takes longer is secured
otherwise before the call goes on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .core.errors import StoreError
from .core.process import process_id

if TYPE_CHECKING:
    import asyncio

    from .core.ports import Ledger
    from .core.records import Charge
    from .handoff import HandOff
    from .unwritten import Booking, Unwritten, Write

__all__ = ["WAIT_SECONDS", "GroupCommit", "append_each"]

log = logging.getLogger("genops_ctx")

WAIT_SECONDS = 0.25
"""What a call waits at most until it is booked."""
AT_ONCE = 100
"""charges in one transaction"""
ONE_BY_ONE_SECONDS = 1.0
"""How long charges that cannot be written together are tried one by one, while none of them can be."""


_BROKEN_OFF = StoreError("it was interrupted while it was written")


class _Waiter(NamedTuple):
    """A task of an event loop that waits for a charge."""

    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]

    def wake(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class _Entry:
    """A charge on its way."""

    __slots__ = ("booking", "secured", "waiters", "written")

    def __init__(self, booking: Booking) -> None:
        self.booking = booking
        self.secured = False
        self.written = False
        self.waiters: list[_Waiter] = []


class GroupCommit:
    """Writes the charges of one process, for its event loops.

    ``write`` writes some and raises nothing; ``then`` is given each of them with what came of it, by threads
    that nobody waits for. What was not written, or not in time, is kept in ``unwritten``.
    """

    def __init__(
        self,
        hand_off: HandOff,
        unwritten: Unwritten,
        write: Write,
        then: Callable[[Sequence[tuple[Booking, object]]], object],
    ) -> None:
        self._hand_off = hand_off
        self._unwritten = unwritten
        self._write = write
        self._then = then
        self._begin()

    def _begin(self) -> None:
        self._process = process_id()
        self._lock = threading.Lock()
        self._securing = threading.Lock()
        self._queue: list[_Entry] = []
        self._entries: dict[str, _Entry] = {}
        """queued, or being written"""
        self._writing = False

    def add(self, charge: Charge, settled: bool) -> None:
        """Have a charge written; nobody waits here."""
        if self._process is not process_id():
            self._begin()  # what a fork's parent was about to write is its parent's to write
        entry = _Entry((charge, settled))
        with self._lock:
            self._queue.append(entry)
            self._entries[charge.id] = entry
            if self._writing:
                return
            self._writing = True
        self._hand_off.later(self._write_all)

    def _write_all(self) -> None:
        try:
            while batch := self._next():
                self._write_batch(batch)
        except BaseException:
            with self._lock:
                self._writing = bool(self._queue)  # else nobody would ever write again
                left = self._writing
            if left:  # what came meanwhile counts on this thread
                self._hand_off.later(self._write_all)
            raise

    def _write_batch(self, batch: Sequence[_Entry]) -> None:
        bookings = [entry.booking for entry in batch]
        outcomes: Sequence[object] = [_BROKEN_OFF] * len(batch)
        try:
            outcomes = self._write(bookings)
        finally:
            ends = list(zip(bookings, outcomes, strict=True))
            failed = [booking for booking, outcome in ends if isinstance(outcome, Exception)]
            if failed:
                self._unwritten.keep(failed)
            self._end(batch, outcomes)
        self._hand_off.later(partial(self._then, ends))

    def _next(self) -> list[_Entry]:
        with self._lock:
            batch = self._queue[:AT_ONCE]
            del self._queue[:AT_ONCE]
            self._writing = bool(batch)
        return batch

    def _end(self, batch: Sequence[_Entry], outcomes: Sequence[object]) -> None:
        waiters: dict[asyncio.AbstractEventLoop, list[_Waiter]] = {}
        with self._lock:
            for entry, outcome in zip(batch, outcomes, strict=True):
                entry.written = not isinstance(outcome, Exception)
                charge = entry.booking[0]
                if self._entries.get(charge.id) is entry:
                    del self._entries[charge.id]
                for waiter in entry.waiters:
                    waiters.setdefault(waiter.loop, []).append(waiter)
        for loop, some in waiters.items():
            try:
                loop.call_soon_threadsafe(_wake, some)
            except RuntimeError:
                continue  # it was closed meanwhile
        self._forget([entry for entry in batch if entry.secured])

    def _forget(self, secured: Sequence[_Entry]) -> None:
        charges = [entry.booking[0] for entry in secured if entry.written]
        if charges:
            self._unwritten.forget(charges)

    # -- who waits ------------------------------------------------------------------------------

    async def booked(self, charge: Charge) -> None:
        """Return once a charge is written, or secured; after :data:`WAIT_SECONDS` it is secured at once."""
        entry = self._entries.get(charge.id) if self._process is process_id() else None
        if entry is None:
            return
        import asyncio

        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop, loop.create_future())
        with self._lock:
            if self._entries.get(charge.id) is not entry:
                return
            entry.waiters.append(waiter)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await waiter.done
        except TimeoutError:
            if not entry.secured:
                await self._hand_off.ask(entry, self._secure_waiting)

    def _secure_waiting(self, entry: _Entry) -> None:
        """Secure all that are on their way: who waits for one of them waits for the same server."""
        with self._securing:
            if entry.secured:
                return  # together with another
            with self._lock:
                entries = [one for one in self._entries.values() if not one.secured]
            self._unwritten.secure([one.booking for one in entries])
            with self._lock:
                ended = [one for one in entries if self._entries.get(one.booking[0].id) is not one]
                for one in entries:
                    one.secured = True
            self._forget(ended)


def _wake(waiters: Sequence[_Waiter]) -> None:
    for waiter in waiters:
        waiter.wake()


def append_each(ledger: Ledger, bookings: Sequence[Booking]) -> list[object]:
    """Write charges down; for each whether it is new, or the exception for which it is not written.

    By one transaction where the ledger can, so that either all of them are there or none. Then, and where it
    cannot, each by itself: one that cannot be written takes none along. Raises nothing.
    """
    together = getattr(ledger, "append_all", None)
    if together is not None and len(bookings) > 1:
        try:
            return list(together(bookings))
        except Exception as error:
            log.debug("%d charges are written one by one: %s", len(bookings), error)
    outcomes: list[object] = []
    patience = time.monotonic() + ONE_BY_ONE_SECONDS
    for charge, settled in bookings:
        if outcomes and isinstance(outcomes[-1], Exception) and time.monotonic() > patience:
            outcomes.append(outcomes[-1])  # it is the server that does not answer
            continue
        try:
            outcomes.append(ledger.append(charge, settled=settled))
        except Exception as error:
            outcomes.append(error)
    return outcomes
