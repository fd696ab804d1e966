"""One PostgreSQL for all tests of the ledger that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server
