"""Versions of the parts of a file, and how a part gets from one to the next.

The versions are rows of a table ``parts`` rather than SQLite's ``user_version``: a file has only one
of those, and may have several parts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from ..core.errors import ConfigurationError

__all__ = ["Migration", "migrate"]

Migration = Callable[[sqlite3.Connection], None]
"""Brings a part's tables from one version to the next, inside a transaction that it does not end.

It is never edited once it was released: a new one is added to the end. None drops what a user has."""


def migrate(connection: sqlite3.Connection, path: Path, name: str, migrations: Sequence[Migration]) -> None:
    """Bring a part to version ``len(migrations)``, in one transaction.

    Raises :class:`ConfigurationError` for a part that a newer version of this package has made.
    """
    if _version(connection, name) == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, name)  # another process may have been first
        if version > len(migrations):
            raise ConfigurationError(
                f"the {name} in {path} is of a newer version of genops_ctx: it has version {version}, and "
                f"this one knows {len(migrations)} at most; update genops_ctx, or use another file"
            )
        for migration in migrations[version:]:
            migration(connection)
        connection.execute("CREATE TABLE IF NOT EXISTS parts (name TEXT PRIMARY KEY, version INTEGER)")
        connection.execute("INSERT OR REPLACE INTO parts VALUES (?, ?)", (name, len(migrations)))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _version(connection: sqlite3.Connection, name: str) -> int:
    try:
        row = connection.execute("SELECT version FROM parts WHERE name = ?", (name,)).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        return 0
    return int(row[0]) if row else 0
