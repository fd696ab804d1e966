# ruff: noqa: S608 (the statements are put together of this module's own names)
"""Evidence on its way between processes on any number of machines: a table beside a PostgreSQL ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..core.ports import LogEntry
from .evidence_log import DROPPED_AT_ONCE
from .postgres_connection import PostgresConnections

if TYPE_CHECKING:
    from psycopg import Connection

__all__ = ["PostgresEvidenceLog"]

PART = "evidence"

_NOW = "extract(epoch FROM clock_timestamp())::double precision"
_COLUMNS = "number, at, kind, content"
# One statement: the row of who led before is locked until it is known who leads now.
_LEAD = f"""
INSERT INTO evidence_reader AS led (one, who, seen, until, gap)
VALUES (1, %(who)s, {_NOW}, {_NOW} + %(seconds)s, 'infinity')
ON CONFLICT (one) DO UPDATE SET who = excluded.who, seen = excluded.seen, until = excluded.until,
    gap = CASE WHEN led.who = excluded.who THEN 0 ELSE greatest(0, excluded.seen - led.seen) END
WHERE led.who = excluded.who OR led.until <= {_NOW}
RETURNING gap
"""


def _tables(connection: Connection[tuple[Any, ...]]) -> None:
    """Version 1."""
    connection.execute(
        "CREATE TABLE evidence_log (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "
        "at double precision NOT NULL, kind text NOT NULL, content text NOT NULL)"
    )
    connection.execute("CREATE INDEX evidence_log_at ON evidence_log (at)")
    connection.execute("CREATE INDEX evidence_log_kind ON evidence_log (kind, number)")
    connection.execute(
        "CREATE TABLE evidence_reader (one int PRIMARY KEY CHECK (one = 1), who text NOT NULL, "
        "seen double precision NOT NULL, until double precision NOT NULL, gap double precision NOT NULL)"
    )


class PostgresEvidenceLog:
    """A :class:`~genops_ctx.core.ports.EvidenceLog` in the database of a ledger, by the server's clock."""

    remote = True

    def __init__(self, url: str) -> None:
        self._server = PostgresConnections(url, (_tables,), part=PART)

    def add(self, at: float, entries: Sequence[tuple[str, str]]) -> None:
        places = ", ".join(("(%s, %s, %s)",) * len(entries))
        values = [value for kind, content in entries for value in (at, kind, content)]
        # Once more after a broken connection may write them twice: evidence told twice is told once.
        self._server.run(
            lambda connection: connection.execute(
                f"INSERT INTO evidence_log (at, kind, content) VALUES {places}",
                values,
            )
        )

    def after(self, number: int, kind: str = "", limit: int = 1000) -> Sequence[LogEntry]:
        of_kind = " AND kind = %s" if kind else ""
        return self._entries(
            f"SELECT {_COLUMNS} FROM evidence_log WHERE number > %s{of_kind} ORDER BY number LIMIT %s",
            (number, *([kind] if kind else ()), limit),
        )

    def these(self, numbers: Sequence[int]) -> Sequence[LogEntry]:
        statement = f"SELECT {_COLUMNS} FROM evidence_log WHERE number = ANY(%s) ORDER BY number"
        return self._entries(statement, (list(numbers),))

    def newest(self) -> int:
        row = self._server.run(
            lambda connection: connection.execute("SELECT max(number) FROM evidence_log").fetchone()
        )
        return 0 if row is None or row[0] is None else int(row[0])

    def lead(self, who: str, seconds: float) -> float | None:
        row = self._server.run(
            lambda connection: connection.execute(_LEAD, {"who": who, "seconds": seconds}).fetchone()
        )
        return None if row is None else float(row[0])

    def resign(self, who: str) -> None:
        self._server.run(
            lambda connection: connection.execute(
                f"UPDATE evidence_reader SET seen = {_NOW}, until = 0 WHERE who = %s AND until > 0",
                (who,),
            )
        )

    def forget(self, before: float, most: int) -> bool:
        found = "SELECT number FROM evidence_log WHERE"
        statement = (
            f"DELETE FROM evidence_log WHERE number IN (({found} at < %s ORDER BY at LIMIT %s) UNION "
            f"({found} number <= (SELECT max(number) FROM evidence_log) - %s ORDER BY number LIMIT %s))"
        )
        bounds = (before, DROPPED_AT_ONCE, most, DROPPED_AT_ONCE)
        dropped = self._server.run(lambda connection: connection.execute(statement, bounds).rowcount)
        return dropped < DROPPED_AT_ONCE

    def _entries(self, statement: str, parameters: Sequence[object]) -> list[LogEntry]:
        rows = self._server.run(lambda connection: connection.execute(statement, parameters).fetchall())
        return [LogEntry(*row) for row in rows]
