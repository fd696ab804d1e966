"""Booking and reporting on SQLite beside their floors; times as ratios within one run, never asserted.

A plain run prints them::

    python -m tests.bench.test_ledger [charges in the report, 1000000 unless given]
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from genops_ctx.books import Books
from genops_ctx.core.accounts import Reserve, Watch
from genops_ctx.core.records import Charge, CostSource, Exactness, Line, LineKind, Usage
from genops_ctx.ledger.sqlite import SQLiteLedger
from genops_ctx.stores.sqlite import SQLiteStore

USAGE = Usage("openai", "gpt-4o-mini", input_tokens=1_000, output_tokens=500)
START = 1_795_000_000.0


def booked(number: int, operation: str) -> Charge:
    """The charge of a call with one line, four accounts and the usual attribution."""
    usage = USAGE if number % 3 else Usage("anthropic", "claude-haiku", input_tokens=2_000, output_tokens=40)
    return Charge(
        id=f"{operation}#1",
        operation=operation,
        attempt=1,
        name=f"flow {number % 10}",
        flow=f"7b2f-{number % 10}",
        outcome="completed",
        lines=(Line(LineKind.MODEL, 450_000, CostSource.REPORTED, Exactness.EXACT, usage, "genai 2026-01"),),
        attribution={
            "team": f"team-{number % 7}",
            "environment": "production",
            "customer_id": f"customer-{number % 21}",
            "session_id": f"session-{number % 5003}",
        },
        context_path=("c0ffee",),
        started_at=START + number * 7.776,  # a million in 90 days
        ended_at=START + number * 7.776 + 1,
        reserved_nanos=1_000_000,
        accounts=("day:2026-11-21|team=search", "month:2026-11|team=search", "total", "week:2026-W47"),
    )


def floor(folder: Path) -> Callable[[], object]:
    """A bare INSERT of one row in one transaction, WAL, NORMAL."""
    connection = sqlite3.connect(folder / "floor.sqlite3", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE charges (id TEXT PRIMARY KEY, team TEXT, nanos INTEGER)")

    def insert() -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO charges VALUES (?, ?, ?)", (os.urandom(12).hex(), "search", 450_000))
        connection.execute("COMMIT")

    return insert


def append(folder: Path) -> Callable[[], object]:
    ledger = SQLiteLedger(folder / "ledger.sqlite3")
    numbers = itertools.count()
    return lambda: ledger.append(booked(next(numbers), os.urandom(12).hex()))


def build(folder: Path) -> Callable[[], object]:
    """Making the charge alone: part of what ``append`` measures."""
    numbers = itertools.count()
    return lambda: booked(next(numbers), os.urandom(12).hex())


def attempt(folder: Path) -> Callable[[], object]:
    """An attempt on four accounts: reserved, then charge and accounts in one transaction, one file."""
    path = folder / "one.sqlite3"
    books = Books(SQLiteStore(path), SQLiteLedger(path))
    numbers = itertools.count()
    watches = tuple(Watch(key, 10**15, key, key) for key in booked(0, "").accounts)

    def reserve_and_book() -> None:
        charge = booked(next(numbers), os.urandom(12).hex())
        books.reserve(Reserve(charge.id, 1_000_000, watches, START + 150, memo="[]"), START)
        books.book(charge, settles=True)

    return reserve_and_book


CONTENDERS: dict[str, Callable[[Path], Callable[[], object]]] = {
    "floor: one bare INSERT in a transaction": floor,
    "of it making the charge": build,
    "SQLiteLedger.append, one line": append,
    "reserve and book, 4 accounts, one file": attempt,
}


@pytest.mark.parametrize("name", CONTENDERS)
def test_book_one_charge(benchmark: BenchmarkFixture, name: str, tmp_path: Path) -> None:
    benchmark(CONTENDERS[name](tmp_path))


def filled(folder: Path, number: int) -> SQLiteLedger:
    ledger = SQLiteLedger(folder / "filled.sqlite3")
    for start in range(0, number, 10_000):
        with ledger.database:
            for one in range(start, min(start + 10_000, number)):
                ledger.append(booked(one, f"{one:024x}"))
    return ledger


def main() -> None:
    """Print each contender's best time and its ratio to the floor, then the reports."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = 0.0
        for title, contender in CONTENDERS.items():
            book = contender(folder)
            book()
            seconds = min(timeit.repeat(book, number=2_000, repeat=7)) / 2_000
            base = base or seconds
            sys.stdout.write(f"{title:<50} {seconds * 1e6:9.1f} µs {seconds / base:9.1f} × floor\n")
        number = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
        ledger = filled(folder, number)
        scan = (
            "SELECT json_extract(attribution, '$.team'), sum(nanos) FROM charges JOIN lines ON charge = seq"
        )
        reports: dict[str, Callable[[], object]] = {
            "floor: a plain scan, by team": lambda: ledger.database.read(scan + " GROUP BY 1"),
            "everything": ledger.totals,
            "by team": lambda: ledger.totals(by=("team",)),
            "by day and model": lambda: ledger.totals(by=("day", "model")),
            "one customer's last 30 days, by flow": lambda: ledger.totals(
                since=86_400.0 * 20_835, by=("flow",), where={"customer_id": "customer-3"}
            ),
            "from noon to noon, by team": lambda: ledger.totals(
                since=86_400.0 * 20_800.5, until=86_400.0 * 20_830.5, by=("team",)
            ),
            "by session_id (from the lines)": lambda: ledger.totals(by=("session_id",)),
        }
        base = 0.0
        for title, report in reports.items():
            seconds = min(timeit.repeat(report, number=1, repeat=3))
            base = base or seconds
            sys.stdout.write(f"{title:<50} {seconds * 1e3:9.1f} ms {seconds / base:9.3f} × floor\n")
        ledger.close()


if __name__ == "__main__":
    main()
