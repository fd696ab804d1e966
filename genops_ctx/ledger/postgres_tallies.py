# ruff: noqa: S608 (the statements are put together of this package's own names)
"""The sums that monitoring reads, in a PostgreSQL ledger (:mod:`.tallies` is the rule).

A charge's number is given before its commit, so a lower one may appear after a higher one was counted. The
numbers that were missing are kept for a while, and looked for again.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from . import tallies as rule
from .tallies import (
    LABELS,
    OTHERS,
    SESSIONS_KEPT_SECONDS,
    Added,
    Batch,
    Counts,
    Labels,
    Slot,
    Sums,
    Tally,
    session_key,
)

if TYPE_CHECKING:
    from psycopg import Connection

    from ..core.records import Charge

    Rows = Connection[tuple[Any, ...]]
    Run = Callable[[Callable[[Rows], Any]], Any]
    ChargesOf = Callable[[Sequence[int]], Iterable[Charge]]

__all__ = ["active_sessions", "count_batch", "count_on", "make_tables", "tallies"]

BATCH = 500
"""Charges counted at a time."""

GAP_SECONDS = 3600
"""How long a missing number is looked for: no statement of a ledger takes more than a few seconds."""

_SUMMED = Counts._fields
_ADDED = ", ".join(f"{column} = tallies.{column} + excluded.{column}" for column in _SUMMED)
_ADD = (
    f"INSERT INTO tallies (labels, status, within, {', '.join(_SUMMED)}) "
    f"VALUES ({', '.join(('%s',) * (3 + len(_SUMMED)))}) "
    f"ON CONFLICT (labels, status, within) DO UPDATE SET {_ADDED}"
)
_MAKE = (
    f"INSERT INTO tally_labels (key, {', '.join(LABELS)}) SELECT %s, %s, %s, %s, %s "
    "WHERE (SELECT count(*) FROM tally_labels) <= %s ON CONFLICT (key) DO NOTHING"
)
_MISS = "INSERT INTO tally_missing (seq) SELECT unnest(%s::bigint[])"
_FORGET_MISSING = "DELETE FROM tally_missing WHERE since < now() - make_interval(secs => %s)"
_TABLES = (
    """
    CREATE TABLE tally_labels (
        id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,    -- 1: what came when there were too many
        key bytea NOT NULL UNIQUE,                          -- SHA-256 of all that follows
        flow text NOT NULL,
        team text NOT NULL,
        project text NOT NULL,
        provider text NOT NULL
    )
    """,
    """
    CREATE TABLE tallies (
        labels int NOT NULL REFERENCES tally_labels (id),
        status text COLLATE "C" NOT NULL,
        within int NOT NULL,            -- milliseconds; 0: not timed, -1: longer than all bounds
        requests bigint NOT NULL,
        micros numeric NOT NULL,
        gross numeric NOT NULL,
        back numeric NOT NULL,
        priced bigint NOT NULL,
        unpriced bigint NOT NULL,
        unpriced_back bigint NOT NULL,
        PRIMARY KEY (labels, status, within)
    ) WITH (fillfactor = 50)
    """,
    "CREATE TABLE tally_mark (seq bigint NOT NULL)",  # up to this one every charge is counted or missing
    "INSERT INTO tally_mark VALUES (0)",
    "CREATE TABLE tally_missing (seq bigint PRIMARY KEY, since timestamptz NOT NULL DEFAULT now())",
    "CREATE TABLE tally_sessions (session bytea PRIMARY KEY, last double precision NOT NULL)",
    'CREATE TABLE tally_writers (writer text COLLATE "C" PRIMARY KEY, number bigint NOT NULL)',
)


def make_tables(connection: Rows) -> None:
    """Version 4 of a ledger. What is booked already is counted by the first who reads."""
    for statement in _TABLES:
        connection.execute(statement)
    connection.execute(_MAKE, (_key(OTHERS), *OTHERS, 0))


# -- charges ------------------------------------------------------------------------------------


def count_on(run: Run, charges_of: ChargesOf, seconds: float) -> bool:
    """Count what is booked by now, a batch at a time; False where time is up before that.

    ``charges_of`` gives the charges of these numbers, as many as there are.
    """
    until = time.monotonic() + seconds
    target = run(lambda connection: _one(connection, "SELECT coalesce(max(seq), 0) FROM charges"))
    while True:
        late, mark = run(_outlook)
        if not late and mark >= target:
            return True
        if time.monotonic() > until:
            return False
        if late:
            _count_late(run, charges_of, late)
        else:
            _count_next(run, charges_of, mark, min(mark + BATCH, target))


def _outlook(connection: Rows) -> tuple[list[int], int]:
    """Numbers whose charges came after they were missed, and how far it is counted."""
    late = connection.execute(
        "SELECT seq FROM tally_missing JOIN charges USING (seq) ORDER BY seq LIMIT %s", (BATCH,)
    ).fetchall()
    return [seq for (seq,) in late], _one(connection, "SELECT seq FROM tally_mark")


def _count_next(run: Run, charges_of: ChargesOf, mark: int, last: int) -> None:
    numbers = range(mark + 1, last + 1)
    found = run(
        lambda connection: connection.execute(
            "SELECT seq FROM charges WHERE seq > %s AND seq <= %s", (mark, last)
        ).fetchall()
    )
    there = {seq for (seq,) in found}
    # Only those: one that comes meanwhile is among the missing.
    sums = _sums(charges_of(sorted(there)))
    missing = [seq for seq in numbers if seq not in there]

    def work(connection: Rows) -> None:
        with connection.transaction():
            moved = connection.execute("UPDATE tally_mark SET seq = %s WHERE seq = %s", (last, mark))
            if moved.rowcount == 1:  # else another process has counted them
                if missing:
                    connection.execute(_FORGET_MISSING, (GAP_SECONDS,))
                    connection.execute(_MISS, (missing,))
                _add(connection, sums)

    run(work)


def _count_late(run: Run, charges_of: ChargesOf, late: list[int]) -> None:
    sums = _sums(charges_of(late))

    def work(connection: Rows) -> None:
        import psycopg

        with connection.transaction():
            found = connection.execute(
                "DELETE FROM tally_missing WHERE seq = ANY(%s) RETURNING seq", (late,)
            ).fetchall()
            if len(found) != len(late):
                raise psycopg.Rollback  # another process has counted some of them
            _add(connection, sums)

    run(work)


def _sums(charges: Iterable[Charge]) -> Sums:
    sums = Sums()
    for charge in charges:
        sums.book(charge)
    return sums


def _add(connection: Rows, sums: Sums) -> None:
    _count(connection, sums.added)
    if sums.sessions:
        rows = sorted((session_key(session), last) for session, last in sums.sessions.items())
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO tally_sessions (session, last) VALUES (%s, %s) ON CONFLICT (session) "
                "DO UPDATE SET last = greatest(tally_sessions.last, excluded.last)",
                rows,
            )
        oldest = max(sums.sessions.values()) - SESSIONS_KEPT_SECONDS
        connection.execute("DELETE FROM tally_sessions WHERE last < %s", (oldest,))


# -- sums ---------------------------------------------------------------------------------------


def count_batch(connection: Rows, batch: Batch) -> None:
    """Count a batch, unless this writer's was counted before."""
    with connection.transaction():
        fresh = connection.execute(
            "INSERT INTO tally_writers VALUES (%s, %s) ON CONFLICT (writer) DO UPDATE "
            "SET number = excluded.number WHERE tally_writers.number < excluded.number",
            (batch.writer, batch.number),
        )
        if fresh.rowcount == 1:
            _count(connection, batch.added)


