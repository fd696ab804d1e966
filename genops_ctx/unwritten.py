"""Charges that the ledger did not take when they were booked: kept until it does.

Those of a ledger on a server are kept in a file of this machine (:mod:`.ledger.spill`), which survives this
process. Where no file can be written, and for other ledgers, they are kept in memory.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .core.records import Charge
from .handoff import is_remote

if TYPE_CHECKING:
    from .core.ports import Ledger
    from .ledger.spill import Spill

__all__ = ["Booking", "Unwritten", "Write"]

log = logging.getLogger("genops_ctx")

KEPT = 10_000
"""Charges that wait in memory at most."""
BATCH = 100
"""Charges that are written together at most."""

Booking = tuple[Charge, bool]
"""A charge, and whether it is settled: the accounts have it, or need not."""
Write = Callable[[Sequence[Booking]], Sequence[object]]
"""Writes charges, and says for each what came of it: an exception where it is not written."""


class Unwritten:
    """What one ledger did not take. Its length is what there is to write down now."""

    def __init__(self, ledger: Ledger) -> None:
        self._memory: deque[Booking] = deque()
        self._spill = _spill_of(ledger)
        self._told = False

    def __len__(self) -> int:
        if self._spill is None:
            return len(self._memory)
        try:
            return len(self._memory) + self._spill.waiting()
        except Exception as error:
            self._tell(error)
            return len(self._memory)

    @property
    def where(self) -> str:
        """What becomes of them should this process end now, for people."""
        if self._memory or self._spill is None:
            return "they end with this process"
        return f"they wait in {self._spill.path}"

    def keep(self, charges: Sequence[Booking]) -> None:
        """Until the ledger takes them. Raises nothing."""
        for booking in self.secure(charges):
            if len(self._memory) < KEPT:
                self._memory.append(booking)
            else:
                name = booking[0].name
                log.error("%d charges wait for the ledger already; one of %s is dropped", KEPT, name)

    def secure(self, charges: Sequence[Booking]) -> Sequence[Booking]:
        """Keep them in the file, so that they outlive this process; those of which that failed."""
        if self._spill is None:
            return charges
        try:
            self._spill.add(charges)
        except Exception as error:
            if len(charges) > 1:  # one that nobody can write down takes none along
                return [booking for one in charges for booking in self.secure([one])]
            self._tell(error)
            return charges
        return ()

    def forget(self, charges: Sequence[Charge]) -> None:
        """The ledger has taken these after all. Raises nothing."""
        if self._spill is not None:
            try:
                self._spill.drop(charges)
            except Exception as error:
                log.debug("charges that are booked stay in the file of those that are not: %s", error)

    def write_down(self, write: Write, goes_on: Callable[[], bool]) -> Exception | None:
        """Have written what can be, some at a time; why the rest is not, where the ledger took none of some.

        Raises nothing.
        """
        error: Exception | None = None
        while error is None and self._memory and goes_on():
            some = [self._memory.popleft() for _ in range(min(BATCH, len(self._memory)))]
            outcomes = _outcomes(write, some)
            pairs = zip(some, outcomes, strict=True)
            self._memory.extend(one for one, outcome in pairs if isinstance(outcome, Exception))
            error = _error_of_all(outcomes)
        while goes_on() and (some := self._borrowed()):
            outcomes = _outcomes(write, some)
            pairs = zip(some, outcomes, strict=True)
            self.forget([charge for (charge, _), outcome in pairs if not isinstance(outcome, Exception)])
            if (failed := _error_of_all(outcomes)) is not None:
                self._give_back([charge for charge, _ in some])
                return failed
            # One that cannot be written, among others that can, is tried again once nobody has it.
        return error

    def _borrowed(self) -> list[Booking]:
        if self._spill is not None:
            try:
                return self._spill.borrow(BATCH)
            except Exception as error:
                self._tell(error)
        return []

    def _give_back(self, charges: Sequence[Charge]) -> None:
        if self._spill is not None:
            try:
                self._spill.give_back(charges)
            except Exception as error:
                log.debug("charges are nobody's again only in a while: %s", error)

    def _tell(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "charges that the ledger does not take in time are kept in memory, and end with this process "
                "if it is killed: %s. XDG_STATE_HOME names the folder that a file is made in",
                error,
            )

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        if self._spill is not None:
            self._spill.close()


def _outcomes(write: Write, some: Sequence[Booking]) -> Sequence[object]:
    try:
        return write(some)
    except Exception as error:
        return [error] * len(some)


def _error_of_all(outcomes: Sequence[object]) -> Exception | None:
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    return errors[0] if len(errors) == len(outcomes) else None


def _spill_of(ledger: Ledger) -> Spill | None:
    place = getattr(ledger, "place", "")
    if not place or not is_remote(ledger):
        return None
    from .ledger.spill import Spill, spill_path

    try:
        return Spill(spill_path(place))
    except RuntimeError:  # nobody knows where this user is at home
        return None
