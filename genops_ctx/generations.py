"""Which data of a shared store this ledger was booked in: a store that begins anew is then no new store.

Clients notice that a Redis was emptied while they run. Where all of them end with it, only the ledger
knows that there was something: it has the generation of the data as an audit record, ``store``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, cast

from .core.ports import AuditEvent

if TYPE_CHECKING:
    from .core.ports import AccountStore, Ledger

__all__ = ["Generations"]

log = logging.getLogger("genops_ctx")

ACTION = "store"


class _Generated(Protocol):
    """A store whose data has a name (:class:`~genops_ctx.stores.redis.RedisStore`)."""

    @property
    def generation(self) -> str | None: ...

    @property
    def place(self) -> str: ...

    def expect(self, generation: str) -> None: ...


class Generations:
    """What one ledger knows of one store. Raises nothing: without it, the store is taken as it is."""

    def __init__(self, store: AccountStore, ledger: Ledger) -> None:
        self._store = cast("_Generated", store) if hasattr(store, "expect") else None
        self._ledger = ledger
        self._known: str | None = None
        self._asked = False

    def expect(self) -> None:
        """Before the store is first asked: tell it which data must be there."""
        if self._asked or self._store is None:
            return
        self._asked = True
        try:
            for event in self._ledger.audits(ACTION):
                if event.subject == self._store.place:
                    self._known = event.reason
        except Exception as error:
            log.warning("the ledger does not say which data of the store it knows (%s)", error)
        if self._known is not None:
            self._store.expect(self._known)

    def note(self, now: float) -> None:
        """After the store has answered: write down which data is there, where that is new."""
        if self._store is None or self._store.generation in (None, self._known):
            return
        self._known = self._store.generation
        try:
            self._ledger.audit(AuditEvent(now, ACTION, self._store.place, reason=self._known or ""))
        except Exception as error:
            log.warning("the ledger cannot note which data of the store it knows (%s)", error)
