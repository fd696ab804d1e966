# ruff: noqa: S608 (the statements are put together of this package's own names)
"""The sums that monitoring reads, in a SQLite ledger (:mod:`.tallies` is the rule)."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..core.money import NANOS_PER_DOLLAR
from . import tallies as rule
from .tallies import (
    LABELS,
    OTHERS,
    SESSIONS_KEPT_SECONDS,
    Added,
    Counts,
    Labels,
    Slot,
    Sums,
    Tally,
    session_key,
)

if TYPE_CHECKING:
    from ..core.records import Charge
    from ..database import Database

__all__ = ["active_sessions", "count", "count_on", "make_tables", "tallies"]

BATCH = 500
"""Charges counted at a time."""

# Amounts are dollars * 10^9 + nanos: neither overflows.
_SUMMED = (
    "requests, micros, gross_dollars, gross_nanos, back_dollars, back_nanos, priced, unpriced, unpriced_back"
)
_FIND = "SELECT id FROM tally_labels WHERE " + " AND ".join(f"{name} = ?" for name in LABELS)
_MAKE = (
    f"INSERT INTO tally_labels ({', '.join(LABELS)}) SELECT ?, ?, ?, ? "
    "WHERE (SELECT count(*) FROM tally_labels) <= ?"
)
_ADD = (
    f"INSERT INTO tallies (labels, status, within, {_SUMMED}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (labels, status, within) DO UPDATE SET "
    + ", ".join(f"{column} = {column} + excluded.{column}" for column in _SUMMED.split(", "))
)
_SESSION = (
    "INSERT INTO tally_sessions (session, last) VALUES (?, ?) "
    "ON CONFLICT (session) DO UPDATE SET last = max(last, excluded.last)"
)
_ALL = (
    f"SELECT {', '.join(LABELS)}, status, within, {_SUMMED} "
    "FROM tallies JOIN tally_labels ON tally_labels.id = labels"
)


def make_tables(connection: sqlite3.Connection) -> None:
    """Version 5 of a ledger. What is booked already is counted by the first who reads."""
    connection.execute(
        """
        CREATE TABLE tally_labels (
            id INTEGER PRIMARY KEY,         -- 1: what came when there were too many
            flow TEXT NOT NULL,
            team TEXT NOT NULL,
            project TEXT NOT NULL,
            provider TEXT NOT NULL,
            UNIQUE (flow, team, project, provider)
        )
        """
    )
    connection.execute(
        """
        CREATE TABLE tallies (
            labels INTEGER NOT NULL,        -- tally_labels.id
            status TEXT NOT NULL,
            within INTEGER NOT NULL,        -- milliseconds; 0: not timed, -1: longer than all bounds
            requests INTEGER NOT NULL,
            micros INTEGER NOT NULL,
            gross_dollars INTEGER NOT NULL,
            gross_nanos INTEGER NOT NULL,
            back_dollars INTEGER NOT NULL,
            back_nanos INTEGER NOT NULL,
            priced INTEGER NOT NULL,
            unpriced INTEGER NOT NULL,
            unpriced_back INTEGER NOT NULL,
            PRIMARY KEY (labels, status, within)
        ) WITHOUT ROWID
        """
    )
    connection.execute(f"INSERT INTO tally_labels VALUES (1, {', '.join('?' * len(OTHERS))})", OTHERS)
    connection.execute("CREATE TABLE tally_mark (seq INTEGER NOT NULL)")  # the last charge that is counted
    connection.execute("INSERT INTO tally_mark VALUES (0)")
    connection.execute(
        "CREATE TABLE tally_sessions (session BLOB PRIMARY KEY, last REAL NOT NULL) WITHOUT ROWID"
    )


def count_on(
    database: Database,
    charges_from: Callable[[int, int], Iterable[Charge]],
    seconds: float,
) -> bool:
    """Count what is booked by now, a batch at a time; False where time is up before that.

    ``charges_from`` gives the charges from one number (exclusive) to another. A file has one writer at a
    time, so that nothing appears later below a number that was seen.
    """
    until = time.monotonic() + seconds
    marks = database.read("SELECT max(seq) FROM charges")
    target = (marks[0][0] or 0) if marks else 0
    while True:
        found = database.read("SELECT seq FROM tally_mark")
        mark = found[0][0] if found else 0
        if mark >= target:
            return True
        if time.monotonic() > until:
            return False
        sums, last = Sums(), min(mark + BATCH, target)
        for charge in charges_from(mark, last):
            sums.book(charge)
        with database as connection:
            moved = connection.execute("UPDATE tally_mark SET seq = ? WHERE seq = ?", (last, mark))
            if moved.rowcount == 1:  # else another process has counted them
                count(connection, sums.added)
                _note(connection, sums)


def _note(connection: sqlite3.Connection, sums: Sums) -> None:
    """Remember which conversations go on, as long as anybody may ask."""
    if sums.sessions:
        rows = [(session_key(session), last) for session, last in sums.sessions.items()]
        connection.executemany(_SESSION, rows)
        oldest = max(sums.sessions.values()) - SESSIONS_KEPT_SECONDS
        connection.execute("DELETE FROM tally_sessions WHERE last < ?", (oldest,))


def count(connection: sqlite3.Connection, added: Added) -> None:
    """Add to the sums."""
    for (labels, slot), counts in added.items():
        requests, micros, gross, back, *lines = counts
        amounts = (*divmod(gross, NANOS_PER_DOLLAR), *divmod(back, NANOS_PER_DOLLAR))
        connection.execute(_ADD, (_number(connection, labels), *slot, requests, micros, *amounts, *lines))


def _number(connection: sqlite3.Connection, labels: Labels) -> int:
    """Of these labels, which are made where they are new and there are not too many."""
    found = connection.execute(_FIND, labels).fetchone()
    if found is not None:
        return int(found[0])
    made = connection.execute(_MAKE, (*labels, rule.MOST_LABELS))
    return (made.lastrowid or 1) if made.rowcount == 1 else 1


def tallies(database: Database) -> tuple[Tally, ...]:
    """All sums, as they are at one moment."""
    return tuple(map(_tally, database.read(_ALL)))


def _tally(row: tuple[Any, ...]) -> Tally:
    requests, micros, gross, gross_nanos, back, back_nanos, *lines = row[6:]
    counts = Counts(
        requests,
        micros,
        gross * NANOS_PER_DOLLAR + gross_nanos,
        back * NANOS_PER_DOLLAR + back_nanos,
        *lines,
    )
    return Tally(Labels(*row[:4]), Slot(*row[4:6]), counts)


def active_sessions(database: Database, since: float) -> int:
    """Conversations with a call that began then or later."""
    rows = database.read("SELECT count(*) FROM tally_sessions WHERE last >= ?", (since,))
    return int(rows[0][0]) if rows else 0
