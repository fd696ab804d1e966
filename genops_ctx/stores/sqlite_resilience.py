"""``sqlite:///path``: breakers, limits and cache in a file that the processes of one machine share."""

from __future__ import annotations

from os import PathLike, fspath

from ..core.errors import StoreError
from ..database import check_writable, open_database
from .reach import refuses
from .sqlite_breakers import SQLiteBreakers
from .sqlite_cache import SQLiteCache
from .sqlite_limits import SQLiteLimits
from .sqlite_rules_schema import MIGRATIONS, PART

__all__ = ["SQLiteResilience"]


class SQLiteResilience:
    """A :class:`~genops_ctx.core.resilience_ports.ResilienceStore` in a SQLite file, on a local disk.

    It holds cached answers, so only its user may read it. Its clock is the machine's. It may be deleted
    while no process uses it.

    ``away="refuse"`` has rate limits and breakers refuse calls while the file stays locked or fails; else
    those go through. ``timeout``: seconds that a question waits for the others at most.

    Raises :class:`ConfigurationError` for a path that cannot be written.
    """

    def __init__(self, path: str | PathLike[str], *, timeout: float = 2.0, away: str = "local") -> None:
        self.refuses = refuses(away)
        self.database = open_database(fspath(path))
        check_writable(self.database.path)
        self.database.add_part(PART, MIGRATIONS)
        self._transactions = self.database.within(timeout)
        self.breakers = SQLiteBreakers(self._transactions)
        self.limits = SQLiteLimits(self._transactions)
        self.cache = SQLiteCache(self._transactions)

    @property
    def healthy(self) -> bool:
        """It can be written now."""
        try:
            with self._transactions:
                return True
        except StoreError:
            return False

    def close(self) -> None:
        self.database.close()
