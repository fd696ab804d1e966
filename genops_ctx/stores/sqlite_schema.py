"""Tables of the SQLite store, as the steps that made them what they are.

A step is never edited once it was released: a new one is added to the end. The version is kept in a
table of its own, not in ``user_version``, because a ledger may live in the same file.
"""

from __future__ import annotations

import sqlite3

from ..core.errors import ConfigurationError

__all__ = ["MIGRATIONS", "migrate"]

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
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
    ),
)


def migrate(connection: sqlite3.Connection, path: str) -> None:
    """Bring the file to the newest version, in one transaction.

    Raises :class:`ConfigurationError` for a file that a newer version of this package has made.
    """
    if _version(connection) == len(MIGRATIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS store_version (version INTEGER NOT NULL)")
        version = _version(connection)
        if version > len(MIGRATIONS):
            raise ConfigurationError(
                f"the store {path} is of a newer version of genops_ctx (schema {version}; this one knows "
                f"{len(MIGRATIONS)}): upgrade genops_ctx, or use another file"
            )
        for step in MIGRATIONS[version:]:
            for statement in step:
                connection.execute(statement)
        connection.execute("DELETE FROM store_version")
        connection.execute("INSERT INTO store_version VALUES (?)", (len(MIGRATIONS),))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection) -> int:
    known = connection.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'store_version'"
    ).fetchone()
    if known is None:
        return 0
    row = connection.execute("SELECT version FROM store_version").fetchone()
    return 0 if row is None else int(row[0])
