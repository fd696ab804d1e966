"""The charges of a span of time, on every ledger; the plain scan is the judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from genops_ctx.core.ports import Ledger
from genops_ctx.ledger.location import DefaultLedger
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.sqlite import SQLiteLedger
from tests.strategies import charge, line

DAY = 86_400.0


@pytest.fixture(params=["memory", "sqlite", "default", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "memory":
        return MemoryLedger()
    if request.param == "sqlite":
        return SQLiteLedger(tmp_path / "ledger.sqlite3")
    if request.param == "default":
        return DefaultLedger(tmp_path / "own" / "ledger.sqlite3")
    pytest.importorskip("psycopg")
    from genops_ctx.ledger.postgres import PostgresLedger

    return PostgresLedger(request.getfixturevalue("postgres_server").new_database())


def test_the_charges_of_a_span_of_time(ledger: Ledger) -> None:
    assert list(ledger.between(0, 100 * DAY)) == []
    # booked in another order than they began, days apart; one without a line
    starts = [3 * DAY + 5, 0.0, 9 * DAY, 3 * DAY, 3.5 * DAY, 4 * DAY - 0.001, 4 * DAY, 60 * DAY]
    for number, at in enumerate(starts):
        lines = () if number == 4 else (line(1), line(2))
        ledger.append(replace(charge(*lines, operation=f"op{number}"), started_at=at))
    for since, until in [
        (3 * DAY, 4 * DAY),
        (3 * DAY, 4 * DAY + 1),
        (3 * DAY + 5, 3.5 * DAY),
        (0.0, 100 * DAY),
        (5 * DAY, 8 * DAY),
        (4 * DAY, 3 * DAY),
        (-5.0, 0.0),
    ]:
        found = list(ledger.between(since, until))
        assert found == [one for one in ledger.charges() if since <= one.started_at < until]
    assert [one.operation for one in ledger.between(3 * DAY, 4 * DAY)] == ["op0", "op3", "op4", "op5"]
    assert [len(one.lines) for one in ledger.between(3 * DAY, 4 * DAY)] == [2, 2, 0, 2]
    ledger.close()
