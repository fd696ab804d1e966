"""``memory://``: accounts of one process, under one lock."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

from ..core import accounts as rule
from ..core.accounts import Account, Change, Control, Grant, Hold, HoldState, Refusal, Reserve, WrongWindow
from ..core.holds import drawable
from ..core.ports import Held, Lost
from ..core.process import ForkedLock
from .tombstones import LOCAL_SECONDS, TOMBSTONE_SECONDS

__all__ = ["MemoryStore"]

_NEVER = float("inf")
_EMPTY = Account()


class MemoryStore:
    """An :class:`~genops_ctx.core.ports.AccountStore` in this process's memory.

    What it holds ends with the process. Amounts in nano-dollars, times in epoch seconds.
    """

    def __init__(self, *, remember: float = LOCAL_SECONDS) -> None:
        """``remember``: seconds that the end of an unnamed attempt is kept."""
        self._kept = remember
        self._lock = ForkedLock()
        self._accounts: dict[str, Account] = {}
        self._holds: dict[str, Hold] = {}
        self._expiries: list[tuple[float, str]] = []
        self._ended: list[tuple[float, str]] = []
        self._forget_at: dict[str, float] = {}
        self._keyed: set[str] = set()
        self._memos: dict[str, str] = {}
        self._lost: dict[str, Lost] = {}
        self._controls: dict[str, Control] = {}
        self._windows: set[str] = set()
        self._closed: list[tuple[float, str]] = []
        self._marks: dict[str, float] = {}
        self._marks_end: list[tuple[float, str]] = []

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal | WrongWindow:
        with self._lock:
            if self._forget_at.get(wish.id, _NEVER) <= now:
                self._drop(wish.id)
            before = self._holds.get(wish.id)
            around = drawable(wish.within, self._holds, rule.booked_in(wish)) if wish.within else ()
            change = rule.reserve(wish, self._accounts, before, self._controls, now, around)
            if not isinstance(change, Change):
                return change
            if before is None:
                self._apply(wish.id, change)
                heapq.heappush(self._expiries, (wish.expires_at, wish.id))
                if wish.keyed:
                    self._keyed.add(wish.id)
                if wish.memo:
                    self._memos[wish.id] = wish.memo
                self._note_ends(wish)
        hold = change.hold
        passed = tuple([watch.budget for watch in change.passed])
        return Held(hold.state, hold.amount, before is None, passed)

    def settle(self, hold: str, actual: int, accounts: tuple[str, ...], now: float, completed: bool) -> None:
        with self._lock:
            before = self._holds.get(hold)
            change = rule.settle(before, actual, accounts, completed=completed, around=self._holds)
            self._apply(hold, change)
            self._remember(hold, now)

    def release(self, hold: str, now: float, token: str = "") -> bool:
        with self._lock:
            before = self._holds.get(hold)
            change = rule.release(before, token, self._holds)
            if before is not None and change is not None:
                self._apply(hold, change)
                if before.state is HoldState.LOST:  # else the loss is of an attempt long before
                    self._lost.pop(hold, None)
                self._end(hold, now)
                return True
            return before is not None and before.state is HoldState.RELEASED and rule.made_by(before, token)

    def extend(self, hold: str, expires_at: float, now: float) -> None:
        with self._lock:
            before = self._holds.get(hold)
            if before is not None:
                self._holds[hold] = rule.extend(before, expires_at)
                heapq.heappush(self._expiries, (expires_at, hold))

    def reap(self, now: float) -> Sequence[Lost]:
        with self._lock:
            while self._expiries and self._expiries[0][0] <= now:
                _, name = heapq.heappop(self._expiries)
                hold = self._holds.get(name)
                change = rule.expire(hold, now, self._holds) if hold is not None else None
                if change is not None:
                    self._apply(name, change)
                    self._lost[name] = Lost(name, change.hold._replace(token=""), self._memos.get(name, ""))
                    self._remember(name, now)
            self._forget(now)
            return tuple(self._lost.values())

    def acknowledge(self, holds: Sequence[str]) -> None:
        with self._lock:
            for name in holds:
                self._lost.pop(name, None)

    def accounts(self, keys: Sequence[str] | None = None) -> Mapping[str, Account]:
        with self._lock:
            if keys is None:
                return dict(self._accounts)
            return {key: self._accounts.get(key, Account()) for key in keys}

    def adjust(self, key: str, spent: int) -> None:
        with self._lock:
            account = self._accounts.get(key, Account())
            self._accounts[key] = account._replace(spent=account.spent + spent)

    def reset(self, key: str) -> int:
        with self._lock:
            account = self._accounts.get(key, _EMPTY)
            if account.spent:
                self._accounts[key] = account._replace(spent=0)
            return account.spent

    def controls(self, keys: Sequence[str] | None = None) -> Mapping[str, Control]:
        with self._lock:
            if keys is None:
                return dict(self._controls)
            return {key: self._controls.get(key, Control()) for key in keys}

    def set_control(self, key: str, *, frozen: bool | None = None, grant: Grant | None = None) -> Control:
        with self._lock:
            control = self._controls.get(key, Control()).said(frozen, grant)
            self._controls[key] = control
            return control

    def mark(self, key: str, now: float, until: float) -> bool:
        with self._lock:
            while self._marks_end and self._marks_end[0][0] <= now:
                over, name = heapq.heappop(self._marks_end)
                if self._marks.get(name) == over:
                    del self._marks[name]
            if key in self._marks:
                return False
            self._marks[key] = until
            heapq.heappush(self._marks_end, (until, key))
            return True

    def close(self) -> None:
        """Nothing to close."""

    def _apply(self, name: str, change: Change) -> None:
        self._holds[name] = change.hold
        hold, spent, reserved, _, around = change
        accounts = self._accounts
        for key in hold.accounts:
            before_spent, before_reserved = accounts.get(key, _EMPTY)
            accounts[key] = Account(before_spent + spent, before_reserved + reserved)
        for paid in around:
            self._holds[paid.name] = paid.hold
            for key in paid.hold.accounts:
                account = accounts.get(key, _EMPTY)
                accounts[key] = account._replace(reserved=account.reserved + paid.reserved)

    def _note_ends(self, wish: Reserve) -> None:
        """Remember when an account may go."""
        for watch in wish.watches:
            if watch.account not in self._windows:
                gone_at = rule.kept_until(watch)
                if gone_at is not None:
                    self._windows.add(watch.account)
                    heapq.heappush(self._closed, (gone_at, watch.account))

    def _end(self, name: str, now: float) -> None:
        """Forget a hold that nobody can ask for again."""
        if name in self._keyed:
            self._remember(name, now)
        else:
            self._drop(name)

    def _remember(self, name: str, now: float) -> None:
        # An attempt that is corrected is remembered from its correction on; the entry that the heap
        # has for its first end then says nothing any more.
        asked_for = name in self._keyed or self._holds[name].state is HoldState.LOST
        kept = TOMBSTONE_SECONDS if asked_for else self._kept
        until = max(now + kept, self._forget_at.get(name, 0.0))
        self._forget_at[name] = until
        self._memos.pop(name, None)
        heapq.heappush(self._ended, (until, name))

    def _drop(self, name: str) -> None:
        self._forget_at.pop(name, None)
        self._holds.pop(name, None)
        self._memos.pop(name, None)
        self._keyed.discard(name)

    def _forget(self, now: float) -> None:
        while self._ended and self._ended[0][0] <= now:
            until, name = heapq.heappop(self._ended)
            if self._forget_at.get(name) == until:
                self._drop(name)
        while self._closed and self._closed[0][0] <= now:
            _, key = heapq.heappop(self._closed)
            if self._accounts.get(key, Account()).reserved:
                # A call that began in the window is still in flight.
                heapq.heappush(self._closed, (now + TOMBSTONE_SECONDS, key))
                continue
            self._windows.discard(key)
            self._accounts.pop(key, None)
