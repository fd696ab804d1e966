"""Reservations: the store is asked, and its data looked after.

Which data must be there the ledger knows, and where it is gone somebody has to bring it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .core.errors import StoreDataLost

if TYPE_CHECKING:
    from .core.accounts import Refusal, Reserve, WrongWindow
    from .core.effects import Hold
    from .core.ports import AccountStore, Held
    from .generations import Generations
    from .recovery import Recovery

__all__ = ["Holding"]


class Holding:
    """Reserves in one store."""

    def __init__(self, store: AccountStore, generations: Generations, recovery: Recovery | None) -> None:
        self._store = store
        self._generations = generations
        self._recovery = recovery
        self._reserve_all = getattr(store, "reserve_all", None)

    @property
    def at_once(self) -> bool:
        """Whether several reservations are one exchange with the store."""
        return self._reserve_all is not None

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal | WrongWindow:
        """Raises :class:`StoreError` within the store's bound."""
        self._before()
        try:
            answer = self._store.reserve(wish, now)
        except StoreDataLost:
            self._lost()
            raise
        self._generations.note(now)
        return answer

    def reserve_all(self, holds: Sequence[Hold]) -> list[Held | Refusal | WrongWindow | Exception]:
        """As :meth:`reserve`, of several: what is raised for one is its answer."""
        assert self._reserve_all is not None
        self._before()
        answers: list[Held | Refusal | WrongWindow | Exception] = self._reserve_all(
            [(hold.wish, hold.now) for hold in holds]
        )
        if any(isinstance(answer, StoreDataLost) for answer in answers):
            self._lost()
        if not all(isinstance(answer, Exception) for answer in answers):
            self._generations.note(holds[-1].now)
        return answers

    def _before(self) -> None:
        self._generations.expect()
        if self._recovery is not None:
            self._recovery.watch()

    def _lost(self) -> None:
        if self._recovery is not None:
            self._recovery.wake()
