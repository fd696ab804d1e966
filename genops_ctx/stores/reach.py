"""Whether a shared store can be reached, and what is done while it cannot: said once each way."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..core.errors import ConfigurationError, StoreError
from ..core.process import ForkedLock

__all__ = ["Reach", "refuses"]

log = logging.getLogger("genops_ctx")


def refuses(away: str) -> bool:
    """What ``away`` says; raises :class:`ConfigurationError` for anything but ``local`` and ``refuse``."""
    if away not in ("local", "refuse"):
        raise ConfigurationError(f"away must be local or refuse, not {away!r}")
    return away == "refuse"


class Reach:
    """``away`` says what is done while the store does not answer: ``local`` or ``refuse``.

    ``local`` goes by the same rules in this process alone, and forgets what it decided as soon as the
    store is back; ``refuse`` passes the :class:`StoreError` on.

    Raises :class:`ConfigurationError` for anything else.
    """

    def __init__(self, store: str, away: str = "local") -> None:
        self._store = store
        self.refuses = refuses(away)
        self._lock = ForkedLock()
        self._forget: list[Callable[[], object]] = []
        self.is_away = False
        """the last question was not answered"""

    def on_return(self, forget: Callable[[], object]) -> None:
        """Have this called when the store is back."""
        self._forget.append(forget)

    def lost(self, error: StoreError) -> None:
        """Raises the error again where ``away`` is ``refuse``."""
        with self._lock:
            first, self.is_away = not self.is_away, True
        if first:
            then = "calls are refused" if self.refuses else "each process goes by its own breakers and limits"
            log.warning("%s does not answer (%s); until it does, %s", self._store, error, then)
        if self.refuses:
            raise error

    def found(self) -> None:
        """It has answered."""
        if not self.is_away:
            return
        with self._lock:
            again, self.is_away = self.is_away, False
        if again:
            for forget in self._forget:
                forget()
            log.info("%s answers again; breakers and limits are shared again", self._store)
