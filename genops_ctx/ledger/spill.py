"""Charges that a ledger on a server did not take in time, in a file of this machine until it does.

The file is in the user's state directory, one for each ledger, and shared by the processes that book there:
what one of them leaves behind, because it is killed, is booked by another, or by the next that starts.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..database import open_database
from .location import default_ledger_path
from .postgres_schema import plain, storable
from .rows import charge_row, charges_of, line_rows

if TYPE_CHECKING:
    from ..core.records import Charge

__all__ = ["Spill", "spill_path"]

LENT_SECONDS = 10.0
"""How long charges are one process's to book. It takes a moment, unless that process is killed meanwhile."""


def spill_path(place: str) -> Path:
    """Of the ledger of a place (as it is told to people); nothing is made there.

    Raises :class:`RuntimeError` for a user without a home directory.
    """
    name = hashlib.sha256(place.encode()).hexdigest()[:16]
    return default_ledger_path().with_name(f"unbooked-{name}.sqlite3")


def _tables(connection: sqlite3.Connection) -> None:
    """Version 1."""
    connection.execute(
        "CREATE TABLE unbooked (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, "
        "charge TEXT NOT NULL, "  # JSON: its row in a ledger, and those of its lines
        "settled INTEGER NOT NULL, "  # whether the accounts have it
        "lent_until REAL NOT NULL)"  # epoch seconds; 0: nobody is booking it
    )


class Spill:
    """A file of charges that wait for their ledger. It survives a killed process, and is made when needed.

    Raises :class:`~genops_ctx.core.errors.StoreError` or
    :class:`~genops_ctx.core.errors.ConfigurationError` where the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = open_database(path)
        self._database.add_part("unbooked", (_tables,))

    def add(self, charges: Sequence[tuple[Charge, bool]]) -> None:
        """Keep charges, each with whether it is settled. One that is there already changes nothing."""
        with self._database as connection:
            connection.executemany(
                "INSERT INTO unbooked (id, charge, settled, lent_until) VALUES (?, ?, ?, 0) "
                "ON CONFLICT (id) DO NOTHING",
                [(_key(charge), _text(charge), settled) for charge, settled in charges],
            )

    def borrow(self, limit: int) -> list[tuple[Charge, bool]]:
        """Some that nobody else is booking, the oldest first: for a while they are this caller's to book."""
        if not self.waiting():
            return []
        now = time.time()
        with self._database as connection:
            rows = connection.execute(
                "UPDATE unbooked SET lent_until = ? WHERE number IN (SELECT number FROM unbooked "
                "WHERE lent_until <= ? OR lent_until > ? ORDER BY number LIMIT ?) "
                "RETURNING number, charge, settled",
                (now + LENT_SECONDS, now, now + 2 * LENT_SECONDS, limit),
            ).fetchall()
        return [(_charge(text), bool(settled)) for _, text, settled in sorted(rows)]

    def give_back(self, charges: Sequence[Charge]) -> None:
        """They could not be booked after all; anybody may try."""
        with self._database as connection:
            connection.executemany(
                "UPDATE unbooked SET lent_until = 0 WHERE id = ?", [(_key(charge),) for charge in charges]
            )

    def drop(self, charges: Sequence[Charge]) -> None:
        """The ledger has them."""
        with self._database as connection:
            connection.executemany(
                "DELETE FROM unbooked WHERE id = ?", [(_key(charge),) for charge in charges]
            )

    def waiting(self) -> int:
        """How many nobody is booking now."""
        now = time.time()
        rows = self._database.read(
            "SELECT count(*) FROM unbooked WHERE lent_until <= ? OR lent_until > ?",
            (now, now + 2 * LENT_SECONDS),
        )
        return int(rows[0][0]) if rows else 0

    def close(self) -> None:
        """Close the file; a later use opens it again."""
        self._database.close()


def _key(charge: Charge) -> Any:
    return storable(charge.id)


def _text(charge: Charge) -> str:
    return json.dumps(
        [[storable(value) for value in row] for row in (charge_row(charge), *line_rows(0, charge))]
    )


def _charge(text: str) -> Charge:
    row, *lines = (tuple(map(plain, row)) for row in json.loads(text))
    (charge,) = charges_of([(0, *row)], lines)
    return charge
