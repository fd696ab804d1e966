"""``sqlite:///path``: accounts in a file that the processes of one machine share."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from os import PathLike, fspath
from typing import Any

from ..core import accounts as rule
from ..core.accounts import (
    Account,
    Change,
    Control,
    Grant,
    Hold,
    HoldState,
    Refusal,
    Reserve,
    Watch,
    WrongWindow,
)
from ..core.compact_json import names_text
from ..core.errors import ConfigurationError
from ..core.holds import Around, Draw, drawable
from ..core.ports import Held, Lost
from ..database import check_writable, open_database
from .sqlite_schema import MIGRATIONS, PART
from .tombstones import TOMBSTONE_SECONDS

__all__ = ["SQLiteStore"]

SWEPT_AT_ONCE = 500
"""Rows of a kind that one reap sweeps away at most, so that no call waits long for it."""
KEYS_AT_ONCE = 500
"""SQLite bounds the parameters of a statement."""

_ACCOUNTS = "SELECT key, spent, reserved FROM store_accounts"
_HOLD = (
    "SELECT state, amount, booked, accounts, expires_at, keyed, due, token, draws "
    "FROM store_holds LEFT JOIN store_draws ON hold = id WHERE id = ?"
)
_CONTROLS = "SELECT key, frozen, granted, granted_until FROM store_controls"


class SQLiteStore:
    """An :class:`~genops_ctx.core.ports.AccountStore` in a SQLite file (WAL), on a local disk.

    It survives the kill of any process; with ``synchronous="FULL"`` it survives the loss of power too.
    Its clock is the machine's: of its callers' times only the distances count, so that one whose clock
    is wrong takes nothing from the others. Amounts in nano-dollars, times in epoch seconds, ``timeout``
    in seconds.

    ``clock="caller"`` goes by the callers' times, for tests and simulations. Raises
    :class:`ConfigurationError` for a path that cannot be written.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        timeout: float = 2.0,
        synchronous: str = "NORMAL",
        clock: str = "machine",
    ) -> None:
        if clock not in ("machine", "caller"):
            raise ConfigurationError(f"clock must be machine or caller, not {clock!r}")
        self._callers_clock = clock == "caller"
        self.path = fspath(path)
        self.database = open_database(self.path, synchronous=synchronous)
        self._check_path()
        self.database.add_part(PART, MIGRATIONS)
        self._transactions = self.database.within(timeout)

    def _check_path(self) -> None:
        check_writable(self.database.path)

    def __repr__(self) -> str:
        return f"SQLiteStore({self.path!r})"

    def _now(self, callers: float) -> float:
        return callers if self._callers_clock else time.time()

    def reserve(self, wish: Reserve, now: float) -> Held | Refusal | WrongWindow:
        callers, now = now, self._now(now)
        if now != callers:
            wish = wish._replace(expires_at=wish.expires_at + now - callers)
        with self._transactions as connection:
            before, _, due = _find(connection, wish.id)
            if before is not None and before.state is not HoldState.HELD and due <= now:
                connection.execute("DELETE FROM store_holds WHERE id = ?", (wish.id,))
                before = None
            if before is not None:
                return Held(before.state, before.amount, False)
            accounts, endless = _looked_at(connection, wish)
            controls = dict.fromkeys([watch.control for watch in wish.watches if watch.control])
            said = _controls(connection, tuple(controls))
            around = _drawable(connection, wish) if wish.within else ()
            change = rule.reserve(wish, accounts, None, said, now, around)
            if not isinstance(change, Change):
                return change
            hold = change.hold
            _add(connection, change, wish.watches)
            if hold.draws:
                drawn = (wish.id, json.dumps(hold.draws))
                connection.execute("INSERT OR REPLACE INTO store_draws VALUES (?, ?)", drawn)
            for watch in wish.watches:
                if watch.ends_at is not None and watch.account in endless:
                    # A correction made it, which did not know of its window.
                    endless.discard(watch.account)
                    ends = (rule.kept_until(watch), watch.account)
                    connection.execute("UPDATE store_accounts SET gone_at = ? WHERE key = ?", ends)
            connection.execute(
                "INSERT INTO store_holds VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    wish.id,
                    hold.state.value,
                    hold.amount,
                    hold.booked,
                    names_text(hold.accounts),
                    hold.expires_at,
                    wish.keyed,
                    hold.expires_at,
                    wish.memo,
                    wish.token,
                ),
            )
        return Held(hold.state, hold.amount, True, tuple([watch.budget for watch in change.passed]))

    def settle(self, hold: str, actual: int, accounts: tuple[str, ...], now: float, completed: bool) -> None:
        """Joins the transaction of ``with store.database``, which a ledger in the same file writes to too."""
        now = self._now(now)
        with self._transactions as connection:
            before, _, due = _find(connection, hold)
            around = _around(connection, before)
            change = rule.settle(before, actual, accounts, completed=completed, around=around)
            _add(connection, change)
            if before is None:
                after = change.hold
                connection.execute(
                    "INSERT INTO store_holds VALUES (?, ?, ?, ?, ?, ?, 0, ?, '', '')",
                    (
                        hold,
                        after.state.value,
                        after.amount,
                        after.booked,
                        names_text(after.accounts),
                        after.expires_at,
                        now + TOMBSTONE_SECONDS,
                    ),
                )
            else:
                _end(connection, hold, change, _until(before, due, now))

    def release(self, hold: str, now: float, token: str = "") -> bool:
        now = self._now(now)
        with self._transactions as connection:
            before, keyed, due = _find(connection, hold)
            change = rule.release(before, token, _around(connection, before))
            if before is None:
                return False
            if change is None:
                return before.state is HoldState.RELEASED and rule.made_by(before, token)
            _add(connection, change)
            if before.state is HoldState.LOST:
                connection.execute("DELETE FROM store_losses WHERE id = ?", (hold,))
            if keyed:
                _end(connection, hold, change, _until(before, due, now))
            else:
                connection.execute("DELETE FROM store_holds WHERE id = ?", (hold,))
        return True

    def extend(self, hold: str, expires_at: float, now: float) -> None:
        expires_at += self._now(now) - now
        with self._transactions as connection:
            before, _, _ = _find(connection, hold)
            if before is None:
                return
            after = rule.extend(before, expires_at)
            if after is not before:
                connection.execute(
                    "UPDATE store_holds SET expires_at = ?, due = ? WHERE id = ?",
                    (after.expires_at, after.expires_at, hold),
                )

    def reap(self, now: float) -> Sequence[Lost]:
        """Expire what is over, forget what nobody can ask for, a bounded number each."""
        now = self._now(now)
        with self._transactions as connection:
            rows = connection.execute(
                "SELECT id, state FROM store_holds WHERE due <= ? ORDER BY due LIMIT ?", (now, SWEPT_AT_ONCE)
            ).fetchall()
            for name, state in rows:
                if state == HoldState.HELD:
                    self._expire(connection, name, now)
            over = [(name,) for name, state in rows if state != HoldState.HELD]
            connection.executemany("DELETE FROM store_holds WHERE id = ?", over)
            # Where a call that began in the window is still in flight, later.
            connection.execute(
                "UPDATE store_accounts SET gone_at = ? WHERE gone_at <= ? AND reserved <> 0",
                (now + TOMBSTONE_SECONDS, now),
            )
            connection.execute(
                "DELETE FROM store_accounts WHERE key IN "
                "(SELECT key FROM store_accounts WHERE gone_at <= ? LIMIT ?)",
                (now, SWEPT_AT_ONCE),
            )
            losses = connection.execute(
                "SELECT id, amount, accounts, expires_at, memo FROM store_losses"
            ).fetchall()
        return tuple(
            Lost(name, Hold(HoldState.LOST, amount, amount, _as_names(keys), expires_at), memo)
            for name, amount, keys, expires_at, memo in losses
        )

    def _expire(self, connection: sqlite3.Connection, name: str, now: float) -> None:
        before, _, _ = _find(connection, name)
        change = rule.expire(before, now, _around(connection, before)) if before is not None else None
        if before is None or change is None:
            return
        _add(connection, change)
        connection.execute(
            "INSERT OR REPLACE INTO store_losses "
            "SELECT id, amount, accounts, expires_at, memo FROM store_holds WHERE id = ?",
            (name,),
        )
        _end(connection, name, change, now + TOMBSTONE_SECONDS)

    def acknowledge(self, holds: Sequence[str]) -> None:
        with self._transactions as connection:
            connection.executemany("DELETE FROM store_losses WHERE id = ?", [(name,) for name in holds])

    def accounts(self, keys: Sequence[str] | None = None) -> Mapping[str, Account]:
        if keys is None:
            rows = self._transactions.read("SELECT key, spent, reserved FROM store_accounts")
            return {key: Account(spent, reserved) for key, spent, reserved in rows}
        accounts = dict.fromkeys(keys, Account())
        for start in range(0, len(keys), KEYS_AT_ONCE):
            some = keys[start : start + KEYS_AT_ONCE]
            for key, spent, reserved in self._transactions.read(_among(_ACCOUNTS, len(some)), some):
                accounts[key] = Account(spent, reserved)
        return accounts

    def adjust(self, key: str, spent: int) -> None:
        with self._transactions as connection:
            connection.execute(
                "INSERT INTO store_accounts VALUES (?, ?, 0, NULL) "
                "ON CONFLICT (key) DO UPDATE SET spent = spent + excluded.spent",
                (key, spent),
            )

    def reset(self, key: str) -> int:
        with self._transactions as connection:
            row = connection.execute("SELECT spent FROM store_accounts WHERE key = ?", (key,)).fetchone()
            spent = int(row[0]) if row is not None else 0
            if spent:
                connection.execute("UPDATE store_accounts SET spent = 0 WHERE key = ?", (key,))
        return spent

    def controls(self, keys: Sequence[str] | None = None) -> Mapping[str, Control]:
        if keys is None:
            return _controls_in(self._transactions.read(_CONTROLS))
        controls = dict.fromkeys(keys, Control())
        for start in range(0, len(keys), KEYS_AT_ONCE):
            some = keys[start : start + KEYS_AT_ONCE]
            controls |= _controls_in(self._transactions.read(_among(_CONTROLS, len(some)), some))
        return controls

    def set_control(self, key: str, *, frozen: bool | None = None, grant: Grant | None = None) -> Control:
        with self._transactions as connection:
            before = _controls(connection, (key,)).get(key, Control())
            control = before.said(frozen, grant)
            connection.execute("INSERT OR REPLACE INTO store_controls VALUES (?, ?, ?, ?)", (key, *control))
        return control

    def mark(self, key: str, now: float, until: float) -> bool:
        now = self._now(now)
        with self._transactions as connection:
            connection.execute("DELETE FROM store_marks WHERE until <= ?", (now,))
            return (
                connection.execute("INSERT OR IGNORE INTO store_marks VALUES (?, ?)", (key, until)).rowcount
                == 1
            )

    def close(self) -> None:
        """Close the file; it is opened again where the store is used again."""
        self.database.close()


