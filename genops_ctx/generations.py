"""Which data of a shared store this ledger was booked in: a store that begins anew is then no new store.

Clients notice that a Redis was emptied or set back while they run. Where all of them end with it, only
the ledger knows what there was: the generation of the data, as an audit record ``store``, and one end
that the data was told (:class:`~genops_ctx.core.ports.Witness`), so that an earlier state is seen too.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol, cast

from .core.ports import AuditEvent, Witness

if TYPE_CHECKING:
    from .core.ports import AccountStore, Ledger

__all__ = ["Generations"]

log = logging.getLogger("genops_ctx")

ACTION = "store"

AGAIN_SECONDS = 1.0
"""Between two tries to ask a ledger that does not answer."""


class _Generated(Protocol):
    """A store whose data has a name (:class:`~genops_ctx.stores.redis.RedisStore`)."""

    @property
    def generation(self) -> str | None: ...

    @property
    def place(self) -> str: ...

    def expect(
        self, generation: str, told: tuple[str, float] | None = None, *, late: bool = False
    ) -> None: ...


class Generations:
    """What one ledger knows of one store. Raises nothing: until it answers, the store is taken as it is."""

    def __init__(self, store: AccountStore, ledger: Ledger) -> None:
        self._store = cast("_Generated", store) if hasattr(store, "expect") else None
        self._ledger = ledger
        self._known: str | None = None
        self._asked = False
        self._late = False
        self._ask_at = 0.0
        self._place = ""

    def expect(self) -> None:
        """Before the store is first asked: tell it which data must be there.

        Where the ledger did not say so then, as soon as it does: what was emptied is not taken for new.
        """
        if self._asked or self._store is None or (self._late and time.monotonic() < self._ask_at):
            return
        self._place = self._store.place
        told = None
        try:
            for event in self._ledger.audits(ACTION):
                if event.subject == self._place:
                    self._known = event.reason
            witness = self._ledger.witness(self._place)
            if witness is not None:
                told = (witness.hold, witness.at)
        except Exception as error:
            if not self._late:
                log.warning("the ledger does not say yet which data of the store it knows (%s)", error)
            self._late, self._ask_at = True, time.monotonic() + AGAIN_SECONDS
            return
        self._asked = True
        if self._known is not None:
            self._store.expect(self._known, told, late=self._late)

    def told(self, hold: str, at: float) -> Witness | None:
        """For the ledger: the store was told the end of a reservation then (epoch seconds)."""
        return None if self._store is None else Witness(self._place, hold, at)

    def note(self, now: float) -> None:
        """After the store has answered: write down which data is there, where that is new."""
        if self._store is None or not self._asked or self._store.generation in (None, self._known):
            return
        self._known = self._store.generation
        try:
            self._ledger.audit(AuditEvent(now, ACTION, self._place, reason=self._known or ""))
        except Exception as error:
            log.warning("the ledger cannot note which data of the store it knows (%s)", error)
