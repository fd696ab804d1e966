"""The newest end that each store was told: kept with the settling, on every ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from genops_ctx.core.ports import Ledger, Witness
from genops_ctx.ledger.memory import MemoryLedger
from genops_ctx.ledger.sqlite import SQLiteLedger
from tests.strategies import charge, line


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Ledger:
    if request.param == "memory":
        return MemoryLedger()
    if request.param == "sqlite":
        return SQLiteLedger(tmp_path / "ledger.sqlite3")
    pytest.importorskip("psycopg")
    from genops_ctx.ledger.postgres import PostgresLedger

    return PostgresLedger(request.getfixturevalue("postgres_server").new_database())


def test_the_newest_of_each_store_is_kept(ledger: Ledger) -> None:
    assert ledger.witness("redis://a") is None
    ledger.append(charge(line(5), operation="op"), settled=False)
    ledger.mark_settled(["op#1"], Witness("redis://a", "op#1", 10.5))
    assert list(ledger.unsettled()) == []
    ledger.mark_settled(["op#2"], Witness("redis://b", "op#2", 11.0))
    ledger.mark_settled(["op#3"], Witness("redis://a", "op#3", 12.25))
    ledger.mark_settled(["op#4"])
    assert ledger.witness("redis://a") == Witness("redis://a", "op#3", 12.25)
    assert ledger.witness("redis://b") == Witness("redis://b", "op#2", 11.0)
    assert ledger.witness("redis://c") is None
    ledger.close()
