"""Charges that the ledger has and the accounts may not have, because a process ended in between."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .core.errors import StoreError

if TYPE_CHECKING:
    from .core.ports import Ledger
    from .core.records import Charge

__all__ = ["Outbox"]

log = logging.getLogger("genops_ctx")

BATCH = 100

REPLAY_SECONDS = 72_000.0
"""Older entries are not settled by a replay: the store may have forgotten that it has them."""


class Outbox:
    """Has what is behind settled by ``settle``, and the ledger told of it by ``tell``."""

    def __init__(
        self, ledger: Ledger, settle: Callable[[Charge], object], tell: Callable[[Sequence[Charge]], object]
    ) -> None:
        self._ledger = ledger
        self._settle = settle
        self._tell = tell
        self._told_stale = False

    def replay(self, now: float, is_over: Callable[[], bool]) -> None:
        """Settle what is behind, until it ``is_over``. Raises :class:`StoreError`."""
        # Others' entries too, and such as are being booked right now: settling twice changes nothing.
        failed: set[str] = set()
        while True:
            behind = [one for one in self._ledger.unsettled(BATCH + len(failed)) if one.id not in failed]
            if not behind:
                return
            settled = []
            try:
                for charge in behind:
                    if is_over():
                        return
                    if now - charge.ended_at > REPLAY_SECONDS:
                        failed.add(charge.id)
                        self._tell_stale(charge)
                        continue
                    try:
                        self._settle(charge)
                    except StoreError:
                        raise
                    except Exception:
                        log.exception("a charge of %s cannot be settled", charge.name)
                        failed.add(charge.id)
                    else:
                        settled.append(charge)
            finally:
                self._tell(settled)

    def _tell_stale(self, charge: Charge) -> None:
        if not self._told_stale:
            self._told_stale = True
            log.error(
                "a charge of %s has waited for its accounts for more than %d hours; they may have it or not. "
                "Run `genops-ctx budgets rebuild`",
                charge.name,
                REPLAY_SECONDS // 3600,
            )
