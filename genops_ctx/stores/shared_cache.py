"""A cache on Redis as one process uses it: while the store is away, by a cache of its own."""

from __future__ import annotations

from ..core.cache import Busy, CacheRule, Hit, Lease
from ..core.errors import StoreError
from ..core.resilience_ports import CacheStore
from .memory_cache import MemoryCache
from .reach import Reach

__all__ = ["SharedCache"]


class LocalLease(Lease):
    """Given while the store was away."""

    __slots__ = ()


class SharedCache:
    """A :class:`~genops_ctx.core.resilience_ports.CacheStore` that goes on alone while another is away.

    What is kept alone is forgotten when the store is back.
    """

    def __init__(self, store: CacheStore, reach: Reach) -> None:
        self._store = store
        self._reach = reach
        self._local = MemoryCache()
        reach.on_return(self._forget_local)

    def get(self, cache: str, key: str, now: float) -> Hit | None:
        try:
            hit = self._store.get(cache, key, now)
        except StoreError as error:
            self._reach.lost(error)
            return self._local.get(cache, key, now)
        self._reach.found()
        return hit

    def claim(self, cache: str, key: str, rule: CacheRule, now: float) -> Hit | Lease | Busy:
        try:
            answer = self._store.claim(cache, key, rule, now)
        except StoreError as error:
            self._reach.lost(error)
            alone = self._local.claim(cache, key, rule, now)
            return LocalLease(*alone) if isinstance(alone, Lease) else alone
        self._reach.found()
        return answer

    def put(
        self, cache: str, key: str, value: bytes, rule: CacheRule, now: float, *, lease: Lease | None = None
    ) -> bool:
        if isinstance(lease, LocalLease):
            return self._local.put(cache, key, value, rule, now, lease=lease)
        try:
            kept = self._store.put(cache, key, value, rule, now, lease=lease)
        except StoreError as error:
            self._reach.lost(error)
            return self._local.put(cache, key, value, rule, now)
        self._reach.found()
        return kept

    def release(self, cache: str, key: str, lease: Lease) -> None:
        if isinstance(lease, LocalLease):
            self._local.release(cache, key, lease)
            return
        try:
            self._store.release(cache, key, lease)
        except StoreError as error:
            # It ends by itself.
            self._reach.lost(error)
        else:
            self._reach.found()

    def delete(self, cache: str, key: str) -> None:
        """Raises :class:`StoreError` where the store does not answer: it would still be there."""
        self._local.delete(cache, key)
        self._store.delete(cache, key)

    def clear(self, cache: str) -> None:
        """Raises :class:`StoreError` where the store does not answer: it would still be there."""
        self._local.clear(cache)
        self._store.clear(cache)

    def size(self, cache: str, now: float) -> int:
        try:
            number = self._store.size(cache, now)
        except StoreError as error:
            self._reach.lost(error)
            return self._local.size(cache, now)
        self._reach.found()
        return number

    def _forget_local(self) -> None:
        self._local = MemoryCache()
