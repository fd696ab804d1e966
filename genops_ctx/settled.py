"""Charges that the accounts have: the ledger is told so, by one thread for several where many end at once.

Each telling is a commit of its own. While a thread waits for it, others leave theirs to that thread and go
on booking: a ledger with much to do commits once for many charges, and an idle one at once for each. What
is never told, because the process ends or the ledger does not answer, is settled again by a replay, which
changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .core.process import process_id
from .handoff import nobody_waits

if TYPE_CHECKING:
    from .core.ports import Ledger
    from .core.records import Charge
    from .generations import Generations

__all__ = ["Settled"]

AT_ONCE = 100
"""charges in one telling"""


class Settled:
    """What one ledger is told of the accounts in one store."""

    def __init__(self, ledger: Ledger, generations: Generations) -> None:
        self._ledger = ledger
        self._generations = generations
        self._begin()

    def _begin(self) -> None:
        self._process = process_id()
        self._lock = threading.Lock()
        self._waiting: list[Charge] = []
        self._telling = False

    def tell(self, charges: Sequence[Charge]) -> None:
        """The accounts have these, the newest one last. Raises what the ledger does."""
        told = None
        if charges:
            newest = charges[-1]
            told = self._generations.told(newest.adjustment_of or newest.id, newest.ended_at)
        self._ledger.mark_settled([charge.id for charge in charges], told)

    def add(self, charge: Charge) -> None:
        """The accounts have it too: told at once where somebody waits, else by the thread that is at it.

        Raises what the ledger does.
        """
        if not nobody_waits():
            self.tell([charge])
            return
        if self._process is not process_id():
            self._begin()  # what a fork's parent was about to tell is its parent's to tell
        with self._lock:
            self._waiting.append(charge)
            if self._telling:
                return
            self._telling = True
        try:
            while some := self._next():
                self.tell(some)
        except BaseException:
            with self._lock:
                self._telling = False
                self._waiting.clear()  # a replay has them all
            raise

    def _next(self) -> list[Charge]:
        with self._lock:
            some = self._waiting[:AT_ONCE]
            del self._waiting[:AT_ONCE]
            self._telling = bool(some)
        return some
