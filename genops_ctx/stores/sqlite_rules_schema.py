"""The tables of breakers, limits and cache, version by version (see :mod:`genops_ctx.database.parts`)."""

from __future__ import annotations

import sqlite3

__all__ = ["MIGRATIONS", "PART"]

PART = "resilience"

_TABLES = (
    """CREATE TABLE circuits (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, circuit TEXT NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE buckets (
        key TEXT PRIMARY KEY, tat INTEGER NOT NULL, part INTEGER NOT NULL, of INTEGER NOT NULL,
        last INTEGER NOT NULL, begun INTEGER NOT NULL, given INTEGER NOT NULL
    ) WITHOUT ROWID""",
    "CREATE INDEX buckets_full ON buckets (tat)",
    """CREATE TABLE rates (
        key TEXT PRIMARY KEY, rate INTEGER NOT NULL, calls INTEGER NOT NULL, failures INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TABLE entries (
        cache TEXT NOT NULL, key TEXT NOT NULL, value BLOB NOT NULL, ends INTEGER NOT NULL,
        used INTEGER NOT NULL, PRIMARY KEY (cache, key)
    )""",
    "CREATE INDEX entries_used ON entries (cache, used)",
    "CREATE INDEX entries_ends ON entries (cache, ends)",
    """CREATE TABLE leases (
        cache TEXT NOT NULL, key TEXT NOT NULL, token INTEGER NOT NULL, ends INTEGER NOT NULL,
        PRIMARY KEY (cache, key)
    ) WITHOUT ROWID""",
    # the last token, the last use and the number of entries of each cache
    """CREATE TABLE caches (
        name TEXT PRIMARY KEY, token INTEGER NOT NULL, used INTEGER NOT NULL, entries INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """CREATE TRIGGER entries_more AFTER INSERT ON entries BEGIN
        UPDATE caches SET entries = entries + 1 WHERE name = NEW.cache; END""",
    """CREATE TRIGGER entries_less AFTER DELETE ON entries BEGIN
        UPDATE caches SET entries = entries - 1 WHERE name = OLD.cache; END""",
)


def _circuits_buckets_entries(connection: sqlite3.Connection) -> None:
    """Version 1."""
    for table in _TABLES:
        connection.execute(table)


def _counts(connection: sqlite3.Connection) -> None:
    """Version 2: how often circuits have failed, and when last.

    A table of its own, and a trigger that empties it: processes of the version before may still be at
    work in the file, and know circuits without.
    """
    connection.execute(
        "CREATE TABLE circuit_counts "
        "(name TEXT PRIMARY KEY, failures INTEGER NOT NULL, last_failure INTEGER NOT NULL) WITHOUT ROWID"
    )
    gone = "BEGIN DELETE FROM circuit_counts WHERE name = NEW.name; END"
    connection.execute(f"CREATE TRIGGER circuit_kept AFTER INSERT ON circuits {gone}")


MIGRATIONS = (_circuits_buckets_entries, _counts)
