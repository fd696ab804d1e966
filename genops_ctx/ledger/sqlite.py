# ruff: noqa: S608 (the statements are put together of this package's own names)
"""``sqlite:///path``: charges in one file, for the threads and processes of one machine."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..core.ports import AccountStore, AuditEvent, Witness
from ..core.records import Charge
from ..database import Database, open_database
from . import sqlite_tallies
from .evidence_log import SQLiteEvidenceLog
from .recent_costs import RECENT_COSTS
from .rollups import Series, roll_up, totals
from .rows import (
    CHARGE_COLUMNS,
    LINE_COLUMNS,
    charge_row,
    charges_of,
    line_rows,
    without_surrogates,
)
from .schema import MIGRATIONS, PART
from .tallies import Batch, Tally
from .totals import Total, day_of, parse_query

__all__ = ["SQLiteLedger"]

PAGE = 500
"""Charges read at a time."""


def _insert(table: str, columns: str, rest: str = "") -> str:
    places = ", ".join("?" * len(columns.split(",")))
    return f"INSERT INTO {table} ({columns}) VALUES ({places}){rest}"


_CHARGE = _insert("charges", CHARGE_COLUMNS, " ON CONFLICT (id) DO NOTHING")
_LINE = _insert("lines", LINE_COLUMNS)
# '$' is what follows '#': between the two are the ids that begin with "operation#".
_OF_OPERATION = (
    f"SELECT seq, {CHARGE_COLUMNS} FROM charges WHERE seq IN ("
    "SELECT seq FROM charges WHERE id >= ? AND id < ? AND operation = ? UNION "
    "SELECT seq FROM charges WHERE operation = ? AND id <> operation || '#' || attempt) ORDER BY seq"
)
_AUDIT = _insert("audits", "at, action, subject, actor, reason, nanos, until")
_RECENT_COSTS = RECENT_COSTS.format(count="?")
_SETTLED = "DELETE FROM outbox WHERE charge = (SELECT seq FROM charges WHERE id = ?)"
_WITNESS = "INSERT OR REPLACE INTO witnesses (store, hold, at) VALUES (?, ?, ?)"


class SQLiteLedger:
    """A :class:`~genops_ctx.core.ports.Ledger` in a SQLite file, made by the first charge.

    Every charge is one transaction that survives a killed process (``synchronous="FULL"``: a power
    cut too). Raises :class:`~genops_ctx.core.errors.StoreError` where the file cannot be read or
    written, and :class:`~genops_ctx.core.errors.ConfigurationError` for one that a newer version made.
    """

    def __init__(self, path: str | Path, *, synchronous: str = "NORMAL") -> None:
        self.database: Database = open_database(path, synchronous=synchronous)
        self.database.add_part(PART, MIGRATIONS)
        self._series: dict[Series, int] = {}
        self._series_of = -1

    def append(self, charge: Charge, *, settled: bool = True) -> bool:
        """Book a charge; True where it is new. Joins the transaction of ``with ledger.database``."""
        with self.database as connection:
            if self._series_of != self.database.generation:
                self._series.clear()
                self._series_of = self.database.generation
            return _append(connection, charge, settled, self._series)

    def together_with(self, store: AccountStore) -> Callable[[Charge, bool], bool] | None:
        """How to append a charge and settle its reservation in one transaction; None where they cannot.

        They can where the store is a :class:`~genops_ctx.stores.sqlite.SQLiteStore` of the same file.
        The function takes a charge and whether its operation is completed, and returns False, with
        nothing changed, where the ledger has the charge already.
        """
        from ..stores.sqlite import SQLiteStore

        if not isinstance(store, SQLiteStore) or store.database is not self.database:
            return None

        def book(charge: Charge, completed: bool) -> bool:
            with self.database:
                fresh = self.append(charge)
                if fresh:
                    store.settle(charge.id, charge.nanos, charge.accounts, charge.ended_at, completed)
            return fresh

        return book

    def mark_settled(self, charge_ids: Sequence[str], witness: Witness | None = None) -> None:
        """The accounts have these charges; ``witness`` is the newest end that their store was told."""
        with self.database as connection:
            for charge_id in charge_ids:
                connection.execute(_SETTLED, without_surrogates((charge_id,)))
            if witness is not None:
                row = without_surrogates((witness.store, witness.hold, witness.at))
                connection.execute(_WITNESS, row)

    def witness(self, store: str) -> Witness | None:
        """The newest end that a store was told by those who write this file."""
        rows = self.database.read(
            "SELECT store, hold, at FROM witnesses WHERE store = ?", without_surrogates((store,))
        )
        return Witness(*[_text(value) for value in rows[0]]) if rows else None

    def unsettled(self, limit: int = 100) -> Sequence[Charge]:
        """The charges that the accounts do not have yet, oldest first."""
        return self._read(
            f"SELECT seq, {CHARGE_COLUMNS} FROM outbox JOIN charges ON seq = charge ORDER BY seq LIMIT ?",
            (limit,),
        )

    def charges(self, operation: str | None = None) -> Iterable[Charge]:
        """In the order they were booked, read page by page; of one operation where given."""
        if operation is None:
            return self._pages()
        bounds = (f"{operation}#", f"{operation}$", operation, operation)
        return self._read(_OF_OPERATION, without_surrogates(bounds))

    def between(self, since: float, until: float) -> Iterable[Charge]:
        """The charges that started in [``since``, ``until``), epoch seconds, as they were booked."""
        found = self.database.read(
            "SELECT min(first), max(last) FROM rollups WHERE day >= ? AND day <= ?",
            (day_of(since), day_of(until)),
        )
        first, last = found[0] if found else (None, None)
        if first is None:
            return ()
        charges = self._pages(first - 1, last)
        return (charge for charge in charges if since <= charge.started_at < until)

    def recent_costs(self, count: int) -> list[tuple[str, float, int]]:
        """Flow, start (epoch seconds) and nano-dollars of those of the newest charges that were answered."""
        return [(_text(flow), at, nanos) for flow, at, nanos in self.database.read(_RECENT_COSTS, (count,))]

    def totals(
        self,
        since: datetime | float | None = None,
        until: datetime | float | None = None,
        by: Collection[str] = (),
        where: Mapping[str, str | Collection[str]] | None = None,
    ) -> tuple[Total, ...]:
        """Sums over the charges that started in [``since``, ``until``), the dearest group first.

        Grouped ``by`` and restricted to the values in ``where`` (:mod:`genops_ctx.ledger.totals`). A
        range of whole days (UTC) costs as much as it has days and series, not charges; session_id
        and user_id are counted line by line.
        """
        return totals(self.database, parse_query(since, until, by, where))

    def count_on(self, seconds: float) -> bool:
        """Bring the sums of :meth:`tallies` up to now; False where that takes longer, and is to go on."""
        return sqlite_tallies.count_on(self.database, self._pages, seconds)

    def tallies(self) -> tuple[Tally, ...]:
        """The sums that monitoring reads (:mod:`genops_ctx.ledger.tallies`), as far as it is counted."""
        return sqlite_tallies.tallies(self.database)

    def tally(self, batch: Batch) -> None:
        """Count requests of which there is no charge. A failure has counted nothing."""
        with self.database as connection:
            sqlite_tallies.count(connection, batch.added)

    def active_sessions(self, since: float) -> int:
        """How many conversations have a counted call of a flow that began then (epoch seconds) or later."""
        return sqlite_tallies.active_sessions(self.database, since)

    def audit(self, event: AuditEvent) -> None:
        with self.database as connection:
            row = (event.at, event.action, event.subject, event.actor, event.reason, event.nanos, event.until)
            connection.execute(_AUDIT, without_surrogates(row))

    def audits(self, action: str | None = None) -> Iterable[AuditEvent]:
        """In the order they were recorded; of one action where given."""
        rows: list[tuple[Any, ...]] = self.database.read(
            "SELECT at, action, subject, actor, reason, nanos, until FROM audits "
            "WHERE ? IS NULL OR action = ? ORDER BY seq",
            (action, action),
        )
        return tuple(AuditEvent(*[_text(value) for value in row]) for row in rows)

    def evidence_log(self) -> SQLiteEvidenceLog:
        """Where those who share this ledger tell one another of evidence."""
        return SQLiteEvidenceLog(self.database)

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self.database.close()

    def _pages(self, last: int = 0, end: int = 2**62) -> Iterator[Charge]:
        """The charges numbered from ``last`` (exclusive) to ``end``."""
        while True:
            page = self.database.read(
                f"SELECT seq, {CHARGE_COLUMNS} FROM charges WHERE seq > ? AND seq <= ? "
                f"ORDER BY seq LIMIT {PAGE}",
                (last, end),
            )
            if not page:
                return
            first, last = page[0][0], page[-1][0]
            lines = self.database.read(
                f"SELECT {LINE_COLUMNS} FROM lines WHERE charge BETWEEN ? AND ? ORDER BY charge, position",
                (first, last),
            )
            yield from charges_of(page, lines)

    def _read(self, statement: str, parameters: Sequence[object]) -> tuple[Charge, ...]:
        """The charges of a query for few of them."""
        rows = self.database.read(statement, parameters)
        lines: list[tuple[Any, ...]] = []
        for row in rows:
            lines += self.database.read(
                f"SELECT {LINE_COLUMNS} FROM lines WHERE charge = ? ORDER BY position", (row[0],)
            )
        return tuple(charges_of(rows, lines))


def _append(connection: sqlite3.Connection, charge: Charge, settled: bool, series: dict[Series, int]) -> bool:
    row = charge_row(charge)
    try:
        cursor = connection.execute(_CHARGE, row)
    except UnicodeEncodeError:
        cursor = connection.execute(_CHARGE, without_surrogates(row))
    if cursor.rowcount != 1:
        return False
    seq = cursor.lastrowid or 0
    for line in line_rows(seq, charge):
        try:
            connection.execute(_LINE, line)
        except UnicodeEncodeError:
            connection.execute(_LINE, without_surrogates(line))
    roll_up(connection, seq, charge, series)
    if not settled:
        connection.execute("INSERT INTO outbox VALUES (?)", (seq,))
    return True


def _text(value: Any) -> Any:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value
