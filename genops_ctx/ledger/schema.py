# ruff: noqa: S608 (the statements are put together of this package's own names)
"""The ledger's tables, version by version. A migration adds; none drops a row or changes an amount."""

from __future__ import annotations

import sqlite3

from .rollups import roll_up
from .rows import CHARGE_COLUMNS, LINE_COLUMNS, charges_of
from .sqlite_tallies import make_tables

__all__ = ["MIGRATIONS", "PART"]

PART = "ledger"

_BATCH = 1000
_COLUMNS_THEN = CHARGE_COLUMNS.replace("chat_id, message_id", "'', ''")
"""Of the versions before 4."""


def _charges_lines_audits(connection: sqlite3.Connection) -> None:
    """Version 1: what happened, for ever."""
    connection.execute(
        """
        CREATE TABLE charges (
            seq INTEGER PRIMARY KEY,        -- in the order of booking
            id TEXT NOT NULL,
            operation TEXT NOT NULL,
            attempt INTEGER NOT NULL,
            name TEXT NOT NULL,
            flow TEXT NOT NULL,
            outcome TEXT NOT NULL,
            attribution TEXT NOT NULL,      -- JSON object
            context_path TEXT NOT NULL,     -- JSON array, as are accounts and flags
            started_at REAL NOT NULL,       -- epoch seconds
            ended_at REAL NOT NULL,
            reserved_nanos INTEGER NOT NULL,
            accounts TEXT NOT NULL,
            flags TEXT NOT NULL,
            trace_id TEXT NOT NULL,
            adjustment_of TEXT NOT NULL
        )
        """
    )
    connection.execute("CREATE UNIQUE INDEX charges_id ON charges (id)")
    # The usual id begins with its operation, so that charges_id finds it: one index less to write.
    connection.execute(
        "CREATE INDEX charges_operation ON charges (operation) WHERE id <> operation || '#' || attempt"
    )
    connection.execute(
        """
        CREATE TABLE lines (
            charge INTEGER NOT NULL,        -- charges.seq
            position INTEGER NOT NULL,
            kind TEXT NOT NULL,
            nanos INTEGER,                  -- NULL: no price is known
            source TEXT NOT NULL,
            exactness TEXT NOT NULL,
            price_version TEXT NOT NULL,
            note TEXT NOT NULL,
            provider TEXT,                  -- NULL, as all that follows: no usage
            model TEXT,
            node TEXT,
            usage_source TEXT,
            usage_exactness TEXT,
            input_tokens INTEGER,
            output_tokens INTEGER,
            cache_read_tokens INTEGER,
            cache_write_tokens INTEGER,
            cache_write_1h_tokens INTEGER,
            reasoning_tokens INTEGER,
            input_audio_tokens INTEGER,
            output_audio_tokens INTEGER,
            PRIMARY KEY (charge, position)
        ) WITHOUT ROWID
        """
    )
    # A charge is settled unless it is here: charges themselves are never written to again.
    connection.execute("CREATE TABLE outbox (charge INTEGER PRIMARY KEY)")
    connection.execute(
        """
        CREATE TABLE audits (
            seq INTEGER PRIMARY KEY,
            at REAL NOT NULL,
            action TEXT NOT NULL,
            subject TEXT NOT NULL,
            actor TEXT NOT NULL,
            reason TEXT NOT NULL,
            nanos INTEGER,
            until REAL
        )
        """
    )
    for table in ("charges", "lines", "audits"):
        for change in ("UPDATE", "DELETE"):
            connection.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} are append-only'); END"
            )


def _rollups(connection: sqlite3.Connection) -> None:
    """Version 2: sums by day and series beside the lines, kept by the same transactions."""
    connection.execute(
        """
        CREATE TABLE series (
            id INTEGER PRIMARY KEY,
            attribution TEXT NOT NULL,      -- JSON object, without what names a single session
            flow TEXT NOT NULL,             -- charges.name
            flow_id TEXT NOT NULL,          -- charges.flow
            provider TEXT NOT NULL,
            model TEXT NOT NULL,
            source TEXT NOT NULL,
            exactness TEXT NOT NULL,
            UNIQUE (attribution, flow, flow_id, provider, model, source, exactness)
        )
        """
    )
    connection.execute(
        """
        CREATE TABLE rollups (
            day INTEGER NOT NULL,           -- since the epoch, UTC
            series INTEGER NOT NULL,
            dollars INTEGER NOT NULL,       -- the sum is dollars * 10^9 + nanos: neither overflows
            nanos INTEGER NOT NULL,
            calls INTEGER NOT NULL,
            lines INTEGER NOT NULL,
            unpriced INTEGER NOT NULL,
            input_tokens INTEGER NOT NULL,
            output_tokens INTEGER NOT NULL,
            cache_read_tokens INTEGER NOT NULL,
            cache_write_tokens INTEGER NOT NULL,
            first INTEGER NOT NULL,         -- the first and last charges.seq of it
            last INTEGER NOT NULL,
            PRIMARY KEY (day, series)
        ) WITHOUT ROWID
        """
    )
    last = 0
    while page := connection.execute(
        f"SELECT seq, {_COLUMNS_THEN} FROM charges WHERE seq > ? ORDER BY seq LIMIT {_BATCH}", (last,)
    ).fetchall():
        first, last = page[0][0], page[-1][0]
        lines = connection.execute(
            f"SELECT {LINE_COLUMNS} FROM lines WHERE charge BETWEEN ? AND ? ORDER BY charge, position",
            (first, last),
        ).fetchall()
        for row, charge in zip(page, charges_of(page, lines), strict=True):
            roll_up(connection, row[0], charge, {})


def _witnesses(connection: sqlite3.Connection) -> None:
    """Version 3: of each store that is elsewhere, the newest end that it was told."""
    connection.execute(
        "CREATE TABLE witnesses (store TEXT PRIMARY KEY, hold TEXT NOT NULL, at REAL NOT NULL) WITHOUT ROWID"
    )


def _conversations(connection: sqlite3.Connection) -> None:
    """Version 4: which of Flowise's records a charge is for."""
    for column in ("chat_id", "message_id"):
        connection.execute(f"ALTER TABLE charges ADD COLUMN {column} TEXT NOT NULL DEFAULT ''")


MIGRATIONS = (_charges_lines_audits, _rollups, _witnesses, _conversations, make_tables)
