"""Rate limits in a SQLite file, for the processes of one machine."""

from __future__ import annotations

import sqlite3

from ..core import adaptive
from ..core import ratelimit as rule_of
from ..core.adaptive import AdaptiveRate, Observed
from ..core.breaker import MICROS
from ..core.ratelimit import Admitted, Bucket, Limited, RateLimit
from ..database import Transactions

__all__ = ["SQLiteLimits"]

SWEPT_AT_ONCE = 20
"""Full buckets that are forgotten where a new one is made."""

_BUCKET = "SELECT tat, part, of, last, begun, given FROM buckets WHERE key = ?"
_RATE = "SELECT rate, calls, failures FROM rates WHERE key = ?"


class SQLiteLimits:
    """A :class:`~genops_ctx.core.resilience_ports.LimitStore` in a SQLite file."""

    def __init__(self, transactions: Transactions) -> None:
        self._transactions = transactions

    def admit(
        self, key: str, rule: RateLimit, now: float, *, cost: int = 1, patience: float = 0.0
    ) -> Admitted | Limited:
        rule.check_cost(cost)
        at = round(now * MICROS)
        with self._transactions as connection:
            before = _find(connection, key)
            bucket, decision = rule_of.admit(before, rule, cost, round(patience * MICROS), at)
            if before is None:
                connection.execute(
                    "DELETE FROM buckets WHERE key IN "
                    "(SELECT key FROM buckets WHERE tat < ? ORDER BY tat LIMIT ?)",
                    (at - rule_of.SET_BACK, SWEPT_AT_ONCE),
                )
            if bucket is not None and bucket != before:
                _keep(connection, key, bucket)
        return decision

    def give_back(self, key: str, rule: RateLimit, admitted: Admitted, now: float) -> None:
        with self._transactions as connection:
            before = _find(connection, key)
            bucket = rule_of.give_back(before, rule, admitted)
            if bucket is not None and bucket != before:
                _keep(connection, key, bucket)

    def remaining(self, key: str, rule: RateLimit, now: float) -> int:
        rows = self._transactions.read(_BUCKET, (key,))
        return rule_of.remaining(Bucket(*rows[0]) if rows else None, rule, round(now * MICROS))

    def observe(self, key: str, rule: AdaptiveRate, failed: bool, now: float) -> int:
        with self._transactions as connection:
            row = connection.execute(_RATE, (key,)).fetchone()
            seen = adaptive.observe(Observed(*row) if row else None, rule, failed)
            connection.execute("INSERT OR REPLACE INTO rates VALUES (?, ?, ?, ?)", (key, *seen))
        return seen.rate

    def rate(self, key: str, rule: AdaptiveRate) -> int:
        rows = self._transactions.read(_RATE, (key,))
        return adaptive.rate_of(Observed(*rows[0]) if rows else None, rule)


def _find(connection: sqlite3.Connection, key: str) -> Bucket | None:
    row = connection.execute(_BUCKET, (key,)).fetchone()
    return Bucket(*row) if row else None


def _keep(connection: sqlite3.Connection, key: str, bucket: Bucket) -> None:
    connection.execute("INSERT OR REPLACE INTO buckets VALUES (?, ?, ?, ?, ?, ?, ?)", (key, *bucket))
