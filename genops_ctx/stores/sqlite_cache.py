"""Cache entries and leases in a SQLite file, for the processes of one machine."""

from __future__ import annotations

import sqlite3

from ..core.breaker import MICROS
from ..core.cache import Busy, CacheRule, Hit, Lease
from ..database import Transactions
from .memory_cache import LEASE_KEPT

__all__ = ["SQLiteCache"]


class SQLiteCache:
    """A :class:`~genops_ctx.core.resilience_ports.CacheStore` in a SQLite file."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def get(self, cache: str, key: str, now: float) -> Hit | None:
        at = round(now * MICROS)
        there = "SELECT 1 FROM entries WHERE cache = ? AND key = ? AND ends > ?"
        if not self._transactions.read(there, (cache, key, at)):
            return None  # without a lock
        with self._transactions as connection:
            return _look(connection, cache, key, at)

    def claim(self, cache: str, key: str, rule: CacheRule, now: float) -> Hit | Lease | Busy:
        at = round(now * MICROS)
        with self._transactions as connection:
            hit = _look(connection, cache, key, at)
            if hit is not None:
                return hit
            row = connection.execute(
                "SELECT ends FROM leases WHERE cache = ? AND key = ?", (cache, key)
            ).fetchone()
            if row and row[0] > at:
                return Busy((row[0] - at) / MICROS)
            # Never a token that was given before, also where the file was deleted.
            _make(connection, cache)
            ((token,),) = connection.execute(
                "UPDATE caches SET token = max(token + 1, ?) WHERE name = ? RETURNING token", (at, cache)
            ).fetchall()
            ends = at + round(rule.lease * MICROS)
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?, ?)", (cache, key, token, ends))
            _sweep(connection, cache, at)
        return Lease(token)

    def put(
        self, cache: str, key: str, value: bytes, rule: CacheRule, now: float, *, lease: Lease | None = None
    ) -> bool:
        at = round(now * MICROS)
        with self._transactions as connection:
            if lease is not None and not _end(connection, cache, key, lease):
                return False
            _make(connection, cache)
            connection.execute("DELETE FROM entries WHERE cache = ? AND key = ?", (cache, key))
            ends = at + round(rule.ttl * MICROS)
            entry = (cache, key, value, ends, _use(connection, cache))
            connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", entry)
            _sweep(connection, cache, at)
            ((many,),) = connection.execute("SELECT entries FROM caches WHERE name = ?", (cache,)).fetchall()
            if many > rule.max_entries:
                connection.execute(
                    "DELETE FROM entries WHERE rowid IN "
                    "(SELECT rowid FROM entries WHERE cache = ? ORDER BY used LIMIT ?)",
                    (cache, many - rule.max_entries),
                )
        return True

    def release(self, cache: str, key: str, lease: Lease) -> None:
        with self._transactions as connection:
            _end(connection, cache, key, lease)

    def delete(self, cache: str, key: str) -> None:
        with self._transactions as connection:
            connection.execute("DELETE FROM leases WHERE cache = ? AND key = ?", (cache, key))
            connection.execute("DELETE FROM entries WHERE cache = ? AND key = ?", (cache, key))

    def clear(self, cache: str) -> None:
        with self._transactions as connection:
            connection.execute("DELETE FROM leases WHERE cache = ?", (cache,))
            connection.execute("DELETE FROM entries WHERE cache = ?", (cache,))

    def size(self, cache: str, now: float) -> int:
        question = "SELECT count(*) FROM entries WHERE cache = ? AND ends > ?"
        rows = self._transactions.read(question, (cache, round(now * MICROS)))
        return int(rows[0][0]) if rows else 0


def _look(connection: sqlite3.Connection, cache: str, key: str, now: int) -> Hit | None:
    row = connection.execute(
        "SELECT value, ends FROM entries WHERE cache = ? AND key = ? AND ends > ?", (cache, key, now)
    ).fetchone()
    if row is None:
        return None
    used = (_use(connection, cache), cache, key)
    connection.execute("UPDATE entries SET used = ? WHERE cache = ? AND key = ?", used)
    return Hit(bytes(row[0]), row[1] / MICROS)


def _use(connection: sqlite3.Connection, cache: str) -> int:
    rows = connection.execute("UPDATE caches SET used = used + 1 WHERE name = ? RETURNING used", (cache,))
    return int(rows.fetchall()[0][0])


def _make(connection: sqlite3.Connection, cache: str) -> None:
    connection.execute("INSERT OR IGNORE INTO caches VALUES (?, 0, 0, 0)", (cache,))


def _end(connection: sqlite3.Connection, cache: str, key: str, lease: Lease) -> bool:
    """Whether it was the newest lease of the key; it is over now."""
    ended = connection.execute(
        "DELETE FROM leases WHERE cache = ? AND key = ? AND token = ?", (cache, key, lease.token)
    )
    return ended.rowcount > 0


def _sweep(connection: sqlite3.Connection, cache: str, now: int) -> None:
    connection.execute("DELETE FROM entries WHERE cache = ? AND ends <= ?", (cache, now))
    connection.execute("DELETE FROM leases WHERE cache = ? AND ends <= ?", (cache, now - LEASE_KEPT))
