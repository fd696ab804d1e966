"""The books: ledger and accounts together. The ledger is written first; the accounts follow.

An entry that the accounts do not have yet stays marked in the ledger and is settled later, by this
process or by the next one that opens the ledger; settling twice changes nothing. Where store and
ledger share one file, one transaction writes both.

What was booked and proves to be wrong is corrected by an *adjustment* (:mod:`.core.evidence`): a charge
of its own that takes lines back and says what is true instead. So is what was lost and comes to its end
after all.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from .core.booking import charge_of_loss, hold_id
from .core.errors import StoreError
from .core.evidence import adjusted
from .core.outcomes import Outcome
from .core.ports import AccountStore, Ledger, Lost
from .core.process import ForkedLock
from .core.records import Charge, Exactness
from .generations import Generations
from .group_commit import GroupCommit, append_each
from .handoff import HandOff, in_event_loop, is_remote, nobody_waits
from .holding import Holding
from .ledger import open_ledger
from .outbox import Outbox
from .settled import Settled
from .stores import open_store
from .unwritten import Unwritten

if TYPE_CHECKING:
    from .core.ports import Clock
    from .recovery import Recovery
    from .settings import Settings
    from .unwritten import Booking

__all__ = ["Books", "open_books"]

log = logging.getLogger("genops_ctx")

KEPT = 10_000
"""Releases that wait at most for a store that does not answer."""

TRIES = 100
"""Adjustments that may come between, before one gives up."""

CLOSING_SECONDS, CLOSING_PAUSE = 10.0, 0.2  # at the end, of tries of what fails, and between two of them


class Books:
    """One store and one ledger. What is done here after a call was sent never raises."""

    def __init__(self, store: AccountStore, ledger: Ledger, recovery: Recovery | None = None) -> None:
        self.store = store
        self.ledger = ledger
        self._generations = Generations(store, ledger)
        self._recovery = recovery
        holding = Holding(store, self._generations, recovery)
        self.reserve = holding.reserve
        self.hand_off = HandOff(store, ledger, hold_all=holding.reserve_all if holding.at_once else None)
        self._settled = Settled(ledger, self._generations, self.hand_off, self._settle_all)
        self._outbox = Outbox(ledger, self._settle_whole, self._settled.tell)
        together = getattr(ledger, "together_with", None)
        self._book_together: Callable[[Charge, bool], bool] | None = together(store) if together else None
        self._releases: deque[tuple[str, float, str]] = deque()
        self._unwritten = Unwritten(ledger)
        self._group: GroupCommit | None = None
        if is_remote(ledger):
            self._group = GroupCommit(
                self.hand_off, self._unwritten, partial(append_each, ledger), self._follow_up
            )
        self._away = False
        """the ledger took none of what it was told last"""
        self._catching_up = ForkedLock()
        self._until = math.inf  # when to stop catching up (monotonic seconds)

    def charges_of(self, operation: str) -> tuple[Charge, ...]:
        """What the ledger has of an operation; nothing where it does not answer."""
        try:
            return tuple(self.ledger.charges(operation))
        except Exception as error:
            log.warning("the ledger does not answer (%s): what an operation cost is not known", error)
            return ()

    # -- the end of a call ------------------------------------------------------------------------

    def release(self, hold: str, now: float, token: str = "") -> None:
        """Give a reservation back, now or as soon as the store answers."""
        self.hand_off.run(partial(self._release_or_keep, hold, now, token))

    def _release_or_keep(self, hold: str, now: float, token: str) -> None:
        try:
            self._release(hold, now, token)
        except Exception as error:
            log.warning("a reservation could not be given back yet (%s); it will be", error)
            if len(self._releases) < KEPT:  # else it expires, and counts as spent
                self._releases.append((hold, now, token))

    def book(self, charge: Charge, settles: bool) -> None:
        """Write the charge down, then settle its reservation where it has one.

        An event loop waits for no server: there the charge is settled by a thread, and written down by one
        too where the ledger is on a server. A coroutine waits for that by :meth:`booked`.
        """
        if self._group is not None and in_event_loop():
            self._group.add(charge, not settles)
            return
        booking = charge, not settles
        if settles and self._book_together is not None:
            try:
                outcome: object = self._book_together(charge, charge.outcome == Outcome.COMPLETED)
                booking = charge, bool(outcome)
            except Exception as error:
                outcome = error
        else:
            (outcome,) = append_each(self.ledger, [booking])
        if isinstance(outcome, Exception):
            self._unwritten.keep([booking])
        self._follow_up([(booking, outcome)])

    async def booked(self, charge: Charge | None) -> None:
        """Return once a charge is in the ledger, or where it outlives this process; within a moment."""
        if self._group is not None and charge is not None:
            await self._group.booked(charge)

    def _follow_up(self, ends: Sequence[tuple[Booking, object]]) -> None:
        """What is left to do for charges once the ledger was told of them. Raises nothing."""
        for (charge, settled), outcome in ends:
            if isinstance(outcome, Exception):
                log.warning("a charge of %s is not in the ledger yet: %s", charge.name, outcome)
                if not settled:
                    # Budgets must hold without the ledger too. Once that answers it is settled again.
                    try:
                        self._settle(charge, charge.nanos)
                    except Exception as another:
                        log.warning("nor is it in its accounts: %s", another)
            else:
                try:
                    if outcome is False:
                        self._correct(charge)
                    elif not settled:
                        self._settled.add(charge)
                except Exception as error:
                    log.warning("a charge of %s is not in its accounts yet: %s", charge.name, error)
                    # Nothing in the ledger says that there is something to correct.
                    self._unwritten.keep([(charge, False)])
        away = all(isinstance(outcome, Exception) for _, outcome in ends)
        if self._away and not away and self._group is not None:
            self.hand_off.later(self._write_what_waits)
        self._away = away

    def _settle_all(self, charges: Sequence[Charge]) -> list[Charge]:
        """Settle what is booked; returns those that the accounts have then."""
        at_once = getattr(self.store, "settle_all", None)
        failed: Sequence[Exception | None] = [None] * len(charges)
        if at_once is not None:
            failed = at_once([_end_of(charge, charge.nanos) for charge in charges])
        settled = []
        for charge, why in zip(charges, failed, strict=True):
            try:
                if why is not None:
                    raise why
                if at_once is None:
                    self._settle(charge, charge.nanos)
                if charge.exactness is not Exactness.EXACT and self._adjustments_of(charge):
                    # Evidence was quicker: what it says must not be overwritten by what was thought before.
                    self._settle_whole(charge)
            except Exception as error:
                log.warning("a charge of %s is not in its accounts yet: %s", charge.name, error)
            else:
                settled.append(charge)
        return settled

    def _settle(self, charge: Charge, actual: int) -> None:
        self.store.settle(*_end_of(charge, actual))

    def _release(self, hold: str, now: float, token: str) -> None:
        if not self.store.release(hold, now, token) and token:
            return  # there was no such reserve; what has its name is another's
        lost = self._lost(hold, hold.rpartition("#")[0])
        if lost is not None:
            self._append_adjustment(lost, replace(lost, outcome=Outcome.NOT_SENT, lines=()), now)

    def _correct(self, charge: Charge) -> None:
        """The ledger has a charge of this attempt. Unless it was lost, the first one counts."""
        if (lost := self._lost(charge.id, charge.operation)) is None:
            self._keep_apart(charge)
            return
        adjustment = self._append_adjustment(lost, charge, charge.ended_at, settled=False)
        if adjustment is not None:
            self._settle_adjusted(adjustment)

    def _append_adjustment(
        self, first: Charge, said: Charge, now: float, settled: bool = True
    ) -> Charge | None:
        """Have the ledger say what ``said`` says instead of what is booked; None where it does."""
        while True:
            adjustments = self._adjustments_of(first)
            if any(one.started_at == said.started_at and one.outcome == said.outcome for one in adjustments):
                return None  # said before
            if adjustments and adjustments[-1].exactness is Exactness.EXACT is not said.exactness:
                return None  # evidence came first, and knows better
            adjustment = adjusted(said, said.lines, first, adjustments, now)
            if adjustment is None or self.ledger.append(adjustment, settled=settled) is not False:
                return adjustment

    # -- what turns out later -----------------------------------------------------------------------

    def _adjustments_of(self, first: Charge) -> tuple[Charge, ...]:
        """All that corrects a charge so far, in the order it was booked; raises where the ledger fails."""
        return tuple(one for one in self.ledger.charges(first.operation) if one.adjustment_of == first.id)

    def adjust(
        self, hold: str, correction: Callable[[Charge, Sequence[Charge]], Charge | None]
    ) -> tuple[Charge | None, Charge | None]:
        """Book what ``correction`` makes of an attempt's charge and its adjustments so far.

        Returns the first charge and the adjustment; None for what there is not. Asks again with what another
        process has booked meanwhile. Raises where the ledger fails, so that the caller can come again.
        """
        adjustment: Charge | None = None
        for _ in range(TRIES):
            charges = tuple(self.ledger.charges(hold.rpartition("#")[0]))
            first = next((charge for charge in charges if charge.id == hold), None)
            adjustments = [charge for charge in charges if charge.adjustment_of == hold]
            if first is None:
                return None, None
            if adjustment in adjustments:
                break  # it was written, and the word of it was lost with a connection
            if (adjustment := correction(first, adjustments)) is None:
                return first, None
            if self.ledger.append(adjustment, settled=not adjustment.accounts) is not False:
                break
        else:
            raise StoreError(f"{TRIES} others corrected the same charge meanwhile")
        if adjustment is not None and adjustment.accounts:
            try:
                self._settle_adjusted(adjustment)
            except Exception as error:
                log.warning("a correction of %s is not in its accounts yet: %s", adjustment.name, error)
        return first, adjustment

    def _settle_adjusted(self, adjustment: Charge) -> None:
        self._settle_whole(adjustment)
        self._settled.tell([adjustment])

    def _settle_whole(self, charge: Charge) -> None:
        """Settle what the whole attempt has cost, as the ledger says it once the store was told."""
        amount = None
        while amount != (amount := self._amount(charge)):  # another process may have adjusted it too
            self._settle(charge, amount)

    def _keep_apart(self, charge: Charge) -> None:
        """Another call took the same name, in a process with a store of its own: both were paid."""
        known = tuple(self.ledger.charges(charge.operation))
        same = [one.id for one in known if one.started_at == charge.started_at]
        if charge.id in same:
            return  # the same call, written again
        for attempt in count(1 + max(one.attempt for one in known)) if not same else ():
            second = replace(charge, id=hold_id(charge.operation, attempt), attempt=attempt)
            if self.ledger.append(second) is not False:
                log.error("two calls of %s were sent under one idempotency key; both are booked", charge.name)
                break
        if charge.accounts:
            # Until it is done. No outbox: a process with the other store would settle the other call by it.
            self._settle(charge, charge.nanos)

    def _lost(self, hold: str, operation: str) -> Charge | None:
        """The charge of an attempt that was booked as lost."""
        named = (charge for charge in self.ledger.charges(operation) if charge.id == hold)
        return next((charge for charge in named if charge.outcome == Outcome.EXPIRED), None)

    # -- what is behind ---------------------------------------------------------------------------

    def catch_up(self, now: float, within: float = math.inf) -> None:
        """Settle what is behind, give back what is due, and book what was lost. Raises nothing.

        After ``within`` seconds, or ten times as many in a thread that nobody waits for, it begins nothing
        more, and leaves the rest to the next time.
        """
        if not self._catching_up.acquire(blocking=False):
            return
        try:
            self._until = time.monotonic() + (10 * within if nobody_waits() else within)
            self._generations.expect()
            self._give_back()
            if (error := self._write_down()) is not None:
                log.warning("charges wait for the ledger: %s", error)
            self._outbox.replay(now, self._time_is_up)
            self._book_losses(self.store.reap(now))
        except StoreError as error:
            log.warning("store or ledger does not answer (%s); the books are brought up later", error)
        except Exception:
            log.exception("the books could not be brought up to date")
        finally:
            self._catching_up.release()

    def _give_back(self) -> None:
        for _ in range(len(self._releases)):
            if self._time_is_up():
                return
            hold, now, token = self._releases[0]
            try:
                self._release(hold, now, token)
            except StoreError:
                raise
            except Exception:
                log.exception("a reservation cannot be given back")
                self._releases.rotate(-1)
            else:
                self._releases.popleft()

    def _write_what_waits(self) -> None:
        if not self._catching_up.acquire(blocking=False):
            return  # whoever has it may leave the rest to the next time
        try:
            self._until = math.inf
            self._write_down()
        finally:
            self._catching_up.release()

    def _write_down(self) -> Exception | None:
        return self._unwritten.write_down(self._write_late, lambda: not self._time_is_up())

    def _write_late(self, bookings: Sequence[Booking]) -> list[object]:
        outcomes = append_each(self.ledger, bookings)
        for place, (charge, _) in enumerate(bookings):
            if outcomes[place] is False:
                try:
                    self._correct(charge)
                except Exception as error:
                    outcomes[place] = error
        return outcomes

    def _time_is_up(self) -> bool:
        return time.monotonic() > self._until

    def _amount(self, charge: Charge) -> int:
        """What the whole attempt has cost."""
        hold, parts = charge.adjustment_of or charge.id, self.ledger.charges(charge.operation)
        return sum(part.nanos for part in parts if hold in (part.id, part.adjustment_of))

    def _book_losses(self, losses: Sequence[Lost]) -> None:
        booked = []
        for lost in losses:
            charge = charge_of_loss(lost)
            if self.ledger.append(charge) is not False:
                log.warning("a call of %s was never finished; what it reserved is booked", charge.name)
            booked.append(lost.name)
        if booked:
            self.store.acknowledge(booked)

    def close(self) -> None:
        """Write down and give back what can still be, and close both."""
        self.hand_off.close()
        while not self._catching_up.acquire(timeout=0.1):
            self._until = -math.inf  # whoever is catching up leaves the rest to this
        for finish, left, told in (
            (self._write_down, self._unwritten, "%d charges are not in the ledger (%s)"),
            (self._give_back, self._releases, "%d reservations are not given back (%s)"),
        ):
            patience = time.monotonic() + CLOSING_SECONDS
            self._until = math.inf if finish == self._write_down else patience
            failed: object = "there was no time"
            while left:
                try:
                    error = finish()
                except Exception as raised:
                    error = raised
                if error is not None:  # nobody answered a moment ago, say, and so nobody was asked
                    failed = error
                    time.sleep(CLOSING_PAUSE)
                if left and time.monotonic() > patience:
                    where = self._unwritten.where if finish == self._write_down else "they expire"
                    log.error(f"{told}: %s", len(left), failed, where)
                    break
        self._catching_up.release()
        if self._recovery is not None:
            self._recovery.stop()
        self._unwritten.close()
        self.store.close()
        self.ledger.close()


def _end_of(charge: Charge, actual: int) -> tuple[str, int, tuple[str, ...], float, bool]:
    """What a store is told of the end of an attempt that has cost so much."""
    completed = charge.outcome == Outcome.COMPLETED
    return charge.adjustment_of or charge.id, actual, charge.accounts, charge.ended_at, completed


def open_books(settings: Settings, store: AccountStore | None, ledger: Ledger | None, clock: Clock) -> Books:
    """The books of these settings, unless store or ledger are given."""
    if store is None:
        store = open_store(settings.store, callers_clock=clock is not time.time)
    ledger = ledger if ledger is not None else open_ledger(settings.ledger)
    recovery = None
    if settings.ledger_complete and hasattr(store, "restore"):
        from .recovery import Recovery

        recovery = Recovery(store, ledger, clock)
    return Books(store, ledger, recovery)