def _count(connection: Rows, added: Added) -> None:
    """Add to the sums, in the order of their keys: nobody waits for one who waits for them."""
    numbers = _numbers(connection, {labels for labels, _ in added})
    sums: dict[tuple[int, str, int], Counts] = {}
    for (labels, slot), counts in added.items():
        key = (numbers[labels], *slot)
        known = sums.get(key)
        sums[key] = counts if known is None else known.plus(counts)
    with connection.cursor() as cursor:
        cursor.executemany(_ADD, [(*key, *sums[key]) for key in sorted(sums)])


def _numbers(connection: Rows, wanted: set[Labels]) -> dict[Labels, int]:
    """Of these labels, which are made where they are new and there are not too many."""
    keys = {_key(labels): labels for labels in sorted(wanted)}

    def found() -> dict[bytes, int]:
        return dict(
            connection.execute(
                "SELECT key, id FROM tally_labels WHERE key = ANY(%s)", (list(keys),)
            ).fetchall()
        )

    known = found()
    if len(known) < len(keys):
        for key, labels in keys.items():
            if key not in known:
                connection.execute(_MAKE, (key, *labels, rule.MOST_LABELS))
        known = found()
    return {labels: known.get(key, 1) for key, labels in keys.items()}


def _key(labels: Labels) -> bytes:
    return hashlib.sha256("\x00".join(labels).encode()).digest()


def tallies(connection: Rows) -> tuple[Tally, ...]:
    """All sums, as they are at one moment."""
    rows = connection.execute(
        f"SELECT {', '.join(LABELS)}, status, within, {', '.join(_SUMMED)} "
        "FROM tallies JOIN tally_labels ON tally_labels.id = labels"
    )
    return tuple(Tally(Labels(*row[:4]), Slot(*row[4:6]), Counts(*map(int, row[6:]))) for row in rows)


def active_sessions(connection: Rows, since: float) -> int:
    """Conversations with a call that began then or later."""
    return _one(connection, "SELECT count(*) FROM tally_sessions WHERE last >= %s", (since,))


def _one(connection: Rows, statement: str, parameters: Sequence[object] = ()) -> int:
    row = connection.execute(statement, parameters).fetchone()
    return 0 if row is None else int(row[0])
