"""One PostgreSQL for all tests of the ledger that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from genops_ctx.ledger.postgres import PostgresLedger
from genops_ctx.ledger.postgres_connection import PostgresConnections

from .postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module", autouse=True)
def a_busy_server_is_waited_for() -> Iterator[None]:
    """For longer than calls would wait: on a busy machine it may stand still for seconds."""
    with pytest.MonkeyPatch.context() as patch:
        for made in (PostgresLedger, PostgresConnections):
            assert made.__init__.__kwdefaults__["answer_seconds"]
            patch.setitem(made.__init__.__kwdefaults__, "answer_seconds", 60.0)
        yield
