# ruff: noqa: S608 (the statements are put together of this module's own names)
"""Where the keys of the service's clients are kept: in the ledger's own file or database, or in memory."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ..core.errors import ConfigurationError
from ..database import Database, open_database
from .keys import ClientKey, KeyStore, Role

if TYPE_CHECKING:
    from psycopg import Connection

__all__ = ["MemoryKeys", "PostgresKeys", "SQLiteKeys", "open_keys"]

PART = "keys"
_COLUMNS = "id, name, created_at, document"


def open_keys(url: str) -> KeyStore:
    """The keys beside a ledger of this URL. Raises :class:`ConfigurationError`."""
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        return MemoryKeys()
    if scheme == "sqlite":
        return SQLiteKeys(open_database(unquote(rest.partition("?")[0][1:])))
    if scheme == "default":
        from ..ledger.location import default_ledger_path

        return SQLiteKeys(open_database(default_ledger_path()))
    if scheme in ("postgresql", "postgres"):
        return PostgresKeys(url)
    raise ConfigurationError(
        f"keys cannot be kept at {scheme[:20]}://…; use sqlite:////path or postgresql://…"
    )


def _document(key: ClientKey) -> str:
    return json.dumps(
        {
            "role": str(key.role),
            "attribution": dict(key.attribution),
            "flows": key.flows,
            "origins": key.origins,
            "expires_at": key.expires_at,
            "digest": key.digest,
            "earlier_digest": key.earlier_digest,
            "earlier_until": key.earlier_until,
            "revoked_at": key.revoked_at,
        }
    )


def _key(row: tuple[Any, ...]) -> ClientKey:
    key_id, name, created_at, document = row
    known: Mapping[str, Any] = json.loads(document)
    return ClientKey(
        id=key_id,
        name=name,
        role=Role(known["role"]),
        attribution=known["attribution"],
        flows=tuple(known["flows"]),
        origins=tuple(known["origins"]),
        created_at=created_at,
        expires_at=known["expires_at"],
        digest=known["digest"],
        earlier_digest=known["earlier_digest"],
        earlier_until=known["earlier_until"],
        revoked_at=known["revoked_at"],
    )


class MemoryKeys:
    """Keys of one process."""

    def __init__(self) -> None:
        self._keys: dict[str, ClientKey] = {}
        self._lock = threading.Lock()

    def find(self, key_id: str) -> ClientKey | None:
        return self._keys.get(key_id)

    def put(self, key: ClientKey) -> None:
        with self._lock:
            self._keys[key.id] = key

    def keys(self) -> tuple[ClientKey, ...]:
        with self._lock:
            return tuple(self._keys.values())

    def close(self) -> None:
        """Nothing to close."""


def _sqlite_keys(connection: sqlite3.Connection) -> None:
    """Version 1."""
    connection.execute(
        "CREATE TABLE client_keys (id TEXT PRIMARY KEY, name TEXT NOT NULL, created_at REAL NOT NULL, "
        "document TEXT NOT NULL)"
    )


class SQLiteKeys:
    """Keys in a file, for the workers of one machine."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.add_part(PART, (_sqlite_keys,))

    def find(self, key_id: str) -> ClientKey | None:
        rows = self._database.read(f"SELECT {_COLUMNS} FROM client_keys WHERE id = ?", (key_id,))
        return _key(rows[0]) if rows else None

    def put(self, key: ClientKey) -> None:
        with self._database as connection:
            connection.execute(
                f"INSERT OR REPLACE INTO client_keys ({_COLUMNS}) VALUES (?, ?, ?, ?)",
                (key.id, key.name, key.created_at, _document(key)),
            )

    def keys(self) -> tuple[ClientKey, ...]:
        rows = self._database.read(f"SELECT {_COLUMNS} FROM client_keys ORDER BY created_at, id")
        return tuple(map(_key, rows))

    def close(self) -> None:
        self._database.close()


def _postgres_keys(connection: Connection[tuple[Any, ...]]) -> None:
    """Version 1."""
    connection.execute(
        "CREATE TABLE client_keys (id text PRIMARY KEY, name text NOT NULL, created_at double precision NOT "
        "NULL, document text NOT NULL)"
    )


class PostgresKeys:
    """Keys in a database, for the workers of any number of machines."""

    def __init__(self, url: str) -> None:
        from ..ledger.postgres_connection import PostgresConnections

        self._server = PostgresConnections(url, (_postgres_keys,), part=PART)

    def find(self, key_id: str) -> ClientKey | None:
        row = self._server.run(
            lambda connection: connection.execute(
                f"SELECT {_COLUMNS} FROM client_keys WHERE id = %s", (key_id,)
            ).fetchone()
        )
        return None if row is None else _key(row)

    def put(self, key: ClientKey) -> None:
        row = (key.id, key.name, key.created_at, _document(key))
        self._server.run(
            lambda connection: connection.execute(
                f"INSERT INTO client_keys ({_COLUMNS}) VALUES (%s, %s, %s, %s) ON CONFLICT (id) DO UPDATE "
                "SET name = excluded.name, document = excluded.document",
                row,
            )
        )

    def keys(self) -> tuple[ClientKey, ...]:
        rows = self._server.run(
            lambda connection: connection.execute(
                f"SELECT {_COLUMNS} FROM client_keys ORDER BY created_at, id"
            ).fetchall()
        )
        return tuple(map(_key, rows))

    def close(self) -> None:
        self._server.close()
