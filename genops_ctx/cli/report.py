"""``genops-ctx report``: what was spent, out of the ledger, and how exactly that is known."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import ConfigurationError
from ..core.money import dollars, format_dollars
from ..core.records import CostSource, Exactness
from .backfill import share_line
from .times import back

if TYPE_CHECKING:
    from ..ledger.totals import Total

__all__ = ["report"]


@dataclass(frozen=True, slots=True)
class Row:
    """One group of a report. Amounts in nano-dollars."""

    key: tuple[str, ...]
    spent: int
    inexact: int
    """the part of it that is an upper bound, or estimated"""
    unpriced: int
    """lines without a known price; not in ``spent``"""
    calls: int
    input_tokens: int
    output_tokens: int


@click.command()
@click.option(
    "--since",
    metavar="TIME",
    help="30d, 12h, a day (midnight UTC), or an ISO time; this month where left out.",
)
@click.option("--until", metavar="TIME", help="Up to this time; now where left out.")
@click.option(
    "--by",
    multiple=True,
    metavar="KEY",
    help="team, project, customer_id …, flow, model, provider, source, day.",
)
@click.option(
    "--where", multiple=True, metavar="KEY=VALUE", help="Only this; repeated for a key: any of them."
)
@click.option("--ledger", metavar="URL", help="The ledger to read; the configured one where left out.")
@click.option(
    "--format", "style", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True
)
def report(
    since: str | None,
    until: str | None,
    by: tuple[str, ...],
    where: tuple[str, ...],
    ledger: str | None,
    style: str,
) -> None:
    """Show what was spent, by whom.

    Without --by it is by team and flow. The dearest group comes first. Amounts count every adjustment that
    was booked since; a group's calls are attempts that were sent.
    """
    from ..ledger import open_ledger
    from ..settings import load_settings

    begin = _this_month() if since is None else back(since, option="--since")
    end = time.time() if until is None else back(until, option="--until")
    names = by or ("team", "flow")
    url = ledger or load_settings().ledger
    if url.startswith("memory:"):
        raise ConfigurationError(
            "the ledger is memory://, which ends with the process that wrote it. Name one by --ledger, "
            "GENOPS_LEDGER or in the settings file: sqlite:////path or postgresql://user@host/database"
        )
    opened: Any = open_ledger(url)
    try:
        totals = opened.totals(begin, end, (*names, "exactness"), _wanted(where))
        sources = opened.totals(begin, end, ("source",), _wanted(where))
    finally:
        opened.close()
    rows = _rows(totals)
    found = sum(total.nanos for total in sources if total.key == (CostSource.BACKFILLED,))
    if style == "json":
        click.echo(json.dumps(_as_json(rows, names, begin, end, found), ensure_ascii=False, indent=2))
    elif style == "csv":
        click.echo(_as_csv(rows, names), nl=False)
    else:
        _show(rows, names, begin, end, found)


def _wanted(pairs: Sequence[str]) -> dict[str, list[str]]:
    wanted: defaultdict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise click.BadParameter(f"write {pair!r} as KEY=VALUE", param_hint="--where")
        wanted[key.strip()].append(value)
    return wanted


def _rows(totals: Sequence[Total]) -> list[Row]:
    """The groups without the exactness that they were split by, the dearest first."""
    rows: dict[tuple[str, ...], Row] = {}
    for total in totals:
        key, exactness = total.key[:-1], total.key[-1]
        inexact = 0 if exactness == Exactness.EXACT else total.nanos
        before = rows.get(key, Row(key, 0, 0, 0, 0, 0, 0))
        rows[key] = replace(
            before,
            spent=before.spent + total.nanos,
            inexact=before.inexact + inexact,
            unpriced=before.unpriced + total.unpriced,
            calls=before.calls + total.calls,
            input_tokens=before.input_tokens + total.input_tokens,
            output_tokens=before.output_tokens + total.output_tokens,
        )
    return sorted(rows.values(), key=lambda row: (-row.spent, row.key))


def _sum(rows: Sequence[Row]) -> Row:
    return Row((), *map(sum, zip(*[astuple(row)[1:] for row in rows], strict=True))) if rows else _NOTHING


_NOTHING = Row((), 0, 0, 0, 0, 0, 0)
_COLUMNS = ("cost", "not_exact", "unpriced_lines", "calls", "input_tokens", "output_tokens")


def _values(row: Row) -> tuple[str | int, ...]:
    """Of :data:`_COLUMNS`; amounts as strings of dollars."""
    return (f"{dollars(row.spent):f}", f"{dollars(row.inexact):f}", *astuple(row)[3:])


def _as_json(
    rows: Sequence[Row], names: Sequence[str], begin: float, end: float, found: int
) -> dict[str, Any]:
    total = _sum(rows)
    return {
        "since": _iso(begin),
        "until": _iso(end),
        "groups": [
            {**dict(zip(names, row.key, strict=True)), **dict(zip(_COLUMNS, _values(row), strict=True))}
            for row in rows
        ],
        "total": dict(zip(_COLUMNS, _values(total), strict=True)),
        "governed": f"{dollars(total.spent - found):f}",
    }


def _as_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*names, *_COLUMNS))
    writer.writerows((*map(_harmless, row.key), *_values(row)) for row in rows)
    return text.getvalue()


def _harmless(value: str) -> str:
    """A spreadsheet takes what begins so for a formula."""
    return f"'{value}" if value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def _show(rows: Sequence[Row], names: Sequence[str], begin: float, end: float, found: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = None if os.isatty(1) else 200
    console = Console(width=width, highlight=False, markup=False)
    console.print(f"Spent from {_iso(begin)} to {_iso(end)}")
    if not rows:
        console.print("Nothing is booked there.")
        return
    total = _sum(rows)
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    for number, name in enumerate(names):
        table.add_column(name, "" if number else "total", overflow="fold")
    footers = (
        format_dollars(total.spent),
        "",
        format_dollars(total.inexact),
        f"{total.calls:,}",
        f"{total.input_tokens:,}",
        f"{total.output_tokens:,}",
    )
    for name, footer in zip(
        ("cost", "share", "not exact", "calls", "tokens in", "tokens out"), footers, strict=True
    ):
        table.add_column(name, footer, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            *row.key,
            format_dollars(row.spent) + (" + unknown" if row.unpriced else ""),
            f"{100 * row.spent / total.spent:.1f} %" if total.spent > 0 else "",
            format_dollars(row.inexact),
            f"{row.calls:,}",
            f"{row.input_tokens:,}",
            f"{row.output_tokens:,}",
        )
    console.print(table)
    if found:
        console.print(f"{share_line(total.spent - found, total.spent)}; the rest genops-ctx backfill found.")
    if total.unpriced:
        console.print(
            f"{total.unpriced:,} lines have no known price and are not in the cost: "
            "genops-ctx prices coverage says of which models, genops-ctx prices set gives one."
        )


def _this_month() -> float:
    return datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0).timestamp()


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
