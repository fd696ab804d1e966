"""What a context may still learn: charges that wait for evidence, and waiting until none does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from .totals import Costs, rows_of

if TYPE_CHECKING:
    from .context import GovernanceContext
    from .records import Charge

__all__ = ["Correctable"]


class Correctable(Costs):
    """The part of a context that changes after a charge: what is pending, and corrections."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def path(self) -> tuple[GovernanceContext, ...]: ...

    @property
    def pending(self) -> tuple[Charge, ...]:
        """The charges in it and below that later evidence may still correct, the oldest first."""
        with self._lock:
            return tuple((self._totals.pending or {}).values())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no charge is pending, at most so many seconds; whether that came about.

        A charge stops being pending when evidence has corrected it, or when its time is over and the
        estimate stands. Blocks the thread; in coroutines use :meth:`wait_async`.
        """
        done = threading.Event()
        if not self._call_when_settled(done.set):
            return True
        try:
            return done.wait(timeout)
        finally:
            self._forget_waiting(done.set)

    async def wait_async(self, timeout: float | None = None) -> bool:
        """As :meth:`wait`, for coroutines."""
        import asyncio

        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(done.set)

        if not self._call_when_settled(tell):
            return True
        try:
            await asyncio.wait_for(done.wait(), timeout)
        except TimeoutError:
            return False
        finally:
            self._forget_waiting(tell)
        return True

    def _call_when_settled(self, tell: Callable[[], object]) -> bool:
        """Have ``tell`` called once nothing is pending; False where nothing is."""
        with self._lock:
            totals = self._totals
            if not totals.pending:
                return False
            totals.waiting = [*(totals.waiting or ()), tell]
            return True

    def _forget_waiting(self, tell: Callable[[], object]) -> None:
        with self._lock:
            totals = self._totals
            totals.waiting = [other for other in totals.waiting or () if other != tell] or None

    # -- what the books do to it ------------------------------------------------------------------

    def expect_correction(self, charge: Charge) -> None:
        """Count a charge as pending in it and every context around it."""
        with self._lock:
            for context in self.path:
                totals = context._totals
                totals.pending = totals.pending or {}
                totals.pending[charge.id] = charge

    def correct(self, adjustment: Charge, before: bool) -> None:
        """Count an adjustment in it and every context around it.

        ``before`` says whether a price was unknown in what was booked until now.
        """
        rows = rows_of(adjustment, tuple(sorted(adjustment.attribution.items())))
        unpriced = adjustment.unpriced - before
        with self._lock:
            for context in self.path:
                context._totals.correct(adjustment, unpriced, rows)

    def expect_no_more(self, charge_id: str) -> None:
        """The charge is not pending any more, in it and every context around it."""
        told: list[Callable[[], object]] = []
        with self._lock:
            for context in self.path:
                totals = context._totals
                if totals.pending is None or totals.pending.pop(charge_id, None) is None:
                    continue
                if not totals.pending:
                    told += totals.waiting or ()
                    totals.pending = totals.waiting = None
        for tell in told:
            tell()
