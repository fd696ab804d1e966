"""Charges on their way from the ledger to the accounts: several at a time where many calls end at once.

One thread settles them and then tells the ledger that the accounts have them. While it waits for a server
others leave theirs to it and go on: a service with much to do has one exchange with the store, and one
commit of the ledger, for many charges, and an idle one for each. What is never told, because the process
ends or a server does not answer, is settled again by a replay, which changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .core.process import process_id
from .handoff import nobody_waits

if TYPE_CHECKING:
    from .core.ports import Ledger
    from .core.records import Charge
    from .generations import Generations
    from .handoff import HandOff

__all__ = ["Settled"]

log = logging.getLogger("genops_ctx")

AT_ONCE = 100
"""charges in one exchange"""


class Settled:
    """What one ledger has for the accounts in one store. ``settle`` puts charges there, and says which of
    them arrived."""

    def __init__(
        self,
        ledger: Ledger,
        generations: Generations,
        hand_off: HandOff,
        settle: Callable[[Sequence[Charge]], Sequence[Charge]],
    ) -> None:
        self._ledger = ledger
        self._generations = generations
        self._hand_off = hand_off
        self._settle = settle
        self._begin()

    def _begin(self) -> None:
        self._process = process_id()
        self._lock = threading.Lock()
        self._waiting: list[Charge] = []
        self._at_it = False

    def tell(self, charges: Sequence[Charge]) -> None:
        """The accounts have these, the newest one last. Raises what the ledger does."""
        told = None
        if charges:
            newest = charges[-1]
            told = self._generations.told(newest.adjustment_of or newest.id, newest.ended_at)
        self._ledger.mark_settled([charge.id for charge in charges], told)

    def add(self, charge: Charge) -> None:
        """Settle it: at once where somebody waits, else by a thread, with what others add meanwhile.

        Raises nothing.
        """
        if not (self._hand_off.leaves or nobody_waits()):
            self._put([charge])
            return
        if self._process is not process_id():
            self._begin()  # what a fork's parent was about to settle is its parent's to settle
        with self._lock:
            self._waiting.append(charge)
            if self._at_it:
                return
            self._at_it = True
        self._hand_off.run(self._put_all)

    def _put_all(self) -> None:
        try:
            while some := self._next():
                self._put(some)
        except BaseException:
            with self._lock:
                self._at_it = False  # else nobody would ever be again
            raise

    def _put(self, charges: Sequence[Charge]) -> None:
        try:
            arrived = self._settle(charges)
            if arrived:
                self.tell(arrived)
        except Exception as error:  # a replay has them
            log.warning("%d charges are not marked as settled yet: %s", len(charges), error)

    def _next(self) -> list[Charge]:
        with self._lock:
            some = self._waiting[:AT_ONCE]
            del self._waiting[:AT_ONCE]
            self._at_it = bool(some)
        return some
