"""``memory://``: accounts of one process, under one lock."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence

from ..core import accounts as rule
from ..core.accounts import Account, Change, Hold, Refusal, Reserve
from ..core.ports import Held

__all__ = ["MemoryStore"]

TOMBSTONE_SECONDS = 86_400.0
"""How long the end of an attempt is remembered, so that a replay of it is not sent again."""


class MemoryStore:
    """An :class:`~genops_ctx.core.ports.AccountStore` in this process's memory.

    What it holds ends with the process. Amounts in nano-dollars, times in epoch seconds.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {}
        self._holds: dict[str, Hold] = {}
        self._expiries: list[tuple[float, str]] = []
        self._ended: list[tuple[float, str]] = []
        self._forget_at: dict[str, float] = {}
        self._keyed: set[str] = set()

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal:
        with self._lock:
            before = self._holds.get(wish.id)
            change = rule.reserve(wish, self._accounts, before)
            if isinstance(change, Refusal):
                return change
            if before is None:
                self._apply(wish.id, change)
                heapq.heappush(self._expiries, (wish.expires_at, wish.id))
                if wish.keyed:
                    self._keyed.add(wish.id)
            self._forget(now)
        hold = change.hold
        passed = tuple(watch.budget for watch in change.passed)
        return Held(hold.state, hold.amount, before is None, passed)

    def settle(self, hold: str, actual: int, accounts: tuple[str, ...], now: float, completed: bool) -> None:
        with self._lock:
            self._apply(hold, rule.settle(self._holds.get(hold), actual, accounts, completed=completed))
            self._remember(hold, now)

    def release(self, hold: str, now: float) -> None:
        with self._lock:
            change = rule.release(self._holds.get(hold))
            if change is not None:
                self._apply(hold, change)
                self._end(hold, now, remember=hold in self._keyed)

    def extend(self, hold: str, expires_at: float) -> None:
        with self._lock:
            before = self._holds.get(hold)
            if before is not None:
                self._holds[hold] = rule.extend(before, expires_at)
                heapq.heappush(self._expiries, (expires_at, hold))

    def reap(self, now: float) -> Sequence[tuple[str, Hold]]:
        lost = []
        with self._lock:
            while self._expiries and self._expiries[0][0] <= now:
                _, name = heapq.heappop(self._expiries)
                hold = self._holds.get(name)
                change = rule.expire(hold, now) if hold is not None else None
                if change is not None:
                    self._apply(name, change)
                    self._end(name, now, remember=True)
                    lost.append((name, change.hold))
            self._forget(now)
        return lost

    def account(self, key: str) -> Account:
        with self._lock:
            return self._accounts.get(key, Account())

    def _apply(self, name: str, change: Change) -> None:
        self._holds[name] = change.hold
        for key in change.hold.accounts:
            account = self._accounts.get(key, Account())
            self._accounts[key] = Account(account.spent + change.spent, account.reserved + change.reserved)

    def _end(self, name: str, now: float, *, remember: bool) -> None:
        """Keep what may be asked for again: named operations, and losses that evidence may correct."""
        if remember:
            self._remember(name, now)
        else:
            del self._holds[name]
            self._forget_at.pop(name, None)

    def _remember(self, name: str, now: float) -> None:
        # An attempt that is corrected is remembered from its correction on; the entry that the heap
        # has for its first end then says nothing any more.
        until = max(now + TOMBSTONE_SECONDS, self._forget_at.get(name, 0.0))
        self._forget_at[name] = until
        heapq.heappush(self._ended, (until, name))

    def _forget(self, now: float) -> None:
        while self._ended and self._ended[0][0] <= now:
            until, name = heapq.heappop(self._ended)
            if self._forget_at.get(name) == until:
                del self._forget_at[name]
                self._keyed.discard(name)
                self._holds.pop(name, None)
