# ruff: noqa: S608 (the statements are put together of this package's own names)
"""A PostgreSQL ledger's reports: sums kept by day and series, as :mod:`.rollups` keeps them in SQLite.

``numeric`` holds sums of any size, so that one column is enough for an amount.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from .postgres_schema import plain
from .rollups import Group, group_by, groups, reader
from .totals import DAY_SECONDS, DIMENSIONS, Query, Total, day_name

if TYPE_CHECKING:
    from psycopg import Connection

    Rows = Connection[tuple[Any, ...]]

__all__ = ["SUMMED", "totals"]

SUMMED = "nanos, calls, lines, unpriced, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens"
_SUMS = ", ".join(f"sum({column}) AS {column}" for column in SUMMED.split(", "))


def totals(connection: Rows, query: Query, seconds: int) -> tuple[Total, ...]:
    """The answer to a query, all of it as the ledger was at one moment."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        connection.execute(f"SET LOCAL statement_timeout = '{seconds}s'")
        from_lines = partial(_from_lines, connection, query)
        from_rollups = partial(_from_rollups, connection, query)
        return query.answer(groups(query, from_lines, from_rollups))


def _from_rollups(connection: Rows, query: Query, first: int | None, after: int | None) -> Iterator[Group]:
    columns = [name for name in query.names if name in DIMENSIONS]
    owned = len(columns) < len(query.names)
    if owned:
        columns.append("attribution")
    rollups = "rollups"
    condition = "WHERE day >= %s AND day < %s"
    if "day" not in columns:  # few rows of sums to join, instead of every day's
        rollups = f"(SELECT series, {_SUMS} FROM rollups {condition} GROUP BY series) AS sums"
        condition = ""
    rows = connection.execute(
        f"SELECT {''.join(f'{column}, ' for column in columns)}{_SUMS} "
        f"FROM {rollups} JOIN series ON series.id = series {condition} {group_by(columns)}",
        (_LEAST if first is None else first, _MOST if after is None else after),
    )
    for row in rows:
        values = dict(zip(columns, map(_shown, row), strict=False))
        sums = row[len(columns) :]
        if owned:
            values = {**json.loads(values.pop("attribution")), **values}
        if sums[0] is not None:  # a sum over nothing at all
            yield reader(values), tuple(map(int, sums))  # type: ignore[misc]


def _from_lines(connection: Rows, query: Query, since: float | None, until: float | None) -> Iterator[Group]:
    columns = [_OF_LINES.get(name, "coalesce(attribution::json ->> %s, '')") for name in query.names]
    keys = [name for name in query.names if name not in _OF_LINES]
    rows = connection.execute(
        f"SELECT {''.join(f'{column}, ' for column in columns)}{_SUMS_OF_LINES} "
        "FROM charges LEFT JOIN lines ON lines.charge = charges.seq "
        f"WHERE started_at >= %s AND started_at < %s {group_by(columns)}",
        (*keys, _EVER if since is None else since, _FOREVER if until is None else until),
    )
    for row in rows:
        values = dict(zip(query.names, map(_shown, row), strict=False))
        sums = row[len(values) :]
        if sums[0] is not None:
            yield reader(values), tuple(map(int, sums))  # type: ignore[misc]


def _shown(value: Any) -> str:
    return day_name(value) if isinstance(value, int) else str(plain(value))


_LEAST, _MOST = -(2**62), 2**62
_EVER, _FOREVER = float("-inf"), float("inf")

_OF_LINES = {
    "day": f"floor(started_at / {DAY_SECONDS})::bigint",
    "flow": "name",
    "flow_id": "flow",
    "provider": "coalesce(provider, '')",
    "model": "coalesce(model, '')",
    "source": "coalesce(source, '')",
    "exactness": "coalesce(exactness, 'exact')",
}
_SIGN = "CASE kind WHEN 'reversal' THEN -1 ELSE 1 END"
_SUMS_OF_LINES = (
    "sum(coalesce(nanos, 0)), "
    "count(*) FILTER (WHERE coalesce(position, 0) = 0 AND adjustment_of = ''), "
    f"coalesce(sum({_SIGN}) FILTER (WHERE charge IS NOT NULL), 0), "
    f"coalesce(sum({_SIGN}) FILTER (WHERE charge IS NOT NULL AND nanos IS NULL), 0), "
    f"sum(coalesce(input_tokens, 0) * {_SIGN}), sum(coalesce(output_tokens, 0) * {_SIGN}), "
    f"sum(coalesce(cache_read_tokens, 0) * {_SIGN}), "
    f"sum((coalesce(cache_write_tokens, 0) + coalesce(cache_write_1h_tokens, 0)) * {_SIGN})"
)
