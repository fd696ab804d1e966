"""Cache entries of one process, under one lock."""

from __future__ import annotations

import heapq
from collections import OrderedDict

from ..core.breaker import MICROS
from ..core.cache import Busy, CacheRule, Hit, Lease
from ..core.process import ForkedLock

__all__ = ["LEASE_KEPT", "MemoryCache"]

LEASE_KEPT = 3600 * MICROS
"""How long after its end a lease that nobody took over can still store its answer (microseconds)."""


class MemoryCache:
    """A :class:`~genops_ctx.core.resilience_ports.CacheStore` in this process's memory."""

    def __init__(self) -> None:
        self._lock = ForkedLock()
        self._caches: dict[str, _Shelf] = {}

    def get(self, cache: str, key: str, now: float) -> Hit | None:
        with self._lock:
            shelf = self._caches.get(cache)
            return None if shelf is None else shelf.find(key, round(now * MICROS))

    def claim(self, cache: str, key: str, rule: CacheRule, now: float) -> Hit | Lease | Busy:
        with self._lock:
            return self._shelf(cache).claim(key, round(rule.lease * MICROS), round(now * MICROS))

    def put(
        self, cache: str, key: str, value: bytes, rule: CacheRule, now: float, *, lease: Lease | None = None
    ) -> bool:
        with self._lock:
            return self._shelf(cache).put(key, value, rule, round(now * MICROS), lease)

    def release(self, cache: str, key: str, lease: Lease) -> None:
        with self._lock:
            shelf = self._shelf(cache)
            if shelf.leases.get(key, (0, 0))[0] == lease.token:
                del shelf.leases[key]

    def delete(self, cache: str, key: str) -> None:
        with self._lock:
            shelf = self._shelf(cache)
            shelf.leases.pop(key, None)
            shelf.entries.pop(key, None)

    def clear(self, cache: str) -> None:
        with self._lock:
            token = self._shelf(cache).token
            # The tokens go on: an answer from before is not kept.
            self._caches[cache] = _Shelf()
            self._caches[cache].token = token

    def size(self, cache: str, now: float) -> int:
        with self._lock:
            shelf = self._shelf(cache)
            shelf.sweep(round(now * MICROS))
            return len(shelf.entries)

    def _shelf(self, cache: str) -> _Shelf:
        return self._caches.setdefault(cache, _Shelf())


class _Shelf:
    """One cache: its entries by last use, and the leases of those that are computed."""

    __slots__ = ("ends", "entries", "leases", "token")

    def __init__(self) -> None:
        self.entries: OrderedDict[str, tuple[bytes, int]] = OrderedDict()
        self.ends: list[tuple[int, str]] = []
        self.leases: dict[str, tuple[int, int]] = {}
        self.token = 0

    def find(self, key: str, now: int) -> Hit | None:
        entry = self.entries.get(key)
        if entry is None or entry[1] <= now:
            return None
        self.entries.move_to_end(key)
        return Hit(entry[0], entry[1] / MICROS)

    def claim(self, key: str, life: int, now: int) -> Hit | Lease | Busy:
        hit = self.find(key, now)
        if hit is not None:
            return hit
        _, ends = self.leases.get(key, (0, 0))
        if ends > now:
            return Busy((ends - now) / MICROS)
        # Never a token that was given before, also where what was kept is lost.
        self.token = max(self.token + 1, now)
        self.leases[key] = (self.token, now + life)
        heapq.heappush(self.ends, (now + life + LEASE_KEPT, key))
        self.sweep(now)
        return Lease(self.token)

    def put(self, key: str, value: bytes, rule: CacheRule, now: int, lease: Lease | None) -> bool:
        if lease is not None:
            if self.leases.get(key, (0, 0))[0] != lease.token:
                return False
            del self.leases[key]
        ends = now + round(rule.ttl * MICROS)
        self.entries[key] = (value, ends)
        self.entries.move_to_end(key)
        heapq.heappush(self.ends, (ends, key))
        self.sweep(now)
        while len(self.entries) > rule.max_entries:
            self.entries.popitem(last=False)
        if len(self.ends) > 2 * (len(self.entries) + len(self.leases)) + 100:
            self._tidy()
        return True

    def sweep(self, now: int) -> None:
        """Forget what is over."""
        while self.ends and self.ends[0][0] <= now:
            _, key = heapq.heappop(self.ends)
            entry = self.entries.get(key)
            if entry is not None and entry[1] <= now:
                del self.entries[key]
            lease = self.leases.get(key)
            if lease is not None and lease[1] + LEASE_KEPT <= now:
                del self.leases[key]

    def _tidy(self) -> None:
        """Ends of what was put again since."""
        self.ends = [(ends, key) for key, (_, ends) in self.entries.items()]
        self.ends += [(ends + LEASE_KEPT, key) for key, (_, ends) in self.leases.items()]
        heapq.heapify(self.ends)
