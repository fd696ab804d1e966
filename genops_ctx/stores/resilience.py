"""Where breakers, limits and cache entries live: all three behind one URL, as the accounts are.

``memory://`` one process · ``sqlite:///path`` one machine · ``redis://…`` any number of machines ·
``default://`` this process: what nobody asked for writes no file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import sqlite_path, unknown_scheme
from .memory_breakers import MemoryBreakers
from .memory_cache import MemoryCache
from .memory_limits import MemoryLimits

if TYPE_CHECKING:
    from ..core.resilience_ports import ResilienceStore

__all__ = ["MemoryResilience", "open_resilience"]


BESIDE = ".resilience"
"""Added to the path of a SQLite store: no cached answer in the file of the accounts, and no wait for it."""


class MemoryResilience:
    """A :class:`~genops_ctx.core.resilience_ports.ResilienceStore` of this process."""

    def __init__(self) -> None:
        self.breakers = MemoryBreakers()
        self.limits = MemoryLimits()
        self.cache = MemoryCache()

    @property
    def healthy(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing to close."""


def open_resilience(url: str, *, away: str = "local", **options: Any) -> ResilienceStore:
    """The breakers, limits and cache of a store's URL; nothing is connected to yet.

    Args:
        away: what is done while the store does not answer: ``local`` goes by the same rules in this
            process alone (on SQLite: without a rule), ``refuse`` raises
            :class:`~genops_ctx.core.errors.StoreError`, and rate limits and breakers refuse calls.
        options: of :class:`~genops_ctx.stores.redis_rules.RedisRules`.

    Raises :class:`ConfigurationError` as :func:`genops_ctx.stores.open_store` does.
    """
    scheme, separator, rest = url.strip().partition("://")
    scheme = scheme.lower()
    if separator and scheme in ("memory", "default") and rest in ("", "/"):
        return MemoryResilience()
    if separator and scheme.partition("+")[0] in ("redis", "rediss", "unix"):
        from .redis_rules import RedisRules
        from .shared_resilience import SharedResilience

        return SharedResilience(RedisRules(url.strip(), **options), away=away)
    if scheme == "sqlite" and separator:
        from .sqlite_resilience import SQLiteResilience

        return SQLiteResilience(sqlite_path(rest) + BESIDE, away=away)
    raise unknown_scheme(url)
