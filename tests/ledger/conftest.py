"""One PostgreSQL for all tests of the ledger that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .postgres_server import PostgresServer


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    with PostgresServer(tmp_path_factory.mktemp("postgres")) as server:
        yield server
