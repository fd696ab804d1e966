# ruff: noqa: S608 (the statements are put together of this module's own names)
"""Sums kept beside the charges, so that a report over a million of them reads thousands of rows.

A *series* is what the lines of a sum have in common; a rollup is the sum of one series in one day
(UTC). Whole days are answered from rollups, the parts of days at the ends of a range from the lines.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from ..core.attribution import UNALLOCATED
from ..core.compact_json import object_text
from ..core.money import NANOS_PER_DOLLAR
from .rows import text, without_surrogates
from .totals import DAY_SECONDS, DIMENSIONS, Query, Sums, Total, add, day_name, day_of, sums_of

if TYPE_CHECKING:
    from ..core.records import Charge, Line
    from ..database import Database

__all__ = [
    "NOT_ROLLED",
    "Group",
    "Series",
    "group_by",
    "groups",
    "reader",
    "roll_up",
    "sums_by_series",
    "totals",
]

NOT_ROLLED = frozenset({"session_id", "user_id"})
"""Attribution that has nearly as many values as there are charges: sums by it are read from the lines."""

KEPT_SERIES = 10_000

Series = tuple[str, ...]

_SERIES_COLUMNS = "attribution, flow, flow_id, provider, model, source, exactness"
_FIND = "SELECT id FROM series WHERE " + " AND ".join(f"{c} = ?" for c in _SERIES_COLUMNS.split(", "))
_ADD = f"INSERT INTO series ({_SERIES_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
_SUMMED = (
    "dollars, nanos, calls, lines, unpriced, input_tokens, output_tokens, cache_read_tokens, "
    "cache_write_tokens"
)
_BOOK = (
    f"INSERT INTO rollups (day, series, {_SUMMED}, first, last) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, series) DO UPDATE SET "
    + ", ".join(f"{column} = {column} + excluded.{column}" for column in _SUMMED.split(", "))
    + ", last = excluded.last"
)


def roll_up(
    connection: sqlite3.Connection, seq: int, charge: Charge, known: MutableMapping[Series, int]
) -> None:
    """Add a new charge to the sums. ``known`` remembers the numbers of series while they are valid."""
    day = day_of(charge.started_at)
    for key, (nanos, *counts) in sums_by_series(charge).items():
        series = known.get(key)
        if series is None:
            series = _find(connection, key)
            if series is None:
                # Not remembered: the transaction that adds it may be rolled back.
                series = _add(connection, key)
            else:
                if len(known) >= KEPT_SERIES:
                    known.clear()
                known[key] = series
        whole, rest = divmod(nanos, NANOS_PER_DOLLAR)
        connection.execute(_BOOK, (day, series, whole, rest, *counts, seq, seq))


def sums_by_series(charge: Charge) -> dict[Series, Sums]:
    """What a charge adds to each series: attribution, flow, flow's id, provider, model, source, exactness."""
    attribution = object_text(
        tuple([item for item in charge.attribution.items() if item[0] not in NOT_ROLLED])
    )
    sums: dict[Series, Sums] = {}
    for position, line in enumerate(charge.lines or (None,)):
        key: Series = (attribution, charge.name, charge.flow, *_series_of(line))
        added = sums_of(charge, line, position == 0)
        sums[key] = add(sums[key], added) if key in sums else added
    return sums


def _series_of(line: Line | None) -> tuple[str, str, str, str]:
    if line is None:
        return "", "", "", "exact"
    usage = line.usage
    if usage is None:
        return "", "", line.source.value, line.exactness.value
    return usage.provider, usage.model, line.source.value, line.exactness.value


def _find(connection: sqlite3.Connection, key: Series) -> int | None:
    try:
        found = connection.execute(_FIND, key).fetchone()
    except UnicodeEncodeError:
        found = connection.execute(_FIND, without_surrogates(key)).fetchone()
    return None if found is None else int(found[0])


def _add(connection: sqlite3.Connection, key: Series) -> int:
    return connection.execute(_ADD, without_surrogates(key)).lastrowid or 0


def totals(database: Database, query: Query) -> tuple[Total, ...]:
    """The answer to a query: from rollups where whole days and series tell it, else from the lines."""
    if not database.exists:
        return query.answer(())
    # One view, so that nothing booked meanwhile is counted twice or not at all.
    with database.view() as connection:
        from_lines = partial(_from_lines, connection, query)
        from_rollups = partial(_from_rollups, connection, query)
        return query.answer(groups(query, from_lines, from_rollups))


Group = tuple[Callable[[str], str], Sums]


def groups(
    query: Query,
    from_lines: Callable[[float | None, float | None], Iterator[Group]],
    from_rollups: Callable[[int | None, int | None], Iterator[Group]],
) -> Iterator[Group]:
    """The groups of a query: from rollups for its whole days ``[first, after)``, from lines for the rest."""
    since, until = query.since, query.until
    if not NOT_ROLLED.isdisjoint(query.names):
        yield from from_lines(since, until)
        return
    # The first whole day, and the day after the last one.
    first = None if since is None else day_of(since) + (since % DAY_SECONDS != 0)
    after = None if until is None else day_of(until)
    if first is not None and after is not None and first > after:  # both ends in one day
        yield from from_lines(since, until)
        return
    if first is not None and since != first * DAY_SECONDS:
        yield from from_lines(since, first * DAY_SECONDS)
    yield from from_rollups(first, after)
    if after is not None and until != after * DAY_SECONDS:
        yield from from_lines(after * DAY_SECONDS, until)


