# ruff: noqa: S608 (the statements are put together of this package's own names)
"""``postgresql://user@host:5432/database``: one ledger for the processes of any number of machines."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ..core.ports import AuditEvent, Witness
from ..core.records import Charge
from . import postgres_tallies
from .postgres_append import append_all
from .postgres_connection import ANSWER_SECONDS, PostgresConnections
from .postgres_evidence_log import PostgresEvidenceLog
from .postgres_rollups import totals
from .postgres_schema import MIGRATIONS, SHARDS, plain, storable
from .recent_costs import RECENT_COSTS
from .rows import CHARGE_COLUMNS, LINE_COLUMNS, charges_of
from .tallies import Batch, Tally
from .totals import Total, parse_query

if TYPE_CHECKING:
    from .rollups import Series

__all__ = ["PostgresLedger"]

PAGE = 500
"""Charges read at a time."""

REPORT_SECONDS = 60
"""How long a report may take that has to look at every line."""

# '$' is what follows '#': between the two are the ids that begin with "operation#".
_OF_OPERATION = (
    f"SELECT seq, {CHARGE_COLUMNS} FROM charges WHERE seq IN ("
    "SELECT seq FROM charges WHERE id >= %s AND id < %s AND operation = %s UNION "
    "SELECT seq FROM charges WHERE operation = %s AND id <> operation || '#' || attempt) ORDER BY seq"
)
_RECENT_COSTS = RECENT_COSTS.format(count="%s")
_WITNESS = (
    "INSERT INTO witnesses (store, hold, at, shard) "
    f"VALUES (%s, %s, %s, pg_backend_pid() %% {SHARDS}) "
    "ON CONFLICT (store, shard) DO UPDATE SET hold = excluded.hold, at = excluded.at"
)


class PostgresLedger:
    """A :class:`~genops_ctx.core.ports.Ledger` in a PostgreSQL database, in the schema ``genops``.

    Charges, with their lines and the sums of the reports, are one statement that commits at once
    and whole. Raises :class:`~genops_ctx.core.errors.StoreError` where the server does not answer
    within ``answer_seconds`` (a report: 60 seconds), and
    :class:`~genops_ctx.core.errors.ConfigurationError` for an address that is none and for tables that a
    newer version made.
    """

    remote = True
    """asking it waits for a network"""

    def __init__(self, url: str, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._url = url
        self._server = PostgresConnections(url, MIGRATIONS, answer_seconds=answer_seconds)
        self.place = self._server.server
        """of what does not get there in time, and for people; without credentials"""
        self._series: dict[Series, int] = {}

    def append(self, charge: Charge, *, settled: bool = True) -> bool:
        """Book a charge; True where it is new."""
        return self.append_all([(charge, settled)])[0]

    def append_all(self, charges: Sequence[tuple[Charge, bool]]) -> list[bool]:
        """Book several, each with whether it is settled, in one transaction; True for each that is new.

        All of them or none: raises where one of them cannot be booked.
        """
        return self._server.run(lambda connection: append_all(connection, charges, self._series))

    def mark_settled(self, charge_ids: Sequence[str], witness: Witness | None = None) -> None:
        """The accounts have these charges; ``witness`` is the newest end that their store was told."""
        statement = "DELETE FROM outbox USING charges WHERE charge = seq AND id = ANY(%s)"
        parameters: list[Any] = [[storable(charge_id) for charge_id in charge_ids]]
        if witness is not None:
            statement = f"WITH settled AS ({statement}) {_WITNESS}"
            parameters += [storable(witness.store), storable(witness.hold), witness.at]
        self._server.run(lambda connection: connection.execute(statement, parameters))

    def witness(self, store: str) -> Witness | None:
        """The newest end that a store was told by those who write this ledger."""
        rows = self._rows(
            "SELECT store, hold, at FROM witnesses WHERE store = %s ORDER BY at DESC LIMIT 1",
            (storable(store),),
        )
        return Witness(*rows[0]) if rows else None

    def unsettled(self, limit: int = 100) -> Sequence[Charge]:
        """The charges that the accounts do not have yet, oldest first."""
        return self._read(
            f"SELECT seq, {CHARGE_COLUMNS} FROM outbox JOIN charges ON seq = charge ORDER BY seq LIMIT %s",
            (limit,),
        )

    def charges(self, operation: str | None = None) -> Iterable[Charge]:
        """In the order they were booked, read page by page; of one operation where given."""
        if operation is None:
            return self._pages()
        first, after, name = storable(f"{operation}#"), storable(f"{operation}$"), storable(operation)
        return self._read(_OF_OPERATION, (first, after, name, name))

    def between(self, since: float, until: float) -> Iterator[Charge]:
        """The charges that started in [``since``, ``until``), epoch seconds, as they were booked."""
        last = 0
        while rows := self._rows(
            f"SELECT seq, {CHARGE_COLUMNS} FROM charges "
            f"WHERE started_at >= %s AND started_at < %s AND seq > %s ORDER BY seq LIMIT {PAGE}",
            (since, until, last),
        ):
            yield from self._with_lines(rows)
            last = rows[-1][0]

    def recent_costs(self, count: int) -> list[tuple[str, float, int]]:
        """Flow, start (epoch seconds) and nano-dollars of those of the newest charges that were answered."""
        return [(flow, at, int(nanos)) for flow, at, nanos in self._rows(_RECENT_COSTS, (count,))]

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
        query = parse_query(since, until, by, where)
        return self._server.run(lambda connection: totals(connection, query, REPORT_SECONDS), REPORT_SECONDS)

    def count_on(self, seconds: float) -> bool:
        """Bring the sums of :meth:`tallies` up to now; False where that takes longer, and is to go on."""
        return postgres_tallies.count_on(self._server.run, self._of_numbers, seconds)

    def tallies(self) -> tuple[Tally, ...]:
        """The sums that monitoring reads (:mod:`genops_ctx.ledger.tallies`), as far as it is counted."""
        return self._server.run(postgres_tallies.tallies)

    def tally(self, batch: Batch) -> None:
        """Count requests of which there is no charge, once however often the batch is written."""
        self._server.run(lambda connection: postgres_tallies.count_batch(connection, batch))

    def active_sessions(self, since: float) -> int:
        """How many conversations have a counted call of a flow that began then (epoch seconds) or later."""
        return self._server.run(lambda connection: postgres_tallies.active_sessions(connection, since))

    def audit(self, event: AuditEvent) -> None:
        row = (event.at, event.action, event.subject, event.actor, event.reason, event.nanos, event.until)
        self._server.run(
            lambda connection: connection.execute(
                "INSERT INTO audits (at, action, subject, actor, reason, nanos, until) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s)",
                tuple(map(storable, row)),
            ),
            again=False,
        )

    def audits(self, action: str | None = None) -> Iterable[AuditEvent]:
        """In the order they were recorded; of one action where given."""
        rows = self._rows(
            "SELECT at, action, subject, actor, reason, nanos, until FROM audits "
            "WHERE %s::text IS NULL OR action = %s ORDER BY seq",
            (action, action),
        )
        return tuple(AuditEvent(*row) for row in rows)

    def evidence_log(self) -> PostgresEvidenceLog:
        """Where those who share this ledger tell one another of evidence."""
        return PostgresEvidenceLog(self._url)

    def close(self) -> None:
        """Close the connections; a later use opens them again."""
        self._server.close()

    def _pages(self) -> Iterator[Charge]:
        last, missing = 0, list[int]()
        while rows := self._rows(
            f"SELECT seq, {CHARGE_COLUMNS} FROM charges WHERE seq > %s ORDER BY seq LIMIT {PAGE}", (last,)
        ):
            numbers = {row[0] for row in rows}
            missing += [number for number in range(last + 1, rows[-1][0]) if number not in numbers]
            yield from self._with_lines(rows)
            last = rows[-1][0]
        # A number is taken before its charge is there for others to see: some may have come meanwhile.
        for first in range(0, len(missing), PAGE):
            yield from self._of_numbers(missing[first : first + PAGE])

    def _of_numbers(self, numbers: Sequence[int]) -> tuple[Charge, ...]:
        """Those of these charges that there are by now."""
        return self._read(
            f"SELECT seq, {CHARGE_COLUMNS} FROM charges WHERE seq = ANY(%s) ORDER BY seq", (list(numbers),)
        )

    def _read(self, statement: str, parameters: Sequence[object]) -> tuple[Charge, ...]:
        """The charges of a query for few of them."""
        return tuple(self._with_lines(self._rows(statement, parameters)))

    def _with_lines(self, rows: list[tuple[Any, ...]]) -> Iterator[Charge]:
        if not rows:
            return iter(())
        lines = self._rows(
            f"SELECT {LINE_COLUMNS} FROM lines WHERE charge = ANY(%s) ORDER BY charge, position",
            ([row[0] for row in rows],),
        )
        return charges_of(rows, lines)

    def _rows(self, statement: str, parameters: Sequence[object]) -> list[tuple[Any, ...]]:
        found = self._server.run(lambda connection: connection.execute(statement, parameters).fetchall())
        return [tuple(map(plain, row)) for row in found]
