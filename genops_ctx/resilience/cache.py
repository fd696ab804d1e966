"""Answers that are kept: the same question of the same tenant is answered again at no cost.

Keys are keyed hashes. While one caller computes an answer, others that want the same one wait for it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core.cache import Busy, CacheRule, Hit, Lease
from ..core.errors import ConfigurationError, StoreError
from ..core.money import dollars
from ..handoff import is_remote
from .answers import decode, digest, encode
from .backing import backing, now

if TYPE_CHECKING:
    from ..core.resilience_ports import ResilienceStore

__all__ = ["Found", "QueryCache", "RedisCache", "cache_of"]

log = logging.getLogger("genops_ctx")


class Found(NamedTuple):
    """An answer that was kept."""

    value: Any
    nanos: int | None
    """what it cost when it was computed, in nano-dollars; None where that is not known"""
    name: str = ""
    """of the charge's call"""


class QueryCache:
    """Answers by question: ``cache.get(query)``, ``cache.set(query, answer)``, or as an option of calls.

    Args:
        ttl: seconds that an answer is kept.
        max_size: answers that are kept; the least recently used go first.
        by: attribution keys of a tenant: who differs in one of them never gets the other's answer.
        sessions: also keep answers of calls in a session, whose flow may remember what was said before.
        name: caches of one name and store are one; without a name it is known to this object only.
        secret: keys the hashes; the same for all that share the cache. Adapters mix their API key in.
        lease: seconds that one caller may compute an answer while others wait for it.
        store: a URL as ``configure(store=)`` takes, or a store; the process's own unless given.

    Values are kept as JSON; a cache without a name keeps any value that can be pickled. What cannot be
    kept is not, and computed again.

    Raises :class:`ConfigurationError` for numbers out of range.
    """

    def __init__(
        self,
        ttl: float = 3600.0,
        max_size: int = 1000,
        *,
        by: str | Iterable[str] = ("customer_id", "team"),
        sessions: bool = False,
        name: str | None = None,
        secret: str | None = None,
        lease: float = 120.0,
        store: str | ResilienceStore | None = None,
    ) -> None:
        self.name = name
        self.rule = CacheRule(ttl, max_size, lease)
        self.by = (by,) if isinstance(by, str) else tuple(by)
        self.sessions = sessions
        self._private = store is None and name is None
        self._backing = backing(store, name)
        self._secret = secret.encode() if secret is not None else os.urandom(16) if self._private else b""
        self._lock = threading.Lock()
        self._hits = self._misses = self._saved = 0
        self._told = False

    @property
    def remote(self) -> bool:
        """Its store is on a server, so an event loop has it asked by a thread."""
        return is_remote(self._backing())

    # -- by hand --------------------------------------------------------------------------------

    def get(self, query: str, **options: object) -> Any:
        """The answer to a query asked with these options, or None. Raises nothing for a store that fails."""
        found = self.find(self.key("", query, options))
        return None if found is None else found.value

    def set(self, query: str, result: object, **options: object) -> None:
        """Keep the answer to a query asked with these options."""
        self.keep(self.key("", query, options), Found(result, None))

    def delete(self, query: str, **options: object) -> None:
        """Forget the answer, also one that is being computed. Raises :class:`StoreError`."""
        self._backing().cache.delete(self._shelf, self.key("", query, options))

    def clear(self) -> None:
        """Forget all answers. Raises :class:`StoreError`."""
        self._backing().cache.clear(self._shelf)

    def get_stats(self) -> dict[str, Any]:
        """``hits``, ``misses``, ``hit_rate`` in percent, ``size``, and ``saved`` dollars, of this object."""
        with self._lock:
            hits, misses, saved = self._hits, self._misses, self._saved
        total = hits + misses
        return {
            "hits": hits,
            "misses": misses,
            "hit_rate": hits / total * 100 if total else 0.0,
            "size": self._backing().cache.size(self._shelf, now()),
            "saved": dollars(saved),
        }

    # -- in the story of a call -----------------------------------------------------------------

    def key(self, *parts: object) -> str:
        """The hash of what an answer depends on.

        Raises :class:`ConfigurationError` for what is not told apart by its value.
        """
        try:
            return digest(self._secret, *parts)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigurationError(f"no cache key can be made of these arguments: {error}") from None

    def find(self, key: str) -> Found | None:
        """What is kept. Never raises."""
        try:
            hit = self._backing().cache.get(self._shelf, key, now())
        except StoreError as error:
            log.warning("the cache does not answer (%s)", error)
            hit = None
        return self._counted(hit)

    def claim(self, key: str) -> Found | Lease | Busy | None:
        """What is kept, the lease to compute it, or how long another has it. None: go without the cache."""
        try:
            answer = self._backing().cache.claim(self._shelf, key, self.rule, now())
        except StoreError as error:
            log.warning("the cache does not answer (%s); the call goes on without it", error)
            return None
        if isinstance(answer, Busy):
            return answer
        if isinstance(answer, Lease):
            self._counted(None)
            return answer
        return self._counted(answer)  # None where it cannot be read: computed again, and not kept

    def keep(self, key: str, found: Found, lease: Lease | None = None) -> None:
        """Keep an answer. Never raises."""
        data = encode([found.nanos, found.name, found.value], private=self._private)
        if data is None and not self._told:
            self._told = True
            kind = type(found.value).__name__
            log.warning("a %s is not JSON, so a shared cache cannot keep it; it is computed each time", kind)
        try:
            store = self._backing().cache
            if data is not None:
                store.put(self._shelf, key, data, self.rule, now(), lease=lease)
            elif lease is not None:
                store.release(self._shelf, key, lease)
        except StoreError as error:
            log.warning("an answer could not be kept (%s)", error)

    def release(self, key: str, lease: Lease) -> None:
        """There is no answer: let the next caller compute. Never raises."""
        try:
            self._backing().cache.release(self._shelf, key, lease)
        except StoreError as error:
            log.warning("a lease of the cache could not be given back (%s); it ends by itself", error)

    @property
    def _shelf(self) -> str:
        return self.name or "unnamed"

    def _counted(self, hit: Hit | None) -> Found | None:
        decoded = None if hit is None else decode(hit.value, private=self._private)
        found = None
        if decoded is not None:
            nanos, name, value = decoded[0]
            found = Found(value, nanos, name)
        with self._lock:
            if found is None:
                self._misses += 1
            else:
                self._hits += 1
                self._saved += found.nanos or 0
        return found

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or 'without a name'}>"


class RedisCache(QueryCache):
    """A :class:`QueryCache` in a Redis, ``RedisCache("redis://localhost:6379", ttl=600)``.

    Needs redis-py, the extra ``redis``.
    """

    def __init__(
        self,
        redis_url: str = "redis://localhost:6379",
        ttl: float = 3600.0,
        max_size: int = 100_000,
        *,
        name: str = "answers",
        **options: Any,
    ) -> None:
        super().__init__(ttl, max_size, name=name, store=redis_url, **options)


def cache_of(value: object, name: str) -> QueryCache | None:
    """What ``cache=`` means: None or False for none, True for an hour, a number of seconds, or a cache."""
    if value is None or value is False:
        return None
    if value is True:
        return QueryCache(name=name)
    if isinstance(value, int | float):
        return QueryCache(float(value), name=name)
    if isinstance(value, QueryCache):
        return value
    raise ConfigurationError(f"cache must be True, a number of seconds or a QueryCache, not {value!r}")