_SUM_COLUMNS = ", ".join(f"sum({column}) AS {column}" for column in _SUMMED.split(", "))


def _from_rollups(
    connection: sqlite3.Connection, query: Query, first: int | None, after: int | None
) -> Iterator[Group]:
    columns = [name for name in query.names if name in DIMENSIONS]
    owned = len(columns) < len(query.names)
    if owned:
        columns.append("attribution")
    rollups = "rollups"
    condition = "WHERE day >= ? AND day < ?"
    if "day" not in columns:  # few rows of sums to join, instead of every day's
        rollups = f"(SELECT series, {_SUM_COLUMNS} FROM rollups {condition} GROUP BY series)"
        condition = ""
    rows = connection.execute(
        f"SELECT {''.join(f'{column}, ' for column in columns)}{_SUM_COLUMNS} "
        f"FROM {rollups} JOIN series ON series.id = series {condition} {group_by(columns)}",
        (_LEAST if first is None else first, _MOST if after is None else after),
    )
    for row in rows:
        values = dict(zip(columns, map(_text_or_day, row), strict=False))
        whole, nanos, *counts = row[len(columns) :]
        if owned:
            values = {**json.loads(values.pop("attribution")), **values}
        if counts[0] is not None:  # a sum over nothing at all
            yield reader(values), (whole * NANOS_PER_DOLLAR + nanos, *counts)


def group_by(columns: Sequence[str]) -> str:
    return f"GROUP BY {', '.join(str(1 + number) for number in range(len(columns)))}" if columns else ""


def _from_lines(
    connection: sqlite3.Connection, query: Query, since: float | None, until: float | None
) -> Iterator[Group]:
    # The rollups know between which charges those of a day are.
    first, last = connection.execute(
        "SELECT min(first), max(last) FROM rollups WHERE day >= ? AND day <= ?",
        (_LEAST if since is None else day_of(since), _MOST if until is None else day_of(until)),
    ).fetchone()
    connection.create_function("utc_day", 1, day_of, deterministic=True)
    columns = [_OF_LINES.get(name, "coalesce(json_extract(attribution, ?), '')") for name in query.names]
    # An attribution key is an identifier, and its path so needs no quoting.
    paths = [f'$."{name}"' for name in query.names if name not in _OF_LINES]
    rows = connection.execute(
        f"SELECT {''.join(f'{column}, ' for column in columns)}{_SUMS_OF_LINES} "
        "FROM charges LEFT JOIN lines ON lines.charge = charges.seq "
        f"WHERE seq BETWEEN ? AND ? AND started_at >= ? AND started_at < ? {group_by(columns)}",
        (*paths, first, last, _EVER if since is None else since, _FOREVER if until is None else until),
    )
    for row in rows:
        values = dict(zip(query.names, map(_text_or_day, row), strict=False))
        whole, rest, *counts = row[len(values) :]
        if counts[0] is not None:
            yield reader(values), (whole * NANOS_PER_DOLLAR + rest, *counts)


def _text_or_day(value: str | bytes | int) -> str:
    return day_name(value) if isinstance(value, int) else text(value)


def reader(values: Mapping[str, str]) -> Callable[[str], str]:
    return lambda name: values.get(name) or UNALLOCATED


_LEAST, _MOST = -(2**62), 2**62
_EVER, _FOREVER = float("-inf"), float("inf")

_OF_LINES = {
    "day": "utc_day(started_at)",
    "flow": "name",
    "flow_id": "flow",
    "provider": "coalesce(provider, '')",
    "model": "coalesce(model, '')",
    "source": "coalesce(source, '')",
    "exactness": "coalesce(exactness, 'exact')",
}
_SIGN = "CASE kind WHEN 'reversal' THEN -1 ELSE 1 END"
_SUMS_OF_LINES = (
    f"sum(coalesce(nanos, 0) / {NANOS_PER_DOLLAR}), sum(coalesce(nanos, 0) % {NANOS_PER_DOLLAR}), "
    f"sum(coalesce(position, 0) = 0 AND adjustment_of = ''), sum((charge IS NOT NULL) * {_SIGN}), "
    f"sum((charge IS NOT NULL AND nanos IS NULL) * {_SIGN}), "
    f"sum(coalesce(input_tokens, 0) * {_SIGN}), sum(coalesce(output_tokens, 0) * {_SIGN}), "
    f"sum(coalesce(cache_read_tokens, 0) * {_SIGN}), "
    f"sum((coalesce(cache_write_tokens, 0) + coalesce(cache_write_1h_tokens, 0)) * {_SIGN})"
)
