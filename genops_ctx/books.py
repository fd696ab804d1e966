"""The books: ledger and accounts together. The ledger is written first; the accounts follow.

An entry that the accounts do not have yet stays marked in the ledger and is settled later, by this
process or by the next one that opens the ledger; settling twice changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

from .core.accounts import Refusal, Reserve, WrongWindow
from .core.booking import charge_of_loss
from .core.errors import StoreError
from .core.outcomes import Outcome
from .core.ports import AccountStore, Held, Ledger, Lost
from .core.records import Charge

__all__ = ["Books"]

log = logging.getLogger("genops_ctx")

KEPT_RELEASES = 10_000


class Books:
    """One store and one ledger. What is done here after a call was sent never raises."""

    def __init__(self, store: AccountStore, ledger: Ledger) -> None:
        self.store = store
        self.ledger = ledger
        self._releases: deque[tuple[str, float]] = deque(maxlen=KEPT_RELEASES)
        self._lock = threading.Lock()
        self._behind = True
        """there may be entries that the accounts do not have"""

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal | WrongWindow:
        """Raises :class:`StoreError` within the store's bound."""
        return self.store.reserve(wish, now)

    def release(self, hold: str, now: float) -> None:
        """Give a reservation back, now or as soon as the store answers."""
        try:
            self.store.release(hold, now)
        except StoreError as error:
            log.warning("a reservation could not be given back yet (%s); it will be", error)
            self._releases.append((hold, now))

    def book(self, charge: Charge, settles: bool) -> None:
        """Write the charge down, then settle its reservation."""
        written = True
        try:
            self.ledger.append(charge, settled=not settles)
        except Exception:
            written = False
            log.exception("the ledger failed; a charge of %s is not in it", charge.name)
        if not settles:
            return
        try:
            self._settle(charge)
            if written:
                self.ledger.mark_settled([charge.id])
        except StoreError as error:
            self._behind = True
            log.warning("a charge of %s is in the ledger and not in its accounts yet: %s", charge.name, error)
        except Exception:
            self._behind = True
            log.exception("a charge of %s is not settled", charge.name)

    def _settle(self, charge: Charge) -> None:
        completed = charge.outcome == Outcome.COMPLETED
        self.store.settle(charge.id, charge.nanos, charge.accounts, charge.ended_at, completed)

    def catch_up(self, now: float) -> None:
        """Settle what is behind, give back what is due, and book what was lost. Raises nothing."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            while self._releases:
                hold, at = self._releases[0]
                self.store.release(hold, at)
                self._releases.popleft()
            if self._behind:
                self._replay()
            self._book_losses(self.store.reap(now))
        except StoreError as error:
            log.warning("the budget store does not answer (%s); its accounts are brought up later", error)
        except Exception:
            log.exception("the books could not be brought up to date")
        finally:
            self._lock.release()

    def _replay(self) -> None:
        while behind := self.ledger.unsettled():
            for charge in behind:
                self._settle(charge)
            self.ledger.mark_settled([charge.id for charge in behind])
        self._behind = False

    def _book_losses(self, losses: Sequence[Lost]) -> None:
        booked = []
        for lost in losses:
            charge = charge_of_loss(lost)
            self.ledger.append(charge)
            log.warning("a call of %s was never finished; what it reserved is booked", charge.name)
            booked.append(charge.id)
        if booked:
            self.store.acknowledge(booked)

    def close(self) -> None:
        self.store.close()
        self.ledger.close()
