"""Evidence on its way between the processes of one machine: a table beside a ledger in a SQLite file."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence

from ..core.ports import LogEntry
from ..database import Database

__all__ = ["DROPPED_AT_ONCE", "SQLiteEvidenceLog"]

PART = "evidence"

DROPPED_AT_ONCE = 10_000
"""Entries; whoever books a call waits as long as that takes."""


def _tables(connection: sqlite3.Connection) -> None:
    """Version 1."""
    connection.execute(
        # AUTOINCREMENT: a number is never given twice, though old entries are dropped.
        "CREATE TABLE evidence_log (number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, "
        "kind TEXT NOT NULL, content TEXT NOT NULL)"
    )
    connection.execute("CREATE INDEX evidence_log_at ON evidence_log (at)")
    connection.execute("CREATE INDEX evidence_log_kind ON evidence_log (kind, number)")
    connection.execute(
        "CREATE TABLE evidence_reader (one INTEGER PRIMARY KEY CHECK (one = 1), who TEXT NOT NULL, "
        "seen REAL NOT NULL, until REAL NOT NULL)"
    )


class SQLiteEvidenceLog:
    """A :class:`~genops_ctx.core.ports.EvidenceLog` in a ledger's file."""

    remote = False

    def __init__(self, database: Database) -> None:
        self._database = database
        database.add_part(PART, (_tables,))

    def add(self, at: float, entries: Sequence[tuple[str, str]]) -> None:
        with self._database as connection:
            connection.executemany(
                "INSERT INTO evidence_log (at, kind, content) VALUES (?, ?, ?)",
                [(at, kind, content) for kind, content in entries],
            )

    def after(self, number: int, kind: str = "", limit: int = 1000) -> Sequence[LogEntry]:
        of_kind, wanted = (" AND kind = ?", [kind]) if kind else ("", [])
        rows = self._database.read(
            f"SELECT number, at, kind, content FROM evidence_log WHERE number > ?{of_kind} "  # noqa: S608
            "ORDER BY number LIMIT ?",
            (number, *wanted, limit),
        )
        return [LogEntry(*row) for row in rows]

    def these(self, numbers: Sequence[int]) -> Sequence[LogEntry]:
        """None: an entry has its number once the file is its writer's alone, so none comes out of turn."""
        return ()

    def newest(self) -> int:
        rows = self._database.read("SELECT max(number) FROM evidence_log")
        return rows[0][0] or 0 if rows else 0

    def lead(self, who: str, seconds: float) -> float | None:
        now = time.time()
        with self._database as connection:
            row = connection.execute("SELECT who, seen, until FROM evidence_reader").fetchone()
            if row is not None and row[0] != who and now < row[2] <= now + 10 * seconds:
                return None
            connection.execute(
                "INSERT OR REPLACE INTO evidence_reader VALUES (1, ?, ?, ?)", (who, now, now + seconds)
            )
        if row is None:
            return float("inf")
        return 0.0 if row[0] == who else max(0.0, now - float(row[1]))

    def resign(self, who: str) -> None:
        now = time.time()
        with self._database as connection:
            connection.execute(
                "UPDATE evidence_reader SET seen = ?, until = 0 WHERE who = ? AND until > 0", (now, who)
            )

    def forget(self, before: float, most: int) -> bool:
        statements = (
            ("SELECT number FROM evidence_log WHERE at < ? ORDER BY at LIMIT ?", before),
            (
                "SELECT number FROM evidence_log WHERE number <= (SELECT max(number) FROM evidence_log) - ? "
                "ORDER BY number LIMIT ?",
                most,
            ),
        )
        dropped = 0
        for found, bound in statements:
            with self._database as connection:
                dropped += connection.execute(
                    f"DELETE FROM evidence_log WHERE number IN ({found})",  # noqa: S608
                    (bound, DROPPED_AT_ONCE),
                ).rowcount
        return dropped < DROPPED_AT_ONCE