def _find(connection: sqlite3.Connection, name: str) -> tuple[Hold | None, bool, float]:
    """A hold, whether its operation was named, and when it expires or is forgotten."""
    row = connection.execute(_HOLD, (name,)).fetchone()
    if row is None:
        return None, False, 0.0
    state, amount, booked, keys, expires_at, keyed, due, token, drawn = row
    draws = tuple(Draw(*each) for each in json.loads(drawn)) if drawn else ()
    hold = Hold(HoldState(state), amount, booked, _as_names(keys), expires_at, token, draws)
    return hold, bool(keyed), due


def _holds(connection: sqlite3.Connection, names: Iterable[str]) -> dict[str, Hold]:
    found = {name: _find(connection, name)[0] for name in names}
    return {name: hold for name, hold in found.items() if hold is not None}


def _drawable(connection: sqlite3.Connection, wish: Reserve) -> tuple[Around, ...]:
    return drawable(wish.within, _holds(connection, wish.within), rule.booked_in(wish))


def _around(connection: sqlite3.Connection, hold: Hold | None) -> dict[str, Hold]:
    """The holds that one draws on."""
    if hold is None or not hold.draws:
        return {}
    return _holds(connection, [draw.hold for draw in hold.draws if draw.hold])


def _until(before: Hold, due: float, now: float) -> float:
    """An attempt that is corrected is remembered from its correction on."""
    ended = due if before.state is not HoldState.HELD else 0.0
    return max(now + TOMBSTONE_SECONDS, ended)


