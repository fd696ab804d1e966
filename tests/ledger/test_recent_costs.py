"""What a ledger tells a process that begins of what flows cost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from genops_ctx.core.outcomes import Outcome
from genops_ctx.core.records import UPSERT, Charge, Exactness
from genops_ctx.ledger.postgres import PostgresLedger
from genops_ctx.ledger.sqlite import SQLiteLedger
from tests.strategies import charge, line

from .postgres_server import PostgresServer


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SQLiteLedger | PostgresLedger]:
    if request.param == "sqlite":
        opened: SQLiteLedger | PostgresLedger = SQLiteLedger(tmp_path / "ledger.db")
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        opened = PostgresLedger(server.new_database())
    yield opened
    opened.close()


def of(number: int, *nanos: int, flow: str = "a") -> Charge:
    lines = [line(one) for one in nanos]
    return replace(charge(*lines, operation=f"op{number}"), flow=flow, started_at=1000.0 + number)


def test_of_an_empty_one_nothing_is_told(ledger: SQLiteLedger | PostgresLedger) -> None:
    assert ledger.recent_costs(10) == []


def test_the_newest_answered_calls_as_they_were_booked(ledger: SQLiteLedger | PostgresLedger) -> None:
    unknown = line(None, exactness=Exactness.UNKNOWN)
    for each in (
        of(1, 999),
        of(2, 5, 6),
        of(3, 7, flow="b"),
        replace(of(4, 1), outcome=Outcome.FAILED),
        replace(of(5, 1), flags=("metered", UPSERT)),
        replace(of(6, 1), flags=("upserted",)),
        replace(of(7, 1), lines=(line(1), unknown)),
        replace(of(8, 1), flow=""),
        replace(of(9, -3), adjustment_of="op2#1"),
        of(10, 2**62),
    ):
        assert ledger.append(each)
    told = [("a", 1002.0, 11), ("b", 1003.0, 7), ("a", 1006.0, 1), ("a", 1010.0, 2**62)]
    assert ledger.recent_costs(9) == told
    assert ledger.recent_costs(10) == [("a", 1001.0, 999), *told]
    assert ledger.recent_costs(1) == told[-1:]


def test_it_is_asked_by_the_number_of_charges_not_by_a_scan(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    ledger.append(of(1, 5))
    from genops_ctx.ledger import sqlite

    plan = ledger.database.read(f"EXPLAIN QUERY PLAN {sqlite._RECENT_COSTS}", (10,))
    steps = [step[3] for step in plan]
    ledger.close()
    assert any(re.match(r"SEARCH charges USING INTEGER PRIMARY KEY \(rowid>\?\)", step) for step in steps), (
        steps
    )
    assert not any(step.startswith("SCAN") for step in steps), steps
