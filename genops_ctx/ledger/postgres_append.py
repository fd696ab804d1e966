# ruff: noqa: S608 (the statements are put together of this package's own names)
"""Booking in a PostgreSQL ledger: any number of charges by one statement, which commits at once and whole.

Its text is always the same, however many charges, lines and sums there are: they come as JSON, so that the
server plans it once for each connection.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

from .postgres_rollups import SUMMED
from .postgres_schema import SHARDS, storable
from .rollups import Series, sums_by_series
from .rows import CHARGE_COLUMNS, LINE_COLUMNS, charge_row, line_rows
from .totals import Sums, add, day_of

if TYPE_CHECKING:
    from psycopg import Connection

    from ..core.records import Charge

    Rows = Connection[tuple[Any, ...]]

__all__ = ["append_all"]

KEPT_SERIES = 10_000

_ID = 'id text COLLATE "C"'
_CHARGE_TYPES = {
    "attempt": "bigint",
    "started_at": "double precision",
    "ended_at": "double precision",
    "reserved_nanos": "bigint",
}
_LINE_TEXTS = frozenset(
    {"kind", "source", "exactness", "price_version", "note", "provider", "model", "node"}
    | {"usage_source", "usage_exactness"}
)
_CHARGE_NAMES = CHARGE_COLUMNS.split(", ")
_LINE_NAMES = LINE_COLUMNS.split(", ")[1:]
_SUM_NAMES = SUMMED.split(", ")
_GIVEN = ", ".join(
    [
        "place int",
        _ID,
        *(f"{name} {_CHARGE_TYPES.get(name, 'text')}" for name in _CHARGE_NAMES[1:]),
        "settled boolean",
    ]
)
_LINES = ", ".join([_ID, *(f"{name} {'text' if name in _LINE_TEXTS else 'bigint'}" for name in _LINE_NAMES)])
_SUMS = ", ".join([_ID, "day bigint", "series bigint", *(f"{name} numeric" for name in _SUM_NAMES)])

_APPEND = (
    f"WITH given AS MATERIALIZED (SELECT * FROM json_to_recordset(%s::json) AS given ({_GIVEN})), "
    f"booked AS (INSERT INTO charges ({CHARGE_COLUMNS}) SELECT {CHARGE_COLUMNS} FROM given ORDER BY place "
    "ON CONFLICT (id) DO NOTHING RETURNING seq, id), "
    f"lined AS (INSERT INTO lines ({LINE_COLUMNS}) SELECT seq, {', '.join(_LINE_NAMES)} "
    f"FROM json_to_recordset(%s::json) AS line ({_LINES}) JOIN booked USING (id)), "
    "waiting AS (INSERT INTO outbox SELECT seq FROM given JOIN booked USING (id) WHERE NOT settled), "
    # In the order of days and series, so that two batches never wait for one another's rows.
    f"summed AS (INSERT INTO rollups (day, series, shard, {SUMMED}) "
    f"SELECT day, series, pg_backend_pid() %% {SHARDS}, {', '.join(f'sum({name})' for name in _SUM_NAMES)} "
    f"FROM json_to_recordset(%s::json) AS added ({_SUMS}) JOIN booked USING (id) "
    "GROUP BY day, series ORDER BY day, series ON CONFLICT (day, series, shard) DO UPDATE SET "
    + ", ".join(f"{name} = rollups.{name} + excluded.{name}" for name in _SUM_NAMES)
    + ") SELECT id FROM booked"
)
_ADD_SERIES = (
    "INSERT INTO series (key, attribution, flow, flow_id, provider, model, source, exactness) "
    "VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT (key) DO NOTHING RETURNING id"
)


def append_all(
    connection: Rows, charges: Sequence[tuple[Charge, bool]], known: MutableMapping[Series, int]
) -> list[bool]:
    """Book all of them or none, each with whether it is settled; True for each that is new.

    Of several with one id the first is booked. ``known`` remembers the numbers of series.
    """
    first: dict[str, int] = {}
    given: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    sums: list[dict[str, Any]] = []
    for place, (charge, settled) in enumerate(charges):
        if first.setdefault(charge.id, place) != place:
            continue
        row = dict(zip(_CHARGE_NAMES, map(storable, charge_row(charge)), strict=True))
        name = row["id"]
        given.append({**row, "place": place, "settled": settled})
        lines += [
            {"id": name, **dict(zip(_LINE_NAMES, map(storable, line[1:]), strict=True))}
            for line in line_rows(0, charge)
        ]
        sums += _sums(connection, name, charge, known)
    booked = connection.execute(_APPEND, tuple(map(_json, (given, lines, sums)))).fetchall()
    fresh = {name for (name,) in booked}
    return [
        first[charge.id] == place and storable(charge.id) in fresh
        for place, (charge, _) in enumerate(charges)
    ]


def _json(rows: list[dict[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def _sums(
    connection: Rows, name: str, charge: Charge, known: MutableMapping[Series, int]
) -> list[dict[str, Any]]:
    """What a charge adds to each series."""
    day = day_of(charge.started_at)
    added: dict[int, Sums] = {}
    for key, amounts in sums_by_series(charge).items():
        series = _number(connection, key, known)
        added[series] = add(added[series], amounts) if series in added else amounts
    return [
        {"id": name, "day": day, "series": series, **dict(zip(_SUM_NAMES, amounts, strict=True))}
        for series, amounts in added.items()
    ]


def _number(connection: Rows, key: Series, known: MutableMapping[Series, int]) -> int:
    """Of a series, which is made where it is new: one without charges sums to nothing."""
    number = known.get(key)
    if number is None:
        kept = tuple(map(storable, key))
        name = hashlib.sha256("\x00".join(map(repr, kept)).encode()).digest()
        row = None
        while row is None:
            row = connection.execute("SELECT id FROM series WHERE key = %s", (name,)).fetchone()
            row = row or connection.execute(_ADD_SERIES, (name, *kept)).fetchone()
        number = int(row[0])
        if len(known) >= KEPT_SERIES:
            known.clear()
        known[key] = number
    return number