def _end(connection: sqlite3.Connection, name: str, change: Change, until: float) -> None:
    connection.execute(
        "UPDATE store_holds SET state = ?, booked = ?, due = ?, memo = '' WHERE id = ?",
        (change.hold.state.value, change.hold.booked, until, name),
    )


def _looked_at(connection: sqlite3.Connection, wish: Reserve) -> tuple[dict[str, Account], set[str]]:
    """The accounts that a wish looks at, and those of them of which no end is known."""
    accounts, endless = {}, set()
    keys = rule.accounts_of(wish)
    statement = _among("SELECT key, spent, reserved, gone_at FROM store_accounts", len(keys))
    for key, spent, reserved, gone_at in connection.execute(statement, keys):
        accounts[key] = Account(spent, reserved)
        if gone_at is None:
            endless.add(key)
    return accounts, endless


def _controls(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Control]:
    if not keys:
        return {}
    return _controls_in(connection.execute(_among(_CONTROLS, len(keys)), keys))


def _controls_in(rows: Iterable[tuple[Any, ...]]) -> dict[str, Control]:
    return {key: Control(bool(frozen), granted, until) for key, frozen, granted, until in rows}


@lru_cache(maxsize=1024)
def _as_names(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


@lru_cache(maxsize=256)
def _among(statement: str, number: int) -> str:
    return f"{statement} WHERE key IN ({','.join('?' * number)})"


def _add(connection: sqlite3.Connection, change: Change, watches: Iterable[Watch] = ()) -> None:
    """Add a change to each of its accounts; ``watches`` say how long new ones are kept."""
    for paid in change.around:
        connection.execute("UPDATE store_holds SET amount = ? WHERE id = ?", (paid.hold.amount, paid.name))
        among = _among("UPDATE store_accounts SET reserved = reserved + ?", len(paid.hold.accounts))
        connection.execute(among, (paid.reserved, *paid.hold.accounts))
    keys = change.hold.accounts
    if not keys:
        return
    updated = connection.execute(
        _among("UPDATE store_accounts SET spent = spent + ?, reserved = reserved + ?", len(keys)),
        (change.spent, change.reserved, *keys),
    )
    if updated.rowcount == len(keys):
        return
    there = {row[0] for row in connection.execute(_among(_ACCOUNTS, len(keys)), keys)}
    ends: dict[str, float | None] = {}
    for watch in watches:
        ends.setdefault(watch.account, rule.kept_until(watch))
    connection.executemany(
        "INSERT INTO store_accounts VALUES (?, ?, ?, ?)",
        [(key, change.spent, change.reserved, ends.get(key)) for key in keys if key not in there],
    )
