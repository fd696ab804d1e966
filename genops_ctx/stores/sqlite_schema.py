"""The store's tables, version by version (see :mod:`genops_ctx.database.parts`)."""

from __future__ import annotations

import sqlite3

from ..core.errors import ConfigurationError

__all__ = ["MIGRATIONS", "PART"]

PART = "store"

_TABLES = (
    # A sum past 64 bits would turn into a float in silence: the types are checked.
    """CREATE TABLE store_accounts (
        key TEXT PRIMARY KEY,
        spent INTEGER NOT NULL CHECK (typeof(spent) = 'integer'),
        reserved INTEGER NOT NULL CHECK (typeof(reserved) = 'integer'),
        gone_at REAL
    ) WITHOUT ROWID""",
    "CREATE INDEX store_accounts_gone ON store_accounts (gone_at) WHERE gone_at IS NOT NULL",
    # due: when a hold that is held expires; when one that is over is forgotten
    """CREATE TABLE store_holds (
        id TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,
        amount INTEGER NOT NULL,
        booked INTEGER NOT NULL,
        accounts TEXT NOT NULL,
        expires_at REAL NOT NULL,
        keyed INTEGER NOT NULL,
        due REAL NOT NULL,
        memo TEXT NOT NULL
    )""",
    "CREATE INDEX store_holds_due ON store_holds (due)",
    """CREATE TABLE store_losses (
        id TEXT PRIMARY KEY, amount INTEGER NOT NULL, accounts TEXT NOT NULL,
        expires_at REAL NOT NULL, memo TEXT NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE store_controls (
        key TEXT PRIMARY KEY, frozen INTEGER NOT NULL, granted INTEGER NOT NULL,
        granted_until REAL NOT NULL
    ) WITHOUT ROWID""",
    "CREATE TABLE store_marks (key TEXT PRIMARY KEY, until REAL) WITHOUT ROWID",
)


def _accounts_holds_controls_marks(connection: sqlite3.Connection) -> None:
    """Version 1. Files of before there were parts have these tables, and a table of their version."""
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'store_version'").fetchone():
        row = connection.execute("SELECT version FROM store_version").fetchone()
        if row is not None and row[0] > 1:
            raise ConfigurationError(
                f"the store is of a newer version of genops_ctx: it has version {row[0]}; "
                "update genops_ctx, or use another file"
            )
        connection.execute("DROP TABLE store_version")
        if row is not None:
            return
    for statement in _TABLES:
        connection.execute(statement)


def _marks_end(connection: sqlite3.Connection) -> None:
    """Version 2: no mark is for ever."""
    connection.execute(
        "UPDATE store_marks SET until = CAST(strftime('%s', 'now') AS REAL) + 366 * 86400 WHERE until IS NULL"
    )


def _tokens(connection: sqlite3.Connection) -> None:
    """Version 3: which reserve made a hold."""
    connection.execute("ALTER TABLE store_holds ADD COLUMN token TEXT NOT NULL DEFAULT ''")


def _draws(connection: sqlite3.Connection) -> None:
    """Version 4: what holds have taken from those around them.

    A table of its own, and a trigger that empties it: processes of the version before may still be at
    work in the file, and write holds as they know them.
    """
    connection.execute("CREATE TABLE store_draws (hold TEXT PRIMARY KEY, draws TEXT NOT NULL) WITHOUT ROWID")
    gone = "BEGIN DELETE FROM store_draws WHERE hold = OLD.id; END"
    connection.execute(f"CREATE TRIGGER store_draws_over AFTER UPDATE OF state ON store_holds {gone}")
    connection.execute(f"CREATE TRIGGER store_draws_gone AFTER DELETE ON store_holds {gone}")


MIGRATIONS = (_accounts_holds_controls_marks, _marks_end, _tokens, _draws)
